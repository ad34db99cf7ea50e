"""Tensor parallelism for a model that is run, not trained: every rank has some of the heads and widths.

The layout is Megatron-LM's (Shoeybi et al. 2019, section 3), forward only: query, key, value and `mapping` by columns,
the projections by rows, whose outputs the ranks sum up: two AllReduce a block. In training, `gpt2_parallel.py` leaves
sharding to MindSpore's semi-automatic parallelism, for whole graphs. Generation is several graphs that share weights
and a cache, so here the shards are made by hand: cells with smaller weights, which need nothing but an AllReduce and
therefore run on CPU processes as well.
"""

from collections.abc import Mapping

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, read_box
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_modules import FlashAttention, Linear
from mindgpt.models.gpt2.gpt2_parallel import linear_layers


class SummedProduct(nn.Cell):
    """A product of which every rank has some of the terms."""

    def __init__(self, matmul: ops.MatMul):
        super().__init__()
        self.matmul = matmul
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (rows, shard of in); weight: of this shard -> (rows, out), the same on every rank"""
        return self.all_reduce(self.matmul(x, weight))


def keep_shard(backbone: GPT2Model, ranks: int) -> dict[str, int]:
    """Make a built model one rank's shard of it; before its weights are loaded, which become zero.

    Args:
        backbone: whose numbers of heads and feed-forward width `ranks` divides.
        ranks: how many there are.

    Returns:
        Of each parameter that is sharded: its name, and along which axis.
    """
    axes: dict[str, int] = {}
    for block in backbone.blocks:
        block.attention.num_heads //= ranks
        if isinstance(block.attention.attend, FlashAttention):
            for kernel in block.attention.attend.kernels:
                kernel.add_prim_attr("head_num", block.attention.num_heads)
    for linear, by_column in linear_layers(backbone):
        axis = 0 if by_column == linear.matmul_is_out_in else 1
        axes[linear.weight.name] = axis
        linear.weight = _shard_of(linear.weight, axis, ranks)
        if by_column:
            axes[linear.bias.name] = 0
            linear.bias = _shard_of(linear.bias, 0, ranks)
        else:
            _sum_over_processes(linear)
    return axes


def _shard_of(parameter: Parameter, axis: int, ranks: int) -> Parameter:
    shape = list(parameter.shape)
    shape[axis] //= ranks
    zeros = initializer("zeros", shape, parameter.dtype)  # lazy: the whole is never there
    return Parameter(zeros, name=parameter.name, requires_grad=parameter.requires_grad)


def _sum_over_processes(linear: Linear) -> None:
    """The bias is added to the sum, so only once."""
    product = linear.matmul
    del linear.matmul
    linear.matmul = SummedProduct(product)


class ShardOfWeights:
    """A `TensorSource` of one rank's shard of another source.

    Args:
        source: of the whole weights.
        axes: from `keep_shard`.
        ranks, rank: how many ranks there are, and which this is.
    """

    def __init__(self, source: TensorSource, axes: Mapping[str, int], ranks: int, rank: int):
        self.path = source.path
        self.skipped = getattr(source, "skipped", {})
        self.entries = {
            name: self._shard_entry(entry, axes[name], ranks) if name in axes else entry
            for name, entry in source.entries.items()
        }
        self._source, self._axes, self._ranks, self._rank = source, axes, ranks, rank

    @staticmethod
    def _shard_entry(entry: TensorInfo, axis: int, ranks: int) -> TensorInfo:
        shape = list(entry.shape)
        if axis < len(shape) and shape[axis] % ranks == 0:  # else it stays as it is, and does not fit the model
            shape[axis] //= ranks
        return entry._replace(shape=tuple(shape))

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        if name not in self._axes:
            return self._source.read(name)
        shape, axis = self.entries[name].shape, self._axes[name]
        box = [slice(0, size) for size in shape]
        box[axis] = slice(self._rank * shape[axis], (self._rank + 1) * shape[axis])
        return read_box(self._source, name, tuple(box))
