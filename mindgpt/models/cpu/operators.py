"""Replacements for operators whose CPU kernels in MindSpore are slow or inexact (docs/performance.md)."""

import math
from collections.abc import Iterable
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindgpt.models.gpt2.gpt2_modules import Activation, FeedForward, LayerNorm, Linear
from mindgpt.runtime.alignment import CACHE_LINE, aligned

ROWS_WORTH_TRANSPOSING = 128
"""Fewer rows than this (a decode step has one for each text) cost less than transposing a matrix."""


class TransposedMatMul(nn.Cell):
    """The product with a matrix stored [in, out].

    oneDNN's fp32 product is half as fast where the rows of such a matrix lie a multiple of 4 KiB apart, so the matrix
    is transposed first if there are enough rows.
    """

    def __init__(self):
        super().__init__()
        self.transpose = ops.Transpose()
        self.matmul = ops.MatMul()
        self.transposed_matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: (rows, in); weight: (in, out) -> (rows, out)"""
        if x.shape[0] < ROWS_WORTH_TRANSPOSING:
            return self.matmul(x, weight)
        return self.transposed_matmul(x, self.transpose(weight, (1, 0)))


class FusedLayerNorm(nn.Cell):
    """`layer_norm` of `gpt2_modules.py` by operators that graph-kernel fusion makes loops of.

    MindSpore's CPU kernel computes a power for every element of the gradient, and works on one core until it has tuned
    itself.
    """

    def __init__(self, eps: float):
        super().__init__()
        self.sum = ops.ReduceSum(keep_dims=True)  # fusion takes up a sum, but no mean
        self.rsqrt = ops.Rsqrt()
        self.eps = eps

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        """x: (..., H); gamma, beta: (H,) -> the normalised x, of the same shape"""
        per_value = 1.0 / x.shape[-1]
        centred = x - self.sum(x, -1) * per_value
        variance = self.sum(centred * centred, -1) * per_value  # (..., 1)
        return (centred * self.rsqrt(variance + self.eps) * gamma + beta,)


class SigmoidGELU(Activation):
    """GELU's tanh form as x * sigmoid(2u), which is the same.

    MindSpore's CPU tanh is off by 1e-4, which put a classifier's gradients off by 1e-3; this gradient is exact to 2e-6.
    Where graphs are fused, tanh is exact enough and much quicker.
    """

    def construct(self, x: Tensor) -> Tensor:
        """x: any shape, floating -> the same shape"""
        cubic = self.mul(self.mul(x, x), self.mul_one(x, 0.044715))
        return self.mul(x, self.sigmoid(self.mul_one(self.add(x, cubic), 2.0 * math.sqrt(2.0 / math.pi))))


def replace_operators(network: nn.Cell) -> None:
    """Replace operators of a cell that has just been built, and align its parameters."""
    fused = ms.get_context("enable_graph_kernel")
    for _, cell in list(network.cells_and_names()):
        if isinstance(cell, Linear):
            rows_4k_apart = not cell.matmul_is_out_in and cell.out_size % 1024 == 0
            # MindSpore 2.10 fuses cast and transpose of half-precision weights to a kernel that gives NaN.
            if rows_4k_apart and cell.weight.dtype == ms.float32:
                _replace(cell, "matmul", TransposedMatMul())
        elif isinstance(cell, LayerNorm) and type(cell.layer_norm) is ops.LayerNorm:
            _replace(cell, "layer_norm", FusedLayerNorm(cell.eps))
        elif isinstance(cell, FeedForward) and cell.activation.kind == "gelu" and not fused:
            _replace(cell, "activation", SigmoidGELU("gelu"))
    align(network.get_parameters())


def _replace(cell: nn.Cell, name: str, value: Any) -> None:
    delattr(cell, name)  # MindSpore keeps operators and cells in different places
    setattr(cell, name, value)


def align(parameters: Iterable[Parameter]) -> None:
    """Move the float32 ones that do not begin on a cache line to memory that does, with their values.

    For parameters that are new: what has been compiled with one before, such as an optimizer's step under PyNative
    mode, would go on with the old memory.
    """
    for parameter in parameters:
        if parameter.dtype == ms.float32 and parameter.data_ptr() % CACHE_LINE:
            parameter.set_data(ms.Tensor.from_numpy(aligned(parameter.asnumpy())))
