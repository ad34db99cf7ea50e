"""The optimizer AdamW."""

import math
from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from mindgpt.train.optimizers.grouped import GroupedOptimizer
from mindgpt.train.optimizers.state import is_decayed, zeros_like
from mindgpt.train.schedules import LearningRateTable

_by_kernel = ops.MultitypeFuncGraph("adamw_by_kernel")
_by_formula = ops.MultitypeFuncGraph("adamw_by_formula")
_uncorrected_by_kernel = ops.MultitypeFuncGraph("adamw_uncorrected_by_kernel")
_uncorrected_by_formula = ops.MultitypeFuncGraph("adamw_uncorrected_by_formula")
_TENSORS = ("Tensor",) * 4  # weight, first moment, second moment, gradient


@_by_kernel.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", *_TENSORS)
def _update_by_kernel(kernel, rate, beta1, beta2, eps, correction, decay, weight, first, second, gradient):
    """MindSpore's kernel has no bias correction, so it is put into rate, eps and decay; see `AdamW`."""
    return kernel(weight, first, second, rate / correction, beta1, beta2, eps, decay * correction, gradient)


@_by_formula.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", *_TENSORS)
def _update_by_formula(rate, beta1, beta2, eps, correction, decay, weight, first, second, gradient):
    gradient = ops.cast(gradient, ms.float32)
    new_first = beta1 * first + (1.0 - beta1) * gradient
    new_second = beta2 * second + (1.0 - beta2) * gradient * gradient
    old = ops.cast(weight, ms.float32)
    new = old - rate * decay * old - rate / correction * new_first / (ops.sqrt(new_second) + eps)
    done = (ops.assign(first, new_first), ops.assign(second, new_second))
    return ops.depend(ops.assign(weight, ops.cast(new, weight.dtype)), done)


@_uncorrected_by_kernel.register("Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", *_TENSORS)
def _uncorrected_update_by_kernel(kernel, rate, beta1, beta2, eps, decay, weight, first, second, gradient):
    """The decay of what the step gave, put into rate and decay; see `AdamW`."""
    kept = 1.0 - rate * decay
    return kernel(weight, first, second, rate * kept, beta1, beta2, eps, decay / kept, gradient)


@_uncorrected_by_formula.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", *_TENSORS)
def _uncorrected_update_by_formula(rate, beta1, beta2, eps, decay, weight, first, second, gradient):
    gradient = ops.cast(gradient, ms.float32)
    new_first = beta1 * first + (1.0 - beta1) * gradient
    new_second = beta2 * second + (1.0 - beta2) * gradient * gradient
    stepped = ops.cast(weight, ms.float32) - rate * new_first / (ops.sqrt(new_second) + eps)
    new = stepped - rate * decay * stepped
    done = (ops.assign(first, new_first), ops.assign(second, new_second))
    return ops.depend(ops.assign(weight, ops.cast(new, weight.dtype)), done)


class AdamW(GroupedOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), as `torch.optim.AdamW` computes it.

        m = beta1 m + (1 - beta1) g                c1 = 1 - beta1^t
        v = beta2 v + (1 - beta2) g^2              c2 = 1 - beta2^t
        w = w - rate decay w - rate (m / c1) / (sqrt(v / c2) + eps)

    With r = c1 / sqrt(c2) the last line is w - rate decay w - (rate / r) m / (sqrt(v) + eps sqrt(c2)). MindSpore's
    fused kernel computes w - a (m / (sqrt(v) + e) + d w), so it is given a = rate / r, e = eps sqrt(c2), d = decay r.

    With `correct_bias` False it is BERT's AdamW, which UER-py trains with: no bias correction, and the weight decays
    after the step.

        u = w - rate m / (sqrt(v) + eps)
        w = u - rate decay u

    With s = 1 - rate decay this is s w - s rate m / (sqrt(v) + eps): a = s rate, e = eps, d = decay / s.

    Args:
        parameters: to train. Their moments are float32.
        schedule: the learning rate by step.
        beta1, beta2, eps, weight_decay: as above; only matrices are decayed.
        correct_bias: which of the two.
        decay_all: decay biases and layer norms, too.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        schedule: LearningRateTable,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        correct_bias: bool = True,
        decay_all: bool = False,
    ):
        super().__init__(parameters, schedule)
        self.first_moment = zeros_like(self._parameters, "adam_m")
        self.second_moment = zeros_like(self._parameters, "adam_v")
        self.beta1, self.beta2 = Tensor(beta1, ms.float32), Tensor(beta2, ms.float32)
        # log of beta as rounded to float32, so that 1 - beta^t fits the moments from the first step on.
        self.log_beta1, self.log_beta2 = (
            Tensor(math.log(beta.asnumpy()) if beta.asnumpy() > 0 else -1e9, ms.float32)
            for beta in (self.beta1, self.beta2)
        )
        self.eps, self.correct_bias = (eps if correct_bias else Tensor(eps, ms.float32)), correct_bias
        self.decays = tuple(Tensor(weight_decay * (decay_all or is_decayed(p)), ms.float32) for p in self._parameters)
        fused = beta1 > 0 and beta2 > 0
        if not correct_bias:
            fused = fused and weight_decay * schedule.highest < 1  # the kernel's d divides by 1 - rate decay
        self.kernel = ops.AdamWeightDecay() if fused else None
        self.expm1 = ops.Expm1()

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor | None = None) -> Tensor:
        """Update all parameters from their gradients, in the order of `parameters`, times `factor`; counts a step."""
        rate = self.get_lr()
        step = ops.depend(self.global_step, rate) + self.global_step_increase_tensor
        moments = (self.first_moment, self.second_moment)
        if self.correct_bias:
            t = ops.cast(step, ms.float32).reshape(())
            root = ops.sqrt(-self.expm1(t * self.log_beta2))  # sqrt(c2)
            correction = -self.expm1(t * self.log_beta1) / root
            eps = self.eps * root
            if self.kernel is not None:
                update = ops.partial(_by_kernel, self.kernel, rate, self.beta1, self.beta2, eps, correction)
            else:
                update = ops.partial(_by_formula, rate, self.beta1, self.beta2, eps, correction)
        elif self.kernel is not None:
            update = ops.partial(_uncorrected_by_kernel, self.kernel, rate, self.beta1, self.beta2, self.eps)
        else:
            update = ops.partial(_uncorrected_by_formula, rate, self.beta1, self.beta2, self.eps)
        done = self.in_groups(self.groups, update, factor, gradients, self.decays, self.updated, *moments)
        return ops.depend(ops.assign(self.global_step, step), done)
