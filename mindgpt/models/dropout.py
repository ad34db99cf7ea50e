"""Dropout (Srivastava et al. 2014) whose masks follow from the seed alone.

MindSpore's kernel for the CPU lets its threads share one random stream, so equal runs differ after some steps, and it
takes several times as long as the product it masks. Here a mask is a hash of each value's place and of one number drawn
per call; graph-kernel fusion makes one loop of that and the product (docs/performance.md).
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

# Odd multipliers of well-known linear congruential generators; int32 arithmetic wraps, as the hash wants it.
_GOLDEN = -1640531535  # 2^32 / golden ratio
_ROW_STEP, _COLUMN_STEP = 747796405, 277803737


@ops.constexpr
def _places(rows: int, columns: int, step: int) -> Tensor:
    """(rows, columns) int32, a constant of the graph: 0, 1, 2 ... times `step`, modulo 2^32. One of the two is 1."""
    multiples = np.arange(rows * columns, dtype=np.int64) * step
    return Tensor((multiples & 0xFFFFFFFF).astype(np.uint32).view(np.int32).reshape(rows, columns))


def dropout(rate: float) -> nn.Cell:
    """The dropout for the current device: values are zeroed with probability `rate`, the others divided by 1 - rate."""
    return HashedDropout(rate) if ms.get_context("device_target") == "CPU" else nn.Dropout(p=rate)


class HashedDropout(nn.Cell):
    """Dropout in training mode, nothing otherwise.

    A value in row r and column c is kept if hash(a r + b c + k) >= rate, with a and b odd and k drawn anew in every
    call. The hash is two rounds of h -> h (2h + 1) g mod 2^32, a permutation whose high bits depend on all bits of h
    (the function of RC6, Rivest et al. 1998).

    `mindspore.set_seed` before the cell is built fixes all masks.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draw = ops.UniformInt(seed=int(np.random.randint(1, 2**31 - 1)))  # set_seed seeds NumPy too
        self.draw.recompute(False)  # a recomputed forward pass must see the same mask
        self.lowest, self.highest = Tensor(0, ms.int32), Tensor(2**31 - 1, ms.int32)
        self.threshold = Tensor(round(rate * 2**32) - 2**31, ms.int32)
        self.scale = 1.0 / (1.0 - rate)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.cast = ops.Cast()

    def mix(self, h: Tensor) -> Tensor:
        """Two rounds of the hash, element by element, on int32."""
        h = self.mul(self.mul(h, self.add(self.add(h, h), 1)), _GOLDEN)
        return self.mul(self.mul(h, self.add(self.add(h, h), 1)), _GOLDEN)

    def kept(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) bool: a new mask"""
        key = self.draw((1,), self.lowest, self.highest)
        place = self.add(self.add(_places(rows, 1, _ROW_STEP), key), _places(1, columns, _COLUMN_STEP))
        return self.mix(place) >= self.threshold

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape, floating -> the same shape and dtype"""
        if not self.training or self.rate == 0:
            return x
        columns = x.shape[-1]
        rows = x.size // columns
        mask = self.mul(self.cast(self.kept(rows, columns), x.dtype), self.scale)
        return self.mul(x.reshape(rows, columns), mask).reshape(x.shape)
