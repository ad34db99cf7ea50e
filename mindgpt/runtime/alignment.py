"""Weights that begin on a cache line.

The C library puts a large array 16 bytes behind one, and then every vector that a processor reads of it lies on two:
4 % of a decoding step, 2 % of a prompt.
"""

import numpy as np

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
