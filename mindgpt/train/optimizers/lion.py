"""The optimizer Lion."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from mindgpt.train.optimizers.grouped import GroupedOptimizer
from mindgpt.train.optimizers.state import is_decayed, zeros_like
from mindgpt.train.schedules import LearningRateTable

_update = ops.MultitypeFuncGraph("lion_update")


@_update.register(*("Tensor",) * 7)
def _update_one(rate, beta1, beta2, decay, weight, momentum, gradient):
    gradient = ops.cast(gradient, ms.float32)
    old = ops.cast(weight, ms.float32)
    sign = ops.sign(beta1 * momentum + (1.0 - beta1) * gradient)
    new = ops.cast(old - rate * (sign + decay * old), weight.dtype)
    new_momentum = beta2 * momentum + (1.0 - beta2) * gradient
    done = ops.assign(weight, new)
    return ops.depend(ops.assign(momentum, new_momentum), done)


class Lion(GroupedOptimizer):
    """Lion (Chen et al. 2023, algorithm 2).

        c = beta1 m + (1 - beta1) g
        w = w - rate (sign(c) + weight_decay w)
        m = beta2 m + (1 - beta2) g

    Every weight moves by the same distance, so the learning rate should be 3 to 10 times smaller than AdamW's, and
    `weight_decay` larger by the same factor (section 5 of the paper).

    Args:
        parameters: to train. Their momentum is float32.
        schedule: the learning rate by step.
        beta1, beta2, weight_decay: as above; only matrices are decayed.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        schedule: LearningRateTable,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.1,
    ):
        super().__init__(parameters, schedule)
        self.momentum = zeros_like(self._parameters, "lion_m")
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
        self.decays = tuple(Tensor(weight_decay * is_decayed(p), ms.float32) for p in self._parameters)

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor | None = None) -> Tensor:
        """Update all parameters from their gradients, in the order of `parameters`, times `factor`; counts a step."""
        rate = self.get_lr().reshape(())  # on CPU a scalar is multiplied faster than a tensor of shape (1,)
        step = ops.depend(self.global_step, rate) + self.global_step_increase_tensor
        update = ops.partial(_update, rate, self.beta1, self.beta2)
        done = self.in_groups(self.groups, update, factor, gradients, self.decays, self.updated, self.momentum)
        return ops.depend(ops.assign(self.global_step, step), done)
