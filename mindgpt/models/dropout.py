"""Dropout (Srivastava et al. 2014) whose masks follow from the seed alone.

MindSpore's kernel for the CPU lets its threads share one random stream, so equal runs differ after some steps, and it
takes several times as long as the product it masks. Here a mask is a hash of each value's place and of one number drawn
per call; graph-kernel fusion makes one loop of that and the product (docs/performance.md).
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindgpt.runtime.collectives import data_parallel_ranks
from mindgpt.runtime.ranks import rank

# Odd multipliers of well-known linear congruential generators; int32 arithmetic wraps, as the hash wants it.
_GOLDEN = -1640531535  # 2^32 / golden ratio
_ROW_STEP, _COLUMN_STEP, _RANK_STEP = 747796405, 277803737, 2891336453


@ops.constexpr
def _places(rows: int, columns: int, step: int) -> Tensor:
    """(rows, columns) int32, a constant of the graph: 0, 1, 2 ... times `step`, modulo 2^32. One of the two is 1."""
    multiples = np.arange(rows * columns, dtype=np.int64) * step
    return Tensor((multiples & 0xFFFFFFFF).astype(np.uint32).view(np.int32).reshape(rows, columns))


def dropout(rate: float) -> nn.Cell:
    """The dropout for the current device: values are zeroed with probability `rate`, the others divided by 1 - rate.

    In data-parallel processes the masks differ, whose rows differ.
    """
    if ms.get_context("device_target") == "CPU":
        return HashedDropout(rate)
    cell = nn.Dropout(p=rate)
    if data_parallel_ranks() > 1:
        # The cell's own seed is the same everywhere, since the processes' weights must begin equal.
        cell.dropout = ops.Dropout(1.0 - rate, cell.dropout.Seed0, cell.dropout.Seed1 + rank())
    return cell


class HashedDropout(nn.Cell):
    """Dropout in training mode, nothing otherwise.

    A value in row r and column c is kept if hash(a r + b c + k) >= rate, with a and b odd and k the key of the call.
    The hash is two rounds of h -> h (2h + 1) g mod 2^32, a permutation whose high bits depend on all bits of h (the
    function of RC6, Rivest et al. 1998). A number of the cell's own goes in between the rounds, so that one key gives
    the cells of a model masks that have nothing in common. It differs between processes, too, whose rows differ; the
    key does not, so that any of them can go on from one checkpoint.

    `mindspore.set_seed` before the cell is built fixes all masks. By itself the cell draws a key in every call; within
    a training step it takes the step's (`StepKey`), which a checkpoint holds, so that a resumed run goes on with the
    masks that an unbroken one would have seen.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draw = ops.UniformInt(seed=int(np.random.randint(1, 2**31 - 1)))  # set_seed seeds NumPy too
        self.draw.recompute(False)  # a recomputed forward pass must see the same mask
        self.lowest, self.highest = Tensor(0, ms.int32), Tensor(2**31 - 1, ms.int32)
        self.step_key = None
        own = np.random.randint(-(2**31), 2**31) + rank() * _RANK_STEP
        self.own = Tensor(np.uint32(own & 0xFFFFFFFF).view(np.int32), ms.int32)
        self.threshold = Tensor(round(rate * 2**32) - 2**31, ms.int32)
        self.scale = 1.0 / (1.0 - rate)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.xor = ops.BitwiseXor()
        self.cast = ops.Cast()

    def take_key_from(self, step_key: Parameter) -> None:
        """Take the key of every call from `step_key`, (1,) int32, which somebody changes between steps."""
        object.__setattr__(self, "step_key", step_key)  # not through Cell, which would make it a weight of the model

    def mix(self, h: Tensor) -> Tensor:
        """A round of the hash, element by element, on int32."""
        return self.mul(self.mul(h, self.add(self.add(h, h), 1)), _GOLDEN)

    def kept(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) bool: a new mask"""
        key = self.draw((1,), self.lowest, self.highest) if self.step_key is None else self.step_key
        place = self.add(self.add(_places(rows, 1, _ROW_STEP), key), _places(1, columns, _COLUMN_STEP))
        # Fusion does not take up Xor. Were it not in between, all masks of a model would become one kernel with all
        # the cells' numbers in it, which took 10 s to compile. So one kernel makes any mask, from a number it is given.
        zero = self.xor(key, key)
        return self.mix(self.add(self.xor(self.mix(place), zero), self.xor(self.own, zero))) >= self.threshold

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape, floating -> the same shape and dtype"""
        if not self.training or self.rate == 0:
            return x
        columns = x.shape[-1]
        rows = x.size // columns
        mask = self.mul(self.cast(self.kept(rows, columns), x.dtype), self.scale)
        return self.mul(x.reshape(rows, columns), mask).reshape(x.shape)


class StepKey(nn.Cell):
    """The key of all `HashedDropout` cells of a network: one number a step, the next from the last.

    k -> 1664525 k + 1013904223 mod 2^32 (Knuth's generator of Numerical Recipes), which comes back after 2^32 steps.
    """

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        first = np.random.randint(-(2**31), 2**31, (1,)).astype(np.int32)
        self.key = Parameter(Tensor(first), name="dropout_key", requires_grad=False)
        for _, cell in network.cells_and_names():
            if isinstance(cell, HashedDropout):
                cell.take_key_from(self.key)

    def construct(self) -> Tensor:
        """Go on to the key of the next step."""
        return ops.assign(self.key, self.key * 1664525 + 1013904223)
