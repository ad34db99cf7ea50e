"""The norm of all gradients together."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

_square_sum = ops.MultitypeFuncGraph("square_sum")


@_square_sum.register("Tensor")
def _square_sum_of(gradient):
    gradient = ops.cast(gradient, ms.float32)
    return (gradient * gradient).sum()  # nothing in between: fusion makes one pass of it


class GlobalNorm(nn.Cell):
    """sqrt of the sum of the squares of all values of all gradients.

    Under a layout every card has parts of the gradients, and some parts are on several cards. There the sum is over all
    cards, each part weighed by one over the number of cards that hold it (`set_holders`).

    Args:
        parameters: what the gradients are of, in their order.
        across_cards: whether a layout cuts them.
    """

    def __init__(self, parameters: Sequence[Parameter], across_cards: bool = False):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()
        self.all_reduce = ops.AllReduce() if across_cards else None
        if across_cards:
            ones = np.ones(len(parameters), np.float32)
            self.shares = Parameter(Tensor(ones), name="norm_shares", requires_grad=False)

    def set_holders(self, holders: Sequence[int]) -> None:
        """Say on how many cards each gradient's part is held; before the first step."""
        self.shares.set_data(Tensor(1.0 / np.asarray(holders, np.float32)))

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """gradients: as many as parameters -> float32 scalar"""
        squares = ops.stack(self.map(_square_sum, gradients))
        if self.all_reduce is None:
            return ops.sqrt(squares.sum())
        return ops.sqrt(self.all_reduce((squares * self.shares).sum()))
