"""Stochastic gradient descent with optional momentum."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from mindgpt.train.optimizers.grouped import GroupedOptimizer
from mindgpt.train.optimizers.state import is_decayed, zeros_like
from mindgpt.train.schedules import LearningRateTable

_update = ops.MultitypeFuncGraph("sgd_update")


@_update.register("Tensor", "Tensor", "Bool", "Tensor", "Tensor", "Tensor")
def _update_without_velocity(rate, momentum, nesterov, decay, weight, gradient):
    old = ops.cast(weight, ms.float32)
    gradient = ops.cast(gradient, ms.float32) + decay * old
    return ops.assign(weight, ops.cast(old - rate * gradient, weight.dtype))


@_update.register("Tensor", "Tensor", "Bool", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_with_velocity(rate, momentum, nesterov, decay, weight, velocity, gradient):
    old = ops.cast(weight, ms.float32)
    gradient = ops.cast(gradient, ms.float32) + decay * old
    new_velocity = momentum * velocity + gradient
    direction = gradient + momentum * new_velocity if nesterov else new_velocity
    new = ops.cast(old - rate * direction, weight.dtype)
    return ops.depend(ops.assign(weight, new), ops.assign(velocity, new_velocity))


class SGD(GroupedOptimizer):
    """Gradient descent with momentum, as `torch.optim.SGD` computes it (Sutskever et al. 2013 for Nesterov's).

        g = g + weight_decay w
        v = momentum v + g
        w = w - rate v                          or w - rate (g + momentum v) with `nesterov`

    The decay is part of the gradient (an L2 penalty), as in `torch.optim.SGD` and `mindspore.nn.Momentum`.

    Args:
        parameters: to train. Their velocity is float32; without momentum there is none.
        schedule: the learning rate by step.
        momentum, nesterov, weight_decay: as above; only matrices are decayed.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        schedule: LearningRateTable,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, schedule)
        self.momentum = Tensor(momentum, ms.float32)
        self.nesterov = nesterov
        self.with_velocity = momentum > 0
        self.velocity = zeros_like(self._parameters, "sgd_v") if self.with_velocity else ()
        self.decays = tuple(Tensor(weight_decay * is_decayed(p), ms.float32) for p in self._parameters)

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor | None = None) -> Tensor:
        """Update all parameters from their gradients, in the order of `parameters`, times `factor`; counts a step."""
        rate = self.get_lr().reshape(())  # on CPU a scalar is multiplied faster than a tensor of shape (1,)
        step = ops.depend(self.global_step, rate) + self.global_step_increase_tensor
        update = ops.partial(_update, rate, self.momentum, self.nesterov)
        state = (self.velocity,) if self.with_velocity else ()
        done = self.in_groups(self.groups, update, factor, gradients, self.decays, self.updated, *state)
        return ops.depend(ops.assign(self.global_step, step), done)
