"""The files Hugging Face's libraries save weights in: `.safetensors`, PyTorch's `.bin`, and folders and shards of them.

safetensors (https://github.com/huggingface/safetensors, "Format"): an 8-byte little-endian length N, N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, then the bytes. It is read here
without the library because the library's NumPy side has no bfloat16, and written here because the library wants all
tensors at once.

PyTorch is imported only when a `.bin` is read or written.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mindgpt.checkpoints.tensor_source import SpanFile, TensorInfo, TensorSource, existing_file
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write, read_json

# the type's name in a safetensors header -> numpy name
SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # a zip archive; before PyTorch 1.6 a pickle
SAFETENSORS_NAME = "model.safetensors"
NAME_MAP = "param_name_map.json"  # of MindSpore and MindFormers, beside their safetensors: {tensor name: file name}
WEIGHT_NAMES = (  # in a folder, in the order transformers looks for them
    SAFETENSORS_NAME,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    NAME_MAP,
)
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")  # of Lightning, nanoGPT, DeepSpeed and others
_OPTIMIZER_KEY = re.compile(r"(^|_)opt(im|imizer|imizers)?(_|$)")
_TIED = ("lm_head.weight", "wte.weight")  # one matrix in GPT-2, so that one name is enough
_MASK = re.compile(r"\.attn\.(masked_)?bias$")  # a constant
_HUB_CACHE = ("blobs", "refs", "snapshots")


def open_hugging_face(path: str | Path) -> TensorSource:
    """Open a `.safetensors`, `.bin`, `.pt` or `.pth` file, a `*.index.json`, or a folder as transformers saves it.

    Raises UserError if there is none, if it is damaged or cut short, or if PyTorch is needed and absent.
    """
    path = Path(path)
    if path.is_dir():
        found = weights_in(path)
        if found is None:
            raise UserError(f"{path}: no weights in this folder. Looked for: {', '.join(WEIGHT_NAMES)}.")
        path = found
    existing_file(path)
    if path.name.endswith(".index.json") or path.name == NAME_MAP:
        return ShardedFiles(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if is_torch_file(path):
        return TorchFile(path)
    raise UserError(
        f"{path}: not a name of Hugging Face weights. Allowed: a folder, or a file whose name ends in "
        f".safetensors, {', '.join(TORCH_SUFFIXES)} or .index.json."
    )


def is_torch_file(path: Path) -> bool:
    """Whether a file is PyTorch's: by its name, or by its first bytes where the name is one of MindSpore's, which
    Lightning uses too."""
    if path.suffix in TORCH_SUFFIXES:
        return True
    if path.suffix != ".ckpt" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) in _TORCH_STARTS


def weights_in(folder: Path) -> Path | None:
    """The weights transformers would load from `folder`, or None.

    Raises:
        UserError: it is part of a Hugging Face cache, whose models lie further down.
    """
    found = next((folder / name for name in WEIGHT_NAMES if (folder / name).exists()), None)
    if found is None and (snapshots := _snapshots_below(folder)) is not None:
        named = f": {' or '.join(snapshots)}" if snapshots else ", of which there is none"
        raise UserError(f"{folder}: is the cache of a model. Name a snapshot in it{named}.")
    return found


def _snapshots_below(folder: Path) -> list[str] | None:
    """The downloads in a cache of the Hugging Face hub, or in a part of one; None if the folder is neither."""
    if all((folder / name).is_dir() for name in _HUB_CACHE):
        models = [folder]
    elif folder.name == "snapshots" and folder.parent.name.startswith("models--"):
        models = [folder.parent]
    else:
        models = [path for place in (folder, folder / "hub") for path in place.glob("models--*") if path.is_dir()]
        if not models:
            return None
    return sorted(str(path) for model in models for path in model.glob("snapshots/*") if path.is_dir())


class SafetensorsFile(SpanFile):
    """A `.safetensors` file. Raises UserError if its header is broken or its length is not what the header says."""

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            self._read_header()
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = f"no {error} in its header" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path}: not a whole safetensors file ({reason}). "
                "It is damaged, cut short, or another kind of file. Copy or download it again."
            ) from None

    def _read_header(self) -> None:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"its header would be {header_bytes} bytes, the file is {size}")
            header = json.loads(file.read(header_bytes))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        data, end = 8 + header_bytes, 0
        for name, entry in header.items():
            if entry["dtype"] not in SAFETENSORS_DTYPES:
                raise ValueError(f"{name} is {entry['dtype']}; known: {', '.join(SAFETENSORS_DTYPES)}")
            info = TensorInfo(tuple(int(size) for size in entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]])
            first, last = entry["data_offsets"]
            if min((*info.shape, first), default=0) < 0 or last - first != info.nbytes:
                raise ValueError(f"{name} {list(info.shape)} {info.dtype} cannot lie at bytes {first}..{last}")
            self.entries[name] = info
            self.spans[name] = [(data + first, last - first)]
            end = max(end, last)
        if data + end != size:
            raise ValueError(f"it should have {data + end} bytes and has {size}")


class TorchFile:
    """A state dict saved by `torch.save`. Only tensors are unpickled (`weights_only=True`), and mapped, not read.

    A training checkpoint that holds one state dict among other things is opened as that, and `notes` says so.
    """

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self._torch = import_torch(path)
        self._tensors = self._load()
        self.entries = {
            name: TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        tensor = self._tensors[name].detach()
        if tensor.dtype == self._torch.bfloat16:
            tensor = tensor.float()
        return np.array(tensor.numpy(), order="C")

    def _load(self) -> Mapping[str, Any]:
        try:
            # Files from before PyTorch 1.6, GPT-2's own among them, are no zip archives and cannot be mapped.
            loaded = self._torch.load(
                self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path)
            )
        except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... for broken files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.path}: PyTorch cannot read it as a file of tensors ({reason}). It is damaged, cut short, or "
                "holds Python objects, which are not loaded because they could run code. Copy it again or save it as "
                "safetensors."
            ) from None
        if not isinstance(loaded, Mapping) or not loaded:
            raise UserError(
                f"{self.path}: holds a {type(loaded).__name__}, where a state dict (name -> tensor) is needed."
            )
        inside = [key for key in _STATE_DICT_KEYS if self._is_state_dict(loaded.get(key))]
        if len(inside) == 1:
            rest = [str(key) for key in loaded if key != inside[0]]
            if others := [key for key in rest if not _OPTIMIZER_KEY.search(key) and self._holds_matrix(loaded[key])]:
                raise UserError(
                    f"{self.path}: holds weights under {inside[0]!r} and under {', '.join(map(repr, others))}, and "
                    "nothing says which are meant. Save the ones you want by themselves, as a state dict."
                )
            left_out = f", and {', '.join(rest)} left out" if rest else ""
            self.notes.append(f"{self.path}: a training checkpoint; its {inside[0]!r} is read{left_out}")
            return loaded[inside[0]]
        others = [str(name) for name, value in loaded.items() if not isinstance(value, self._torch.Tensor)]
        if others:
            raise UserError(
                f"{self.path}: not a plain state dict (name -> tensor). These entries are no tensors: "
                f"{', '.join(others)}. Save the model's state_dict() alone."
            )
        return loaded

    def _holds_matrix(self, value: Any) -> bool:
        """Whether there are weights somewhere in a value; the state of a random generator is a vector."""
        if isinstance(value, Mapping):
            return any(map(self._holds_matrix, value.values()))
        if isinstance(value, list | tuple):
            return any(map(self._holds_matrix, value))
        return isinstance(value, self._torch.Tensor) and value.ndim > 1

    def _is_state_dict(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(isinstance(tensor, self._torch.Tensor) for tensor in value.values())
        )


class ShardedFiles:
    """The files an `*.index.json` names (`{"weight_map": {tensor name: file name}}`), or MindSpore's `NAME_MAP`, as one
    source. Of the token embedding and the output head tied to it, one may be listed and lie nowhere."""

    def __init__(self, index: Path):
        self.path = index
        weight_map = self._weight_map()
        shards = {name: open_hugging_face(self._shard(name)) for name in sorted(set(weight_map.values()))}
        self._source: dict[str, TensorSource] = {}
        for shard in shards.values():
            for name in shard.entries:
                if name in self._source:
                    raise UserError(
                        f"{index}: {name} is in two shards, {self._source[name].path.name} and {shard.path.name}."
                    )
                self._source[name] = shard
        absent = [
            f"{name} (in {file})"
            for name, file in weight_map.items()
            if name not in shards[file].entries and not (_MASK.search(name) or self._is_tied_to_another(name))
        ]
        if absent:
            raise UserError(f"{index}: its files do not hold what it says they hold. Missing: {', '.join(absent)}.")
        self.entries = {name: shard.entries[name] for name, shard in self._source.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._source[name].read(name)

    def _is_tied_to_another(self, name: str) -> bool:
        """Whether a name means the matrix that lies in a shard under its other name."""
        others = tuple(other for other in _TIED if not name.endswith(other))
        return len(others) < len(_TIED) and any(held.endswith(others) for held in self._source)

    def _weight_map(self) -> dict[str, str]:
        try:
            content = read_json(self.path)
            flat = self.path.name == NAME_MAP and "weight_map" not in content  # MindSpore writes it either way
            weight_map = content if flat else content["weight_map"]
        except (ValueError, KeyError, TypeError):
            weight_map = None
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(v, str) for v in weight_map.values())
        ):
            raise UserError(
                f'{self.path}: not an index of weights, which is JSON like {{"weight_map": {{name: file}}}}.'
            )
        return weight_map

    def _shard(self, name: str) -> Path:
        shard = self.path.parent / name
        if Path(name).name != name or name.endswith(".index.json"):
            raise UserError(f"{self.path}: names the shard {name!r}; a shard is a file of weights in the same folder.")
        if not shard.exists():
            raise UserError(f"{self.path}: its shard {name} is missing. Copy or download all of them.")
        return shard


def write_safetensors(
    path: str | Path, entries: Mapping[str, TensorInfo], items: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write `items`, which must come in the order, shapes and types of `entries`; the file appears when it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on the format
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    end = 0
    for name, info in entries.items():
        header[name] = {"dtype": names[info.dtype], "shape": info.shape, "data_offsets": [end, end + info.nbytes]}
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with atomic_write(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, info), (written, array) in zip(entries.items(), items, strict=True):
            assert (written, array.shape, array.dtype) == (name, info.shape, info.dtype), (
                f"{written} is not {name} {info}"
            )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def write_torch(path: str | Path, items: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write `items` as a state dict with `torch.save`; the file appears when it is whole. Holds all tensors at once."""
    torch = import_torch(path)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in items}
    with atomic_write(path, "wb") as file:
        torch.save(state, file)


def import_torch(path: str | Path) -> ModuleType:
    """The module `torch`, or a UserError that says how to get it or do without."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: PyTorch is needed for this kind of file and is not installed. "
            "Install it with `pip install 'mindgpt[convert]'`, or use a .safetensors file, which does without."
        ) from None
    return torch
