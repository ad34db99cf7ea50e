"""The global gradient norm."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

_square_sum = ops.MultitypeFuncGraph("square_sum")


@_square_sum.register("Tensor")
def _square_sum_of(gradient):
    gradient = ops.cast(gradient, ms.float32)
    return (gradient * gradient).sum()  # one expression, which is fused into one pass


class GlobalNorm(nn.Cell):
    """The square root of the sum of squares of all gradients.

    In a sharded layout, each card holds shards of the gradients, some of them replicated. There the sum is over all
    cards, each shard weighted by one over the number of cards that hold it (`set_holders`). The loss is reduced in the
    same message: only the last pipeline stage has it, and all stages need it.

    Args:
        parameters: of the gradients, in their order.
        cards_with_loss: in a sharded layout, the number of cards that have the loss; the others have 0.
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
        """Set the number of cards that hold each gradient's shard, before the first step."""
        self.shares.set_data(Tensor(1.0 / np.asarray(holders, np.float32)))

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """gradients: as many as parameters -> float32 scalar"""
        return ops.sqrt(ops.stack(self.map(_square_sum, gradients)).sum())

    def of_all_cards(self, gradients: tuple[Tensor, ...], loss: Tensor) -> tuple[Tensor, Tensor]:
        """gradients: as many as parameters; loss: float32 scalar -> the norm and the loss, float32 scalars"""
        squares = ops.stack(self.map(_square_sum, gradients))
        both = self.all_reduce(ops.stack(((squares * self.shares).sum(), loss / self.cards_with_loss)))
        return ops.sqrt(both[0]), both[1]
