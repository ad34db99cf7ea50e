"""`TensorSource`, the interface of every checkpoint format, and casts between floating-point types.

A source lists names, shapes and dtypes without reading the tensors, and reads one tensor at a time. So a file is
checked before anything is written, and a conversion needs memory for one tensor, not for the model. Most sources also
read a box of a tensor, such as the shard of a rank, without the rest of it: `read_box`.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.io.files import refuse_lfs_pointer

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
BFLOAT16_BITS = np.dtype("V2")  # a stored bfloat16: two bytes that NumPy can copy but not compute with
Box = tuple[slice, ...]  # a place in a tensor, such as that of a shard: one slice for each dimension

_PAGE = 4096  # bytes; a disk delivers no less
_BUFFER = 4 * 1024 * 1024


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

    @property
    def path(self) -> Path: ...

    @property
    def entries(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as a new array; bfloat16 as float32, which holds each value exactly."""


class BoxSource(TensorSource, Protocol):
    """A `TensorSource` that reads boxes, too."""

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """The box of a tensor, or all of it; where the source has stored bytes, bfloat16 as `BFLOAT16_BITS`."""


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

    def read_box(self, name: str, box: Box | None = None) -> np.ndarray:
        """A box of tensor `name`, or the whole tensor; bfloat16 stays `BFLOAT16_BITS`.

        Only the box is read from the disk, by runs of bytes that lie together; where these are shorter than a page, the
        rows they lie in, a few at a time. Raises UserError as `read` does.
        """
        info = self.entries[name]
        dtype = BFLOAT16_BITS if info.dtype == "bfloat16" else np.dtype(info.dtype)
        if not box:
            box = tuple(slice(0, size) for size in info.shape)
        raw = np.empty(math.prod(side.stop - side.start for side in box) * dtype.itemsize, np.uint8)
        partial = [axis for axis, side in enumerate(box) if side != slice(0, info.shape[axis])]
        axis = max(partial, default=0)  # after it the box is as wide as the tensor
        with open(self.path, "rb", buffering=0) as file:
            if not len(raw):
                pass
            elif axis == 0:
                row = info.nbytes // max(info.shape[0], 1) if box else 0
                self._fill(raw, file.fileno(), name, box[0].start * row if box else 0)
            else:
                self._fill_rows(raw, file.fileno(), name, box[: axis + 1])
        return raw.view(dtype).reshape([side.stop - side.start for side in box])

    def _fill_rows(self, raw: np.ndarray, file: int, name: str, box: Box) -> None:
        """Read a box whose last side is a part of its axis: a run of bytes in each row along that axis."""
        info = self.entries[name]
        unit = info.nbytes // math.prod(info.shape[: len(box)])  # bytes of an index of the last axis
        row = unit * info.shape[len(box) - 1]
        first, last = box[-1].start * unit, box[-1].stop * unit
        runs = raw.reshape(-1, box[-2].stop - box[-2].start, last - first)
        at_once = 1 if last - first >= _PAGE else max(1, _BUFFER // row)
        rows = np.empty(0 if at_once == 1 else (at_once, row), np.uint8)
        for target, outer in zip(runs, np.ndindex(*(side.stop - side.start for side in box[:-2])), strict=True):
            begin = 0  # the number of the row that the box begins in
            for index, side, size in zip(outer, box, info.shape, strict=False):
                begin = begin * size + side.start + index
            begin = begin * info.shape[len(box) - 2] + box[-2].start
            for number in range(0, len(target), at_once):
                if at_once == 1:
                    self._fill(target[number], file, name, (begin + number) * row + first)
                else:
                    some = rows[: len(target) - number]
                    self._fill(some.reshape(-1), file, name, (begin + number) * row)
                    target[number : number + at_once] = some[:, first:last]

    def _fill(self, raw: np.ndarray, file: int, name: str, first: int) -> None:
        """Fill `raw`, uint8, with the bytes of tensor `name` from byte `first` on."""
        begin = 0  # of the span within the tensor
        for offset, length in self.spans[name]:
            low, high = max(first, begin), min(first + len(raw), begin + length)
            while low < high:  # the system reads 2 GiB at once at most
                count = os.preadv(file, [raw[low - first : high - first].data], offset + low - begin)
                if not count:
                    raise UserError(f"{self.path}: ends inside {name}: the file is cut short. Copy or make it again.")
                low += count
            begin += length


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


def read_box(source: TensorSource, name: str, box: Box | None) -> np.ndarray:
    """A box of a tensor, or all of it, as a new array; bfloat16 as float32. Of a source that cannot read boxes, the
    whole tensor is read."""
    if not box:
        return source.read(name)
    if hasattr(source, "read_box"):
        return as_numbers(source.read_box(name, box))
    return np.array(source.read(name)[box], order="C")


def box_of_part(box: Box, shape: tuple[int, ...], part: int, transposed: bool) -> Box:
    """Where a box of a tensor lies in the stored one, whose last axis holds several such tensors one after another.

    Args:
        box: in a tensor of this `shape`.
        part: its number among them.
        transposed: whether it is stored transposed.
    """
    *others, last = box[::-1] if transposed else box
    zero = part * (shape[0] if transposed else shape[-1])
    return (*others, slice(zero + last.start, zero + last.stop))


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
    """Whether two tensors of a source have the same shape, dtype and values, bit for bit. They are read by pieces."""
    info = source.entries[first]
    if info != source.entries[second]:
        return False
    boxes: list[Box | None] = [None]
    if info.shape and hasattr(source, "read_box"):
        rows = max(1, _BUFFER * info.shape[0] // max(info.nbytes, 1))
        others = tuple(slice(0, size) for size in info.shape[1:])
        boxes = [(slice(row, min(row + rows, info.shape[0])), *others) for row in range(0, info.shape[0], rows)]

    def stored(name: str, box: Box | None) -> np.ndarray:
        return read_box(source, name, box).reshape(-1).view(np.uint8)

    return all(np.array_equal(stored(first, box), stored(second, box)) for box in boxes)


def tensors(source: TensorSource, dtype: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Each name and tensor of `source`, read one at a time, and cast to `dtype` if one is given."""
    for name in source.entries:
        array = source.read(name)
        yield name, array if dtype is None else cast(array, dtype, f"{source.path}: {name}")
