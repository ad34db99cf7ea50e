"""Updating the weights group by group, so that what an update needs besides is in memory for one group at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindgpt.train.schedules import LearningRateTable

_GROUP_VALUES = 2**25
"""Of a group's weights together; a larger matrix is a group of its own. Models below are one group."""

_rescale = ops.MultitypeFuncGraph("rescale")


@_rescale.register("Tensor", "Tensor")
def _rescale_one(factor, gradient):
    return ops.cast(ops.cast(gradient, ms.float32) * factor, gradient.dtype)


def groups_of(sizes: Sequence[int], largest: int | None = None) -> tuple[tuple[int, int], ...]:
    """Consecutive groups of at most `largest` values, by default `_GROUP_VALUES`: (first, one after the last) index."""
    largest = largest or _GROUP_VALUES
    groups, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > largest:
            groups.append((start, index))
            start, total = index, 0
        total += size
    return (*groups, (start, len(sizes))) if sizes else ()


class GroupedOptimizer(nn.Optimizer):
    """Base of the optimizers: called with gradients and the factor to multiply them by, which unscales and clips them.

    The rescaled gradients, update directions and squares of a large model together take as much memory as several
    copies of its weights, if the compiler is free to compute them all before the first update. So a group's gradients
    are rescaled only after the group before has been updated.

    Args:
        parameters: to train.
        schedule: the learning rate by step.
    """

    def __init__(self, parameters: Sequence[Parameter], schedule: LearningRateTable):
        super().__init__(schedule, list(parameters), weight_decay=0.0)
        self.groups = groups_of([parameter.size for parameter in self._parameters])
        self.one = Tensor(1.0, ms.float32)

    def in_groups(
        self,
        groups: tuple[tuple[int, int], ...],
        update: Callable[..., Tensor],
        factor: Tensor | None,
        gradients: tuple[Tensor, ...],
        *columns: tuple[Any, ...],
    ) -> Tensor:
        """Call `update(*values, factor * gradient)` for each gradient, values being those of `columns` at its place.

        Returns:
            `factor`, once all are updated.
        """
        if factor is None:
            factor = self.one
        for first, end in groups:
            rescaled = self.hyper_map(ops.partial(_rescale, factor), gradients[first:end])
            done = self.hyper_map(update, *[column[first:end] for column in columns], rescaled)
            factor = ops.depend(factor, done)
        return factor
