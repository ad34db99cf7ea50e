"""MindSpore's `.ckpt` files, read and written one tensor at a time.

A `.ckpt` is a protobuf message (`checkpoint.proto` of MindSpore): `repeated Value`, each a name (`tag`) and a tensor of
`dims`, `tensor_type` ("Float32") and `tensor_content` (the bytes). Since concatenated messages are one message, the
file can be written as a stream; a tensor above `SLICE_BYTES` is several consecutive values of one name.

`mindspore.load_checkpoint` is not used: it holds the file in memory three times (bytes, message, parameters), notices
errors only after reading everything, and logs them at CRITICAL level. The files are the same: the tests read ours with
`mindspore.load_checkpoint` and MindSpore's with `CheckpointFile`.
"""

import mmap
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from mindgpt.checkpoints.protobuf_wire import LENGTH_DELIMITED, VARINT, Malformed, fields, read_varint
from mindgpt.checkpoints.tensor_source import BFLOAT16_BITS, SpanFile, TensorInfo
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write

# numpy name -> tensor_type in the file
TENSOR_TYPES = {
    "bool": "Bool",
    "int8": "Int8",
    "int16": "Int16",
    "int32": "Int32",
    "int64": "Int64",
    "uint8": "UInt8",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "float16": "Float16",
    "bfloat16": "BFloat16",
    "float32": "Float32",
    "float64": "Float64",
}
DTYPES = {tensor_type: dtype for dtype, tensor_type in TENSOR_TYPES.items()}
SLICE_BYTES = 512 * 1024 * 1024  # as MindSpore: a protobuf message ends at 2 GiB
CRC_MARK = b"crc_num"
CRC_BYTES = len(CRC_MARK) + 10
_PIECE = 16 * 1024 * 1024

UTF32 = "utf-32-le"  # MindSpore stores strings as NumPy does


class CheckpointFile(SpanFile):
    """A `.ckpt`: `entries` and `read` for its tensors, `texts` for its strings. Making it reads names and shapes only.

    Raises:
        UserError: the file is missing, empty, truncated, damaged (if it has a checksum), not a checkpoint, or holds
            something other than tensors and strings.
    """

    def __init__(self, path: str | Path):
        super().__init__(Path(path))
        self.texts: dict[str, str] = {}
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            try:
                for number, wire_type, span in fields(buffer, 0, _content_end(buffer)):
                    if (number, wire_type) != (1, LENGTH_DELIMITED):
                        raise Malformed(f"no entry begins before byte {span[0]}")
                    self._add_value(buffer, *span)
                self._check_sizes()
            except (Malformed, UnicodeDecodeError) as error:
                raise UserError(
                    f"{self.path}: not a whole MindSpore checkpoint ({error}). "
                    "It is damaged, cut short, or another kind of file. Copy or make it again."
                ) from None

    def _add_value(self, buffer: mmap.mmap, start: int, end: int) -> None:
        """Register one `Value` of the message: a tensor, a slice of one, or a string."""
        parts = {number: span for number, _, span in fields(buffer, start, end)}
        if 1 not in parts or 2 not in parts:
            raise Malformed(f"the entry at byte {start} has no name or no tensor")
        name = buffer[slice(*parts[1])].decode()
        dims, tensor_type, content = _tensor(buffer, *parts[2])
        if tensor_type == "str":
            self.texts[name] = buffer[slice(*content)].decode(UTF32).rstrip("\0")
            return
        if tensor_type not in DTYPES:
            raise UserError(f"{self.path}: {name} is stored as {tensor_type!r}; known: {', '.join(DTYPES)}.")
        if dims == (0,) and content[1] > content[0]:  # how older MindSpore wrote a scalar
            dims = ()
        info = TensorInfo(dims, DTYPES[tensor_type])
        if self.entries.setdefault(name, info) != info:
            raise Malformed(f"{name} occurs with two shapes or types")
        self.spans.setdefault(name, []).append((content[0], content[1] - content[0]))

    def _check_sizes(self) -> None:
        if not self.entries and not self.texts:
            raise Malformed("it holds nothing")
        for name, info in self.entries.items():
            held = sum(length for _, length in self.spans[name])
            if held != info.nbytes:
                raise Malformed(f"{name} {list(info.shape)} {info.dtype} needs {info.nbytes} bytes and has {held}")


def write_checkpoint(path: str | Path, items: Iterable[tuple[str, np.ndarray | str]]) -> None:
    """Write named arrays and strings to a `.ckpt` that `mindspore.load_checkpoint` reads.

    The write is atomic: a kill at any instant, or an exception raised by `items`, leaves an earlier file untouched. One
    array is in memory at a time if `items` is a generator. An array of `BFLOAT16_BITS` is stored as bfloat16.
    """
    with atomic_write(path, "wb") as file:
        for name, item in items:
            if isinstance(item, str):
                content = np.array([item]).view(np.uint8)
                _write_value(file, name, (0,), "str", content)
            else:
                content = np.ascontiguousarray(item).reshape(-1).view(np.uint8)
                tensor_type = "BFloat16" if item.dtype == BFLOAT16_BITS else TENSOR_TYPES[item.dtype.name]
                _write_value(file, name, item.shape, tensor_type, content)


def _write_value(file: IO[bytes], name: str, dims: tuple[int, ...], tensor_type: str, content: np.ndarray) -> None:
    tag = _length_delimited(1, name.encode())
    dims_and_type = b"".join(_varint(1 << 3) + _varint(size) for size in dims)
    dims_and_type += _length_delimited(2, tensor_type.encode())
    for start in range(0, max(len(content), 1), SLICE_BYTES):  # an empty tensor is one empty slice
        piece = content[start : start + SLICE_BYTES]
        tensor = dims_and_type + _length_header(3, len(piece))
        value = tag + _length_header(2, len(tensor) + len(piece)) + tensor
        file.write(_length_header(1, len(value) + len(piece)) + value)
        file.write(piece.data)


def _tensor(buffer: mmap.mmap, start: int, end: int) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    """dims, tensor_type and the span of the content of a `TensorProto`."""
    dims: list[int] = []
    tensor_type, content = None, None
    for number, wire_type, span in fields(buffer, start, end):
        if number == 1 and wire_type == VARINT:
            dims.append(read_varint(buffer, *span)[0])
        elif number == 2:
            tensor_type = buffer[slice(*span)].decode()
        elif number == 3:
            content = span
    if tensor_type is None or content is None:
        raise Malformed(f"the tensor at byte {start} has no type or no content")
    return tuple(dims), tensor_type, content


def _content_end(buffer: mmap.mmap) -> int:
    """Where the message ends: before the checksum that `save_checkpoint(crc_check=True)` appends, if there is one."""
    end = len(buffer) - CRC_BYTES
    if end < 0 or buffer[end : end + len(CRC_MARK)] != CRC_MARK:
        return len(buffer)
    checksum = 0
    for start in range(0, end, _PIECE):
        checksum = zlib.crc32(buffer[start : min(start + _PIECE, end)], checksum)
        buffer.madvise(mmap.MADV_DONTNEED, start, _PIECE)
    if checksum != int.from_bytes(buffer[end + len(CRC_MARK) :], "big"):
        raise Malformed("its checksum does not match its contents")
    return end


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _length_header(number: int, length: int) -> bytes:
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(length)


def _length_delimited(number: int, content: bytes) -> bytes:
    return _length_header(number, len(content)) + content
