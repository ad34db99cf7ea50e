"""safetensors files, read and written one tensor at a time.

The format (https://github.com/huggingface/safetensors, "Format"): an 8-byte little-endian length N, N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, then the data. It is read without the
library, whose NumPy side has no bfloat16, and written without it, because it takes all tensors at once.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.tensor_source import SpanFile, TensorInfo
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write

# dtype in a safetensors header -> NumPy's name
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
