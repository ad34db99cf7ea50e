"""TensorFlow's checkpoints, read without TensorFlow.

    <prefix>.index                  a table: name -> dtype, shape, place in a data file and checksum of each tensor
    <prefix>.data-00000-of-00001    the bytes of the tensors; of large checkpoints there are several such files
    checkpoint                      text, which names the newest prefix in the folder; may be missing

`tf.train.Saver` writes these since TensorFlow 1.0; so does bert4keras's `save_weights_as_checkpoint`. Format:
`tensorflow/core/util/tensor_bundle/tensor_bundle.cc` and `tensorflow/core/protobuf/tensor_bundle.proto`.

Tensors are read one at a time, not mapped into memory: `read` returns a copy either way, so that the largest tensor is
all that is ever held, and the process would be killed if a mapped file became shorter.
"""

import glob
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mindgpt.checkpoints.crc32c import masked_crc32c
from mindgpt.checkpoints.leveldb_table import read_table
from mindgpt.checkpoints.protobuf_wire import VARINT, Malformed, fields, read_varint
from mindgpt.checkpoints.tensor_source import BFLOAT16_BITS, TensorInfo, as_numbers, existing_file
from mindgpt.config.errors import UserError

INDEX_SUFFIX = ".index"
STATE_FILE = "checkpoint"  # in a folder of checkpoints
_DATA_FILE = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}")
_STEP = re.compile(r".+\.ckpt-\d+")  # a prefix with the training step, as TensorFlow's examples and users name them
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"(.+)"', re.MULTILINE)
_OBJECT_BASED = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH|.*/\.ATTRIBUTES/|.*/\.OPTIMIZER_SLOT/")
_HDF5 = b"\x89HDF\r\n\x1a\n"

