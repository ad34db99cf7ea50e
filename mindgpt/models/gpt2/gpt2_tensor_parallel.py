"""Tensor parallelism for a model that is run, not trained: every process has some of the heads and widths.

The cut is Megatron-LM's (Shoeybi et al. 2019, section 3), forward only: query, key, value and `mapping` by columns, the
projections by rows, whose outputs the processes add up: two sums a block. In training, `gpt2_parallel.py` leaves the
cutting to MindSpore's semi-automatic parallelism, for whole graphs. Generation is several graphs that share weights and
a cache, so here the parts are made by hand: cells with smaller weights, which need nothing but an AllReduce and
therefore run on CPU processes as well.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_modules import FlashAttention, Linear
from mindgpt.models.gpt2.gpt2_parallel import linear_cuts


class SummedProduct(nn.Cell):
    """A product of which every process has a part of the terms."""

    def __init__(self, matmul: ops.MatMul):
        super().__init__()
        self.matmul = matmul
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (rows, part of in); weight: this part of it -> (rows, out), the same in every process"""
        return self.all_reduce(self.matmul(x, weight))


def keep_part(backbone: GPT2Model, cards: int) -> dict[str, int]:
    """Make a built model one process's part of it; before its weights are loaded, which become zero.

    Args:
        backbone: whose numbers of heads and feed-forward width `cards` divides.
        cards: processes in all.

    Returns:
        Of each parameter that is cut: its name, and along which axis.
    """
    axes: dict[str, int] = {}
    for block in backbone.blocks:
        block.attention.num_heads //= cards
        if isinstance(block.attention.attend, FlashAttention):
            for kernel in (block.attention.attend.flash, block.attention.attend.flash_with_dropout):
                kernel.add_prim_attr("head_num", block.attention.num_heads)
    for linear, by_column in linear_cuts(backbone):
        axis = 0 if by_column == linear.matmul_is_out_in else 1
        axes[linear.weight.name] = axis
        linear.weight = _part_of(linear.weight, axis, cards)
        if by_column:
            axes[linear.bias.name] = 0
            linear.bias = _part_of(linear.bias, 0, cards)
        else:
            _sum_over_processes(linear)
    return axes


def _part_of(parameter: Parameter, axis: int, cards: int) -> Parameter:
    shape = list(parameter.shape)
    shape[axis] //= cards
    zeros = initializer("zeros", shape, parameter.dtype)  # lazy: the whole is never there
    return Parameter(zeros, name=parameter.name, requires_grad=parameter.requires_grad)


def _sum_over_processes(linear: Linear) -> None:
    """The bias is added to the sum, so once."""
    product = linear.matmul
    del linear.matmul
    linear.matmul = SummedProduct(product)


class PartOfWeights:
    """A `TensorSource` of one process's part of another source.

    Args:
        source: of the whole weights.
        axes: from `keep_part`.
        cards, card: how many processes there are, and which this is.
    """

    def __init__(self, source: TensorSource, axes: Mapping[str, int], cards: int, card: int):
        self.path = source.path
        self.skipped = getattr(source, "skipped", {})
        self.entries = {
            name: self._cut_entry(entry, axes[name], cards) if name in axes else entry
            for name, entry in source.entries.items()
        }
        self._source, self._axes, self._cards, self._card = source, axes, cards, card

    @staticmethod
    def _cut_entry(entry: TensorInfo, axis: int, cards: int) -> TensorInfo:
        shape = list(entry.shape)
        if axis < len(shape) and shape[axis] % cards == 0:  # else it stays as it is, and does not fit the model
            shape[axis] //= cards
        return entry._replace(shape=tuple(shape))

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        whole = self._source.read(name)
        if name not in self._axes:
            return whole
        return np.split(whole, self._cards, self._axes[name])[self._card]
