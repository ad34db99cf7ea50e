"""The optimizer AdaFactor, which stores row and column means of the second moment."""

from collections.abc import Mapping, Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindgpt.train.optimizers.grouped import GroupedOptimizer
from mindgpt.train.optimizers.state import is_decayed, zeros_like, zeros_over
from mindgpt.train.schedules import LearningRateTable


class AdaFactor(GroupedOptimizer):
    """AdaFactor (Shazeer & Stern 2018, algorithms 4 to 6), as `transformers.optimization.Adafactor` computes it.

        b = 1 - t^-decay_rate, or beta2
        R = b R + (1 - b) (mean of G^2 over columns + eps)          C = the same over rows
        U = G / sqrt(R C / mean(R)), divided by max(1, rms(U) / clip_threshold)
        alpha = rate_t max(min_parameter_scale, rms(W))           or rate_t, without `scale_parameter`
        W = W - alpha weight_decay W - alpha U

    The state of an n x m matrix is R and C, n + m numbers, where Adam has 2 n m. Vectors and small matrices have a full
    second moment V = b V + (1 - b) (G^2 + eps), and U = G / sqrt(V). With `beta1` > 0 the last term is a moving average
    M = beta1 M + (1 - beta1) alpha U, which takes n m numbers more.

    The paper's relative step size rho_t is a learning-rate table: `schedules.relative_step_sizes`.

    Where `shards` ranks hold the shards of a matrix, each has R of its rows and C of its columns, and all means are
    over the whole matrix, by `MeanOverShards`.

    Args:
        parameters: to train. The state is float32.
        schedule: the learning rate, or rho_t, by step.
        beta1, beta2, decay_rate, eps, clip_threshold, scale_parameter, min_parameter_scale, weight_decay: as above;
            `beta2` replaces `decay_rate`; only matrices are decayed.
        min_dim_size_to_factor: a matrix with a shorter side has a full second moment.
        shards: None, or the mean over the ranks of a model-parallel group.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        schedule: LearningRateTable,
        beta1: float = 0.0,
        beta2: float | None = None,
        decay_rate: float | None = 0.8,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        scale_parameter: bool = True,
        min_parameter_scale: float = 1e-3,
        min_dim_size_to_factor: int = 1,
        weight_decay: float = 0.0,
        shards: "MeanOverShards | None" = None,
    ):
        super().__init__(parameters, schedule)
        factored = [len(p.shape) == 2 and min(p.shape) >= min_dim_size_to_factor for p in self._parameters]
        self.matrices = [p for p, yes in zip(self._parameters, factored, strict=True) if yes]
        others = [p for p, yes in zip(self._parameters, factored, strict=True) if not yes]
        self.row = zeros_over(self.matrices, -1, "exp_avg_sq_row")
        self.column = zeros_over(self.matrices, -2, "exp_avg_sq_col")
        self.second_moment = zeros_like(others, "adafactor_v")
        self.row_shares = _shares(self.matrices, "rows") if shards else self.row
        self.column_shares = _shares(self.matrices, "columns") if shards else self.column

        def in_order(of_matrices: ParameterTuple) -> ParameterTuple:
            """With the second moment in the places of other parameters, in the order of all."""
            of_matrices, of_others = iter(of_matrices), iter(self.second_moment)
            return ParameterTuple([next(of_matrices if yes else of_others) for yes in factored])

        self.states = (in_order(self.row), in_order(self.column))
        self.shares = (in_order(self.row_shares), in_order(self.column_shares))
        self.decays = tuple(Tensor(weight_decay * is_decayed(p), ms.float32) for p in self._parameters)
        self.with_momentum = beta1 > 0
        self.first_moment = zeros_like(self._parameters, "adafactor_m") if self.with_momentum else ()
        self.mixing = None if beta2 is None else Tensor(1.0 - beta2, ms.float32)
        self.decay_rate = decay_rate
        self.eps, self.beta1 = Tensor(eps, ms.float32), Tensor(beta1, ms.float32)
        self.scale_parameter = scale_parameter
        self.min_parameter_scale = Tensor(min_parameter_scale, ms.float32)
        self.clip_threshold = Tensor(clip_threshold, ms.float32)
        self.shards = shards
        # On CPU a sum over rows by the reducing kernel took 30 times as long as by a product, and the outer product by
        # the broadcasting kernel 3 times. The shape of a shard is not known when the graph is traced.
        self.by_products = shards is None and ms.get_context("device_target") == "CPU"
        self.matmul = ops.MatMul()

    def set_shards(self, whole: Mapping[str, Sequence[int]]) -> None:
        """Tell how each matrix is sharded, once it is and before the first step. whole: the shapes that they had."""
        if self.shards is None:
            return
        for matrix, rows, columns in zip(self.matrices, self.row_shares, self.column_shares, strict=True):
            n, m = whole[matrix.name]
            rows.set_data(Tensor(float(matrix.shape[1] < m), ms.float32))  # of its rows other ranks have other columns
            columns.set_data(Tensor(float(matrix.shape[0] < n), ms.float32))

    def construct(self, gradients: tuple[Tensor, ...], factor: Tensor | None = None) -> Tensor:
        """Update all parameters from their gradients, in the order of `parameters`, times `factor`; counts a step."""
        rate = self.get_lr().reshape(())
        step = ops.depend(self.global_step, rate) + self.global_step_increase_tensor
        mixing = self.mixing  # 1 - b
        if mixing is None:
            mixing = ops.pow(ops.cast(step, ms.float32).reshape(()), -self.decay_rate)
        update = ops.partial(self.update_one, rate, mixing)
        first = self.first_moment if self.with_momentum else self.decays  # in its place, not used
        columns = (self.decays, self.updated, *self.states, *self.shares, first)
        return ops.depend(
            ops.assign(self.global_step, step), self.in_groups(self.groups, update, factor, gradients, *columns)
        )

    def update_one(self, rate, mixing, decay, weight, row, column, row_share, column_share, first, gradient):
        """Update a weight and its state; `row` is the second moment of a weight that is not factored."""
        gradient = ops.cast(gradient, ms.float32)
        if row.ndim < weight.ndim:
            direction = self.factored_direction(mixing, row, column, row_share, column_share, gradient)
        else:
            direction = self.unfactored_direction(mixing, row, gradient)
        old = ops.cast(weight, ms.float32)
        alpha = rate
        if self.scale_parameter:
            alpha = rate * ops.maximum(self.root_mean_square(old), self.min_parameter_scale)
        step = direction * (alpha / ops.maximum(self.root_mean_square(direction) / self.clip_threshold, 1.0))
        if self.with_momentum:
            step = self.beta1 * first + (1.0 - self.beta1) * step
            step = ops.depend(step, ops.assign(first, step))
        return ops.assign(weight, ops.cast(old * (1.0 - alpha * decay) - step, weight.dtype))

    def factored_direction(self, mixing, row, column, row_share, column_share, gradient):
        """gradient: (n, m), or a shard of it; row: (n,); column: (m,); shares: see `MeanOverShards.of_some`."""
        square = gradient * gradient
        over_columns, over_rows = square.mean(-1), self.mean_over_rows(square)
        if self.shards is not None:
            over_columns = self.shards.of_some(over_columns, row_share)
            over_rows = self.shards.of_some(over_rows, column_share)
        new_row = (1.0 - mixing) * row + mixing * (over_columns + self.eps)
        new_column = (1.0 - mixing) * column + mixing * (over_rows + self.eps)
        by_row = ops.rsqrt(new_row / self.mean(new_row))
        direction = gradient * self.outer(by_row, ops.rsqrt(new_column))
        return ops.depend(direction, (ops.assign(row, new_row), ops.assign(column, new_column)))

    def unfactored_direction(self, mixing, second, gradient):
        """second: the second moment, of the shape of the gradient."""
        new_second = (1.0 - mixing) * second + mixing * (gradient * gradient + self.eps)
        return ops.depend(gradient * ops.rsqrt(new_second), ops.assign(second, new_second))

    def root_mean_square(self, x):
        """Over all shards of x, which is a matrix or vector."""
        return ops.sqrt(self.mean((x * x).mean(-1)))  # in two steps: on CPU 10 times as fast as in one

    def mean(self, x):
        """Over all values of all shards."""
        mean = x.mean()
        return mean if self.shards is None else self.shards.of_all(mean)

    def mean_over_rows(self, square):
        """(n, m) -> (m,)"""
        if not self.by_products:
            return square.mean(0)
        n, m = square.shape
        return self.matmul(ops.ones((1, n), ms.float32), square).reshape(m) * (1.0 / n)

    def outer(self, rows, columns):
        """(n,) and (m,) -> (n, m)"""
        if not self.by_products:
            return ops.expand_dims(rows, 1) * ops.expand_dims(columns, 0)
        return self.matmul(rows.reshape(-1, 1), columns.reshape(1, -1))


class MeanOverShards(nn.Cell):
    """The mean of values over the ranks that hold the shards of a weight, which are all of the same size.

    Args:
        group: of these ranks, among which each weight is sharded by rows or by columns, or replicated.
        ranks: their number.
    """

    def __init__(self, group: str, ranks: int):
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(group=group)
        self.part = 1.0 / ranks

    def of_all(self, value: Tensor) -> Tensor:
        """Replicated values are equal, so their mean is their value."""
        return self.all_reduce(value) * self.part

    def of_some(self, value: Tensor, share: Tensor) -> Tensor:
        """The mean if share is 1, and this rank's own value if it is 0.

        Which of the two is known only after MindSpore has compiled the graph and thereby sharded the weights.
        """
        return self.of_all(value) * share + value * (1.0 - share)


def _shares(matrices: Sequence[Parameter], which: str) -> ParameterTuple:
    """Whether the mean of each row or each column of a matrix is over several ranks; see `AdaFactor.set_shards`."""
    return ParameterTuple(
        [
            Parameter(Tensor(0.0, ms.float32), name=f"norm_shares.{which}.{p.name}", requires_grad=False)
            for p in matrices
        ]
    )
