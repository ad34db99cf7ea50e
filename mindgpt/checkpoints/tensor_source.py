"""`TensorSource`, the interface of every checkpoint format, and casts between floating-point types.

A source lists names, shapes and dtypes without reading the tensors, and reads one tensor at a time. So a file is
checked before anything is written, and a conversion needs memory for one tensor, not for the model.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.io.files import refuse_lfs_pointer

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
BFLOAT16_BITS = np.dtype("V2")  # a stored bfloat16: two bytes that NumPy can copy but not compute with


class TensorInfo(NamedTuple):
    """Shape and NumPy dtype name of a stored tensor. `read` returns `bfloat16` as float32."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensor. Python integers, so that absurd shapes in a broken file do not overflow."""
        count = 1
        for size in self.shape:
            count *= size
        return count * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


class TensorSource(Protocol):
    """Named tensors in one file or several, possibly renamed.

    Attributes:
        path: the file, beside which a config may lie.
        entries: name -> shape and dtype.
    """

    path: Path
    entries: Mapping[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as a new array; bfloat16 as float32, which holds each value exactly."""


class SpanFile:
    """A `TensorSource` whose tensors are little-endian bytes at known offsets of one file.

    Attributes:
        path: the file.
        entries: name -> shape and dtype.
        spans: name -> the (offset, length) pieces that make up the tensor, in order.
    """

    def __init__(self, path: Path):
        self.path = existing_file(path)
        self.entries: dict[str, TensorInfo] = {}
        self.spans: dict[str, list[tuple[int, int]]] = {}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`. Raises UserError if the file has become shorter since it was opened."""
        return as_numbers(self.read_box(name))

    def read_box(self, name: str, box: tuple[slice, ...] | None = None) -> np.ndarray:
        """A box of tensor `name`, one slice for each dimension, or the whole tensor; bfloat16 stays `BFLOAT16_BITS`.

        Only the rows of the box are read from the disk. Raises UserError as `read` does.
        """
        info = self.entries[name]
        dtype = BFLOAT16_BITS if info.dtype == "bfloat16" else np.dtype(info.dtype)
        if not box:
            return self._bytes(name, 0, info.nbytes).view(dtype).reshape(info.shape)
        row = info.nbytes // max(info.shape[0], 1)
        rows = self._bytes(name, box[0].start * row, box[0].stop * row).view(dtype)
        return rows.reshape(-1, *info.shape[1:])[(slice(None), *box[1:])]

    def _bytes(self, name: str, first: int, last: int) -> np.ndarray:
        """Bytes [first, last) of tensor `name`, uint8."""
        raw = np.empty(last - first, np.uint8)
        begin = 0  # of the span within the tensor
        with open(self.path, "rb") as file:
            for offset, length in self.spans[name]:
                low, high = max(first, begin), min(last, begin + length)
                if low < high:
                    file.seek(offset + low - begin)
                    if file.readinto(raw[low - first : high - first].data) != high - low:
                        raise UserError(
                            f"{self.path}: ends inside {name}: the file is cut short. Copy or make it again."
                        )
                begin += length
        return raw


def existing_file(path: Path) -> Path:
    """`path`, if it is a file with content. Raises UserError if it is missing, a folder, empty or a Git LFS pointer."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, where a file of weights is needed.")
    if not path.exists():
        raise UserError(f"{path}: no such file. Check the path.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Copy or make it again.")
    refuse_lfs_pointer(path)
    return path


def as_numbers(stored: np.ndarray) -> np.ndarray:
    """A stored array as NumPy can compute with it: `BFLOAT16_BITS` as float32, others unchanged."""
    return widen_bfloat16(stored.view(np.uint16)) if stored.dtype == BFLOAT16_BITS else stored


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) as float32: a bfloat16 is the upper half of the float32 of the same value."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """`array` as `dtype`; not copied if it has that dtype already.

    Raises:
        UserError: a finite value of tensor `name` would become infinite, or the tensor is not floating-point.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.name not in FLOAT_DTYPES:
        raise UserError(
            f"{name}: holds {array.dtype}, which is not a floating-point type; weights cannot be made from it."
        )
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    overflow = np.count_nonzero(np.isinf(result)) - np.count_nonzero(np.isinf(array))
    if overflow:
        raise UserError(
            f"{name}: {overflow} of its values are too large for {dtype} (largest: {np.nanmax(np.abs(array)):g}). "
            "Use float32."
        )
    return result


def equal_bits(source: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors of a source have the same shape, dtype and values, bit for bit."""
    if source.entries[first] != source.entries[second]:
        return False
    return np.array_equal(*(source.read(name).reshape(-1).view(np.uint8) for name in (first, second)))


def tensors(source: TensorSource, dtype: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Each name and tensor of `source`, read one at a time, and cast to `dtype` if one is given."""
    for name in source.entries:
        array = source.read(name)
        yield name, array if dtype is None else cast(array, dtype, f"{source.path}: {name}")
