"""The optimizer AdaFactor, which stores row and column means of the second moment."""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindgpt.train.optimizers.state import is_decayed, zeros_like, zeros_over
from mindgpt.train.schedules import LearningRateTable

_factored = ops.MultitypeFuncGraph("adafactor_factored")
_unfactored = ops.MultitypeFuncGraph("adafactor_unfactored")
_update = ops.MultitypeFuncGraph("adafactor_update")
_matmul = ops.MatMul()


@_factored.register(*("Tensor",) * 5)
def _factored_direction(mixing, eps, row, column, gradient):
    """gradient: (n, m); row: (n,) and column: (m,), the means over columns and over rows.

    The sum over rows and the outer product are matrix products: reducing and broadcasting kernels took 30 and 3 times
    as long on CPU.
    """
    gradient = ops.cast(gradient, ms.float32)
    n, m = gradient.shape
    square = gradient * gradient
    over_rows = _matmul(ops.ones((1, n), ms.float32), square).reshape(m) * (1.0 / n)
    new_row = (1.0 - mixing) * row + mixing * (square.mean(-1) + eps)
    new_column = (1.0 - mixing) * column + mixing * (over_rows + eps)
    by_row = ops.rsqrt(new_row / new_row.mean())
    inverse_root = _matmul(by_row.reshape(n, 1), ops.rsqrt(new_column).reshape(1, m))
    done = (ops.assign(row, new_row), ops.assign(column, new_column))
    return ops.depend(gradient * inverse_root, done)


@_unfactored.register(*("Tensor",) * 4)
def _unfactored_direction(mixing, eps, second, gradient):
    gradient = ops.cast(gradient, ms.float32)
    new_second = (1.0 - mixing) * second + mixing * (gradient * gradient + eps)
    return ops.depend(gradient * ops.rsqrt(new_second), ops.assign(second, new_second))


def _root_mean_square(x):
    return ops.sqrt((x * x).mean(-1).mean())  # in two steps: on CPU 10 times as fast as in one


def _clipped_step(rate, scaled, min_scale, threshold, weight, direction):
    """The weight in float32, and alpha and alpha U of `AdaFactor`."""
    old = ops.cast(weight, ms.float32)
    alpha = rate * ops.maximum(_root_mean_square(old), min_scale) if scaled else rate
    return old, alpha, direction * (alpha / ops.maximum(_root_mean_square(direction) / threshold, 1.0))


@_update.register("Tensor", "Bool", *("Tensor",) * 6)
def _update_without_momentum(rate, scaled, min_scale, threshold, beta1, decay, weight, direction):
    old, alpha, step = _clipped_step(rate, scaled, min_scale, threshold, weight, direction)
    return ops.assign(weight, ops.cast(old * (1.0 - alpha * decay) - step, weight.dtype))


@_update.register("Tensor", "Bool", *("Tensor",) * 7)
def _update_with_momentum(rate, scaled, min_scale, threshold, beta1, decay, weight, direction, first):
    old, alpha, step = _clipped_step(rate, scaled, min_scale, threshold, weight, direction)
    new_first = beta1 * first + (1.0 - beta1) * step
    new = ops.cast(old * (1.0 - alpha * decay) - new_first, weight.dtype)
    return ops.depend(ops.assign(weight, new), ops.assign(first, new_first))


class AdaFactor(nn.Optimizer):
    """AdaFactor (Shazeer & Stern 2018, algorithms 4 to 6), as `transformers.optimization.Adafactor` computes it.

        b = 1 - t^-decay_rate
        R = b R + (1 - b) (mean of G^2 over columns + eps)          C = the same over rows
        U = G / sqrt(R C / mean(R)), divided by max(1, rms(U) / clip_threshold)
        alpha = rate_t max(min_parameter_scale, rms(W))           or rate_t, without `scale_parameter`
        W = W - alpha weight_decay W - alpha U

    The state of an n x m matrix is R and C, n + m numbers, where Adam has 2 n m. Vectors and small matrices have a full
    second moment V = b V + (1 - b) (G^2 + eps), and U = G / sqrt(V). With `beta1` > 0 the last term is a moving average
    M = beta1 M + (1 - beta1) alpha U, which takes n m numbers more.

    The paper's relative step size rho_t is a learning-rate table: `schedules.relative_step_sizes`.

    Args:
        parameters: to train. The state is float32.
        schedule: the learning rate, or rho_t, by step.
        beta1, decay_rate, eps, clip_threshold, scale_parameter, min_parameter_scale, weight_decay: as above; only
            matrices are decayed.
        min_dim_size_to_factor: a matrix with a shorter side has a full second moment.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        schedule: LearningRateTable,
        beta1: float = 0.0,
        decay_rate: float = 0.8,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
        min_parameter_scale: float = 1e-3,
        min_dim_size_to_factor: int = 1,
        weight_decay: float = 0.0,
    ):
        super().__init__(schedule, list(parameters), weight_decay=0.0)
        factored = [len(p.shape) == 2 and min(p.shape) >= min_dim_size_to_factor for p in self._parameters]
        self.factored = tuple(index for index, yes in enumerate(factored) if yes)
        self.unfactored = tuple(index for index, yes in enumerate(factored) if not yes)
        matrices = [self._parameters[index] for index in self.factored]
        others = [self._parameters[index] for index in self.unfactored]
        self.row = zeros_over(matrices, -1, "adafactor_row")
        self.column = zeros_over(matrices, -2, "adafactor_col")
        self.second_moment = zeros_like(others, "adafactor_v")
        # The order of the update directions: first the factored parameters, then the others.
        self.in_order = ms.ParameterTuple(matrices + others)
        self.decays = tuple(Tensor(weight_decay * is_decayed(p), ms.float32) for p in self.in_order)
        self.with_momentum = beta1 > 0
        self.first_moment = zeros_like(self.in_order, "adafactor_m") if self.with_momentum else ()
        self.decay_rate = decay_rate
        self.eps, self.beta1 = Tensor(eps, ms.float32), Tensor(beta1, ms.float32)
        self.scale_parameter = scale_parameter
        self.min_parameter_scale = Tensor(min_parameter_scale, ms.float32)
        self.clip_threshold = Tensor(clip_threshold, ms.float32)

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        """Update all parameters from their gradients, in the order of `parameters`; counts a step."""
        rate = self.get_lr().reshape(())
        step = ops.depend(self.global_step, rate) + self.global_step_increase_tensor
        mixing = ops.pow(ops.cast(step, ms.float32).reshape(()), -self.decay_rate)  # 1 - b
        directions = ()
        if self.factored:
            chosen = [gradients[index] for index in self.factored]
            follow = ops.partial(_factored, mixing, self.eps)
            directions += tuple(self.hyper_map(follow, self.row, self.column, tuple(chosen)))
        if self.unfactored:
            chosen = [gradients[index] for index in self.unfactored]
            follow = ops.partial(_unfactored, mixing, self.eps)
            directions += tuple(self.hyper_map(follow, self.second_moment, tuple(chosen)))
        update = ops.partial(
            _update, rate, self.scale_parameter, self.min_parameter_scale, self.clip_threshold, self.beta1
        )
        if self.with_momentum:
            done = self.hyper_map(update, self.decays, self.in_order, directions, self.first_moment)
        else:
            done = self.hyper_map(update, self.decays, self.in_order, directions)
        return ops.depend(ops.assign(self.global_step, step), done)