DATA_TYPES = {  # `DataType` of TensorFlow's types.proto -> NumPy's name
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_TEXT = 7  # `DataType` of strings
_MOST_SHARDS = 99_999  # five digits in the names of the files


class _Place(NamedTuple):
    """Where the bytes of a tensor are."""

    shard: int
    offset: int
    checksum: int


class TensorBundle:
    """The tensors of a TensorFlow checkpoint, as a `TensorSource`, optimizer slots among them.

    The checksums of the index are checked when it is opened, that of a tensor when it is read.

    Args:
        path: the prefix, or one of its files.

    Attributes:
        path: the index.
        entries: as in `TensorSource`; the names are sorted.

    Raises:
        UserError: a file is missing, cut short or damaged, or the checkpoint is of a kind that is not read:
            object-based, with partitioned variables, or of a big-endian machine.
    """

    def __init__(self, path: Path):
        self.path = index_of(path) or path
        prefix = self.path.with_name(self.path.name.removesuffix(INDEX_SUFFIX))
        if not self.path.exists() and (path != self.path or _has_data(prefix)):
            named = prefix if path == self.path else path
            raise UserError(f"{named}: its index, {self.path.name}, is missing. Copy all files of the checkpoint.")
        existing_file(self.path)
        self.entries: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        try:
            self._read_index()
        except Malformed as error:
            raise UserError(
                f"{self.path}: not a whole index of a TensorFlow checkpoint ({error}). It is damaged, cut short, or "
                "another kind of file. Copy it again."
            ) from None
        self._check_data_files()

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`. Raises UserError if the tensor does not match its checksum."""
        info, place = self.entries[name], self._places[name]
        file, raw = self._files[place.shard], np.empty(info.nbytes, np.uint8)
        with open(file, "rb") as data:
            data.seek(place.offset)
            if data.readinto(raw.data) != info.nbytes:
                raise UserError(f"{file}: ends inside {name}: the file is cut short. Copy it again.")
        if masked_crc32c(raw) != place.checksum:
            raise UserError(f"{file}: {name} does not match its checksum: the file is damaged. Copy it again.")
        dtype = BFLOAT16_BITS if info.dtype == "bfloat16" else np.dtype(info.dtype)
        return as_numbers(raw.view(dtype).reshape(info.shape))

    def _read_index(self) -> None:
        """Fill `entries` and what `read` needs."""
        table = read_table(self.path)
        name, header = next(table, (None, b""))
        if name != b"":
            raise Malformed("it has no header")
        numbers = _numbers(header)
        if numbers.get(2):
            raise UserError(
                f"{self.path}: written on a big-endian machine, which is not read. Load it with TensorFlow on another "
                "machine, and save it there."
            )
        self._shards = numbers.get(1, 0)
        if not 0 < self._shards <= _MOST_SHARDS:
            raise Malformed(f"it has {self._shards} data files")
        for key, value in table:
            self._add(key, value)
        if not self.entries:
            raise Malformed("it lists no tensors")

    def _add(self, key: bytes, value: bytes) -> None:
        """Register one tensor."""
        name = key.decode(errors="replace")
        spans: dict[int, Any] = {}
        for number, _, span in fields(value, 0, len(value)):
            spans.setdefault(number, span)
        if _OBJECT_BASED.match(name):
            raise UserError(
                f"{self.path}: an object-based checkpoint of TensorFlow 2 (it has {name}), whose names depend on the "
                "program that wrote it. Save the variables by name, with tf.compat.v1.train.Saver."
            )
        if 7 in spans:
            raise UserError(
                f"{self.path}: {name} is a partitioned variable, which is stored in slices and not read. Load the "
                "checkpoint with TensorFlow, and save it without a partitioner."
            )
        numbers = _numbers(value)
        if (kind := numbers.get(1, 0)) not in DATA_TYPES:
            what = "text" if kind == _TEXT else f"TensorFlow's data type number {kind}"
            raise UserError(f"{self.path}: {name} is {what}, which is no weight. Save the checkpoint without it.")
        info = TensorInfo(_shape(value, spans.get(2)), DATA_TYPES[kind])
        if numbers.get(5, 0) != info.nbytes:
            raise Malformed(f"{name} {list(info.shape)} {info.dtype} cannot have {numbers.get(5, 0)} bytes")
        if numbers.get(3, 0) >= self._shards:
            raise Malformed(f"{name} is in data file {numbers[3]}, and there are {self._shards}")
        checksum = int.from_bytes(value[slice(*spans[6])], "little") if 6 in spans else 0
        self.entries[name] = info
        self._places[name] = _Place(numbers.get(3, 0), numbers.get(4, 0), checksum)

    def _check_data_files(self) -> None:
        """Raise a UserError unless all data files are there and long enough."""
        prefix = self.path.name.removesuffix(INDEX_SUFFIX)
        self._files = [
            self.path.with_name(f"{prefix}.data-{shard:05d}-of-{self._shards:05d}") for shard in range(self._shards)
        ]
        if missing := [file.name for file in self._files if not file.exists()]:
            files = ", ".join(missing) if len(missing) < 4 else f"{missing[0]} and {len(missing) - 1} more"
            raise UserError(
                f"{self.path}: the data is missing: {files}. Copy all files of the checkpoint into one folder, under "
                "their own names."
            )
        ends = [0] * self._shards
        for name, place in self._places.items():
            ends[place.shard] = max(ends[place.shard], place.offset + self.entries[name].nbytes)
        for file, end in zip(self._files, ends, strict=True):
            if end and (size := existing_file(file).stat().st_size) < end:
                raise UserError(
                    f"{file}: has {size:,} bytes, and by its index {end:,}. It is cut short, or of another checkpoint. "
                    "Copy it again."
                )


def index_of(path: Path) -> Path | None:
    """The index of the TensorFlow checkpoint that a prefix or a file of it means; None if the path is none of these.

    A prefix is no file itself, so there must be an index or data of that name. Of a file named like its index or its
    data, the index need not exist.
    """
    if path.is_dir():
        return None
    if match := _DATA_FILE.fullmatch(path.name):
        return path.with_name(match["prefix"] + INDEX_SUFFIX)
    if path.name.endswith(INDEX_SUFFIX):
        return path
    index = path.with_name(path.name + INDEX_SUFFIX)
    return index if not path.exists() and (index.exists() or _has_data(path)) else None


def _has_data(prefix: Path) -> bool:
    return any(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))


def is_tensorflow(path: Path) -> bool:
    """Whether a path is a prefix of a TensorFlow checkpoint or one of its files."""
    return index_of(path) is not None


def is_prefix_with_step(named: str) -> bool:
    """Whether a name is like `model.ckpt-100000`, a prefix of TensorFlow."""
    return _STEP.fullmatch(named) is not None


def index_in(folder: Path) -> Path | None:
    """The index of the checkpoint that the file `checkpoint` in a folder names, or of the only one; None if none.

    Raises:
        UserError: what the file names is not there; or there is no such file, and several checkpoints.
    """
    found = sorted(file for file in folder.glob(f"*{INDEX_SUFFIX}") if file.is_file())
    listed = ", ".join(file.name for file in found) or "none"
    state = folder / STATE_FILE
    newest = _NEWEST.search(state.read_text(encoding="utf-8", errors="replace")) if state.is_file() else None
    if newest:
        named = folder / (re.split(r"[/\\]", newest[1])[-1] + INDEX_SUFFIX)  # the folder may have been moved
        if named not in found:
            raise UserError(f"{state}: names {named.name}, which is not there. Found {listed}: name the one you mean.")
        return named
    if len(found) > 1:
        raise UserError(f"{folder}: holds several TensorFlow checkpoints ({listed}). Name the one you mean.")
    return found[0] if found else None


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def refuse_hdf5(path: Path) -> NoReturn:
    """Raise a `UserError` that says what to do with a file of Keras."""
    raise UserError(
        f"{path}: an HDF5 file of Keras, such as bert4keras's save_weights writes, which is not read. Load it with the "
        "program that wrote it, and save a TensorFlow checkpoint (bert4keras: save_weights_as_checkpoint)."
    )


def _numbers(message: bytes) -> dict[int, int]:
    """The varints of a protobuf message, by field number. Those that are zero are left out of a message."""
    spans = {number: span for number, kind, span in fields(message, 0, len(message)) if kind == VARINT}
    return {number: read_varint(message, *span)[0] for number, span in spans.items()}


def _shape(message: bytes, span: tuple[int, int] | None) -> tuple[int, ...]:
    """The shape in a `TensorShapeProto`: each field 2 is a dimension, whose field 1 is its size. A scalar may have no
    such message."""
    if span is None:
        return ()
    dimensions = [inside for number, _, inside in fields(message, *span) if number == 2]
    return tuple(_numbers(message[slice(*inside)]).get(1, 0) for inside in dimensions)
