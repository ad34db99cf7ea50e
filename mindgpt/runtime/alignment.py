"""Alignment of weights to cache lines.

malloc places a large array 16 bytes after the start of a cache line, so that every vector load spans two lines. That
costs 4 % of a decode step and 2 % of a prefill.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mindspore import Parameter

CACHE_LINE = 64
"""Bytes of a cache line, on all processors that the kernels were tried on."""


def aligned(array: np.ndarray) -> np.ndarray:
    """`array`, of any shape and dtype, or a copy if it does not start on a cache line."""
    if array.ctypes.data % CACHE_LINE == 0:
        return array
    room = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    first = -room.ctypes.data % CACHE_LINE
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def align(parameters: "Iterable[Parameter]") -> None:
    """Move float32 parameters that do not start on a cache line to aligned memory, with their values.

    Only for new parameters: code that was compiled with one before, such as an optimizer's step in PyNative mode, would
    keep using the old memory.
    """
    import mindspore as ms

    for parameter in parameters:
        if parameter.dtype == ms.float32 and parameter.data_ptr() % CACHE_LINE:
            parameter.set_data(ms.Tensor.from_numpy(aligned(parameter.asnumpy())))
