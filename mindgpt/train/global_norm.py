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
    cards, each part weighed by one over the number of cards that hold it (`set_holders`). The loss travels in the same
    message: of the stages of a pipeline only the last one has it, and all must judge it alike, and rank 0 shows it.

    Args:
        parameters: what the gradients are of, in their order.
        cards_with_loss: where a layout cuts them: on how many cards the loss is; the others have 0 in its place.
    """

    def __init__(self, parameters: Sequence[Parameter], cards_with_loss: int | None = None):
        super().__init__(auto_prefix=False)
        self.map = ops.HyperMap()
        self.all_reduce = None if cards_with_loss is None else ops.AllReduce()
        self.cards_with_loss = cards_with_loss
        if cards_with_loss is not None:
            ones = np.ones(len(parameters), np.float32)
            self.shares = Parameter(Tensor(ones), name="norm_shares", requires_grad=False)

    def set_holders(self, holders: Sequence[int]) -> None:
        """Say on how many cards each gradient's part is held; before the first step."""
        self.shares.set_data(Tensor(1.0 / np.asarray(holders, np.float32)))

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """gradients: as many as parameters -> float32 scalar"""
        return ops.sqrt(ops.stack(self.map(_square_sum, gradients)).sum())

    def of_all_cards(self, gradients: tuple[Tensor, ...], loss: Tensor) -> tuple[Tensor, Tensor]:
        """gradients: as many as parameters; loss: float32 scalar -> the norm and the loss, float32 scalars"""
        squares = ops.stack(self.map(_square_sum, gradients))
        both = self.all_reduce(ops.stack(((squares * self.shares).sum(), loss / self.cards_with_loss)))
        return ops.sqrt(both[0]), both[1]
