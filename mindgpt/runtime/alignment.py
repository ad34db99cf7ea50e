"""Weights that begin on a cache line.

The C library puts a large array 16 bytes behind one, and then every vector that a processor reads of it lies on two:
4 % of a decoding step, 2 % of a prompt.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mindspore import Parameter

CACHE_LINE = 64
"""Bytes of a cache line, on all processors that the kernels have been tried on."""


def aligned(array: np.ndarray) -> np.ndarray:
    """`array`; or, if it does not begin on a cache line, a copy that does."""
    if array.ctypes.data % CACHE_LINE == 0:
        return array
    room = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    first = -room.ctypes.data % CACHE_LINE
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def align(parameters: "Iterable[Parameter]") -> None:
    """Move the float32 ones that do not begin on a cache line to memory that does, with their values.

    For parameters that are new: what has been compiled with one before, such as an optimizer's step under PyNative
    mode, would go on with the old memory.
    """
    import mindspore as ms

    for parameter in parameters:
        if parameter.dtype == ms.float32 and parameter.data_ptr() % CACHE_LINE:
            parameter.set_data(ms.Tensor.from_numpy(aligned(parameter.asnumpy())))
