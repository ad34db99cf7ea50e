"""Writes a state dict in the format of `torch.save`, one tensor at a time.

`torch.save` needs all tensors at once. The format, since PyTorch 1.6, is a zip archive, not compressed:

    archive/data.pkl     the pickled dict; of each tensor shape, dtype and the number of its data
    archive/data/0       the bytes of the first tensor, and so on
    archive/byteorder    "little"
    archive/version      "3"

Data begins at multiples of 64 bytes, so that it can be memory-mapped. Source: `torch/serialization.py` and
`caffe2/serialize/inline_container.cc` of PyTorch.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_format import import_torch

_ALIGNMENT = 64
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_ZIP64_FIELD = 20
_LARGE = 1 << 30  # from here on an entry has zip64's sizes
_STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
}


class _Storage(NamedTuple):
    """The data of a tensor, as a pickle refers to it."""

    dtype: str
    key: str
    size: int


class _Tensor:
    """Pickled as a PyTorch tensor is."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...], rebuild: Any):
        self._storage, self._shape, self._rebuild = storage, shape, rebuild

    def __reduce__(self) -> tuple[Any, ...]:
        strides: list[int] = []
        step = 1
        for size in reversed(self._shape):
            strides.insert(0, step)
            step *= size
        return self._rebuild, (self._storage, 0, self._shape, tuple(strides), False, OrderedDict())


class StateDictWriter:
    """Writes the tensors `entries` to a binary file that can be sought, as `torch.save` would write them in a dict.

    A context manager. Each tensor is handed to `write`, in the order of `entries`; the file is whole after the end.
    """

    def __init__(self, file: IO[bytes], entries: Mapping[str, TensorInfo]):
        self._file = file
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._left = list(enumerate(entries.items()))[::-1]
        self._record("data.pkl", _pickled(entries))
        self._record("byteorder", b"little")

    def __enter__(self) -> "StateDictWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            assert not self._left, f"{len(self._left)} tensors were not written"
            self._record("version", b"3\n")
            self._zip.close()

    def write(self, name: str, array: np.ndarray) -> None:
        """Write the next tensor. A bfloat16 tensor comes as float32."""
        number, (expected, info) = self._left.pop()
        stored = _bfloat16_bits(array) if info.dtype == "bfloat16" else array
        assert (name, array.shape, stored.nbytes) == (expected, info.shape, info.nbytes), f"{name} is not {expected}"
        little = np.ascontiguousarray(stored, stored.dtype.newbyteorder("<"))
        self._record(f"data/{number}", little.reshape(-1).view(np.uint8).data)

    def _record(self, name: str, data: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"archive/{name}")
        entry.file_size = len(data)
        large = len(data) >= _LARGE
        begin = self._file.tell() + _LOCAL_HEADER + len(entry.filename) + (_ZIP64_FIELD if large else 0) + 4
        padding = -begin % _ALIGNMENT
        entry.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)  # PyTorch's own padding is called so
        with self._zip.open(entry, "w", force_zip64=large) as record:
            record.write(data)


def _bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values that are exact in bfloat16."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _pickled(entries: Mapping[str, TensorInfo]) -> bytes:
    torch = import_torch("a state dict")

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, _Storage):
                return None
            return "storage", getattr(torch, _STORAGES[value.dtype]), value.key, "cpu", value.size

    state = OrderedDict()
    for number, (name, info) in enumerate(entries.items()):
        storage = _Storage(info.dtype, str(number), TensorInfo(info.shape, "int8").nbytes)
        state[name] = _Tensor(storage, info.shape, torch._utils._rebuild_tensor_v2)
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(state)
    return file.getvalue()
