"""The training step: loss, gradients, and an update that is skipped if anything is not finite.

The order is: float32 loss, multiply by the loss scale, gradient, sum over micro-batches, mean over data-parallel
processes, unscale, check, clip by global norm, update, adjust the scale.
"""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindgpt.config.strategy import Strategy
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.dropout import StepKey
from mindgpt.runtime.collectives import data_parallel_ranks, ranks_per_stage, strategy
from mindgpt.runtime.graph_cache import CachedGraphCell
from mindgpt.train.global_norm import GlobalNorm
from mindgpt.train.optimizers.state import zeros_like

_accumulate = ops.MultitypeFuncGraph("accumulate")
_reset = ops.MultitypeFuncGraph("reset")
_sum_over_ranks = ops.MultitypeFuncGraph("sum_over_ranks")


@_accumulate.register("Tensor", "Tensor")
def _accumulate_one(total, gradient):
    return ops.assign_add(total, ops.cast(gradient, ms.float32))


@_reset.register("Tensor")
def _reset_one(total):
    return ops.assign(total, ops.zeros_like(total))


@_sum_over_ranks.register("Function", "Tensor")
def _sum_one_over_ranks(all_reduce, gradient):
    return all_reduce(ops.cast(gradient, ms.float32))


class MeanOverRanks(nn.Cell):
    """The mean of a loss and its gradients over data-parallel processes, in float32. The identity for one process.

    If one process has a non-finite number, all get one, so all skip the step.
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.ranks = data_parallel_ranks()
        self.alone = self.ranks == 1
        self.reduce_loss = None if self.alone else ops.AllReduce()
        self.reduce_gradient = None if self.alone else ops.AllReduce().add_prim_attr("fusion", 1)  # few large messages
        self.map = ops.HyperMap()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """loss: float32 scalar; gradients: as the parameters -> the mean loss, and the *sum* of the gradients, which
        `Update` divides together with the loss scale."""
        if self.alone:
            return loss, gradients
        summed = self.map(ops.partial(_sum_over_ranks, self.reduce_gradient), gradients)
        return self.reduce_loss(loss) / self.ranks, summed


class DataParallelLoss(nn.Cell):
    """A data-parallel process's loss, weighted so that the mean over processes is the mean over all counted tokens.

    A plain mean of the processes' losses would overweight the tokens of a process that has few of them (padding,
    prompts). So each process divides its sum by the mean count of all processes.
    """

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network
        self.ranks = data_parallel_ranks()
        self.all_reduce = ops.AllReduce()

    def construct(self, *batch: Tensor) -> Tensor:
        total, weight = self.network.summed_loss(*batch)
        total_weight = self.all_reduce(ops.stop_gradient(weight))
        return total * self.ranks / ops.maximum(total_weight, 1e-12)


class LossScale(nn.Cell):
    """The factor of the loss that keeps small half-precision gradients from vanishing.

    Dynamic (Micikevicius et al. 2018, section 3.2): divided by `scale_factor` after a non-finite step, down to 1, and
    multiplied by it after `scale_window` finite steps in a row. Static: constant.
    """

    def __init__(self, section: ScaleSenseSection):
        super().__init__()
        self.dynamic = section.type == "dynamic"
        self.factor = section.scale_factor
        self.window = section.scale_window
        self.value = Parameter(Tensor(section.loss_scale_value, ms.float32), name="loss_scale", requires_grad=False)
        self.good_steps = Parameter(Tensor(0, ms.int32), name="current_iterator_step", requires_grad=False)

    def construct(self, finite: Tensor) -> Tensor:
        """Adjust the scale after a step. finite: bool scalar. Returns the new scale."""
        if not self.dynamic:
            return self.value
        good = ops.where(finite, self.good_steps + 1, 0)
        grow = good >= self.window
        lowered = ops.maximum(self.value / self.factor, 1.0)
        raised = ops.where(grow, self.value * self.factor, self.value)
        counted = ops.assign(self.good_steps, ops.where(grow, 0, good))
        return ops.depend(ops.assign(self.value, ops.where(finite, raised, lowered)), counted)


class Update(nn.Cell):
    """Updates the weights from scaled gradients, unless the loss or a gradient is not finite."""

    def __init__(self, optimizer: nn.Optimizer, loss_scale: LossScale, max_grad_norm: float | None, batches: int = 1):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.clip = max_grad_norm is not None
        self.max_grad_norm = max_grad_norm
        self.batches = float(batches)
        self.sharded = strategy() is Strategy.SEMI_AUTO
        self.norm = GlobalNorm(optimizer.parameters, ranks_per_stage() if self.sharded else None)
        self.mean_over_ranks = MeanOverRanks()
        self.divisor = self.batches * self.mean_over_ranks.ranks
        self.is_finite = ops.IsFinite()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `TrainStep.construct`. gradients: of the scaled loss, summed over `batches` micro-batches."""
        loss, gradients = self.mean_over_ranks(loss, gradients)
        scale = self.loss_scale.value * 1.0  # the scale of this step, before it is adjusted
        unscale = 1.0 / (scale * self.divisor)
        if self.sharded:
            norm, loss = self.norm.of_all_cards(gradients, loss)
        else:
            norm = self.norm(gradients)
        norm = norm * unscale
        finite = ops.logical_and(self.is_finite(norm), self.is_finite(loss))
        learning_rate = self.optimizer.get_lr()
        skipped = ops.logical_not(finite)
        if finite:
            factor = unscale
            if self.clip:
                factor = factor * ops.minimum(self.max_grad_norm / (norm + 1e-6), 1.0)
            skipped = ops.depend(skipped, self.optimizer(gradients, factor))
        return loss, ops.depend(skipped, self.loss_scale(finite)), scale, learning_rate, norm


class LossAndGradients(nn.Cell):
    """The loss of a batch, and the gradients of that loss times the loss scale."""

    def __init__(self, network: nn.Cell, parameters: ParameterTuple, loss_scale: LossScale):
        super().__init__(auto_prefix=False)
        self.network = network if data_parallel_ranks() == 1 else DataParallelLoss(network)
        self.network.set_grad()
        self.step_key = StepKey(network)
        self.loss_scale = loss_scale
        self.sharded = strategy() is Strategy.SEMI_AUTO
        if self.sharded:
            # Semi-automatic parallelism divides the gradient of the loss by the number of cards that hold it. It does
            # not recognise the loss in a tuple (has_aux), so every gradient would be that many times too large.
            self.value_and_grad = ms.value_and_grad(self._scaled_loss, None, parameters)
        else:
            self.value_and_grad = ms.value_and_grad(self._scaled_loss_and_loss, None, parameters, has_aux=True)

    def _scaled_loss(self, *batch: Tensor) -> Tensor:
        return self.network(*batch) * self.loss_scale.value

    def _scaled_loss_and_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.network(*batch)
        return loss * self.loss_scale.value, loss

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.sharded:
            scaled, gradients = self.value_and_grad(*batch)
            loss = scaled / self.loss_scale.value
        else:
            (_, loss), gradients = self.value_and_grad(*batch)
        return ops.depend(loss, self.step_key()), gradients


class TrainStep(CachedGraphCell):
    """A training step in one graph.

    Args:
        network: returns the loss in training mode; needs `summed_loss` in data-parallel processes.
        optimizer: updates `optimizer.parameters`.
        scale_sense: the loss scale.
        max_grad_norm: clip the gradients to this global norm; None: do not clip.
    """

    def __init__(
        self, network: nn.Cell, optimizer: nn.Optimizer, scale_sense: ScaleSenseSection, max_grad_norm: float | None
    ):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        loss_scale = LossScale(scale_sense)
        self.loss_and_gradients = LossAndGradients(network, optimizer.parameters, loss_scale)
        self.update = Update(optimizer, loss_scale, max_grad_norm)

    def construct(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """One step on the columns of a batch.

        Returns:
            loss (float32 scalar), skipped (bool scalar: something was not finite and nothing was updated), the loss
            scale, the learning rate, and the global norm of the unscaled gradients before clipping, float32 scalars.
        """
        return self.update(*self.loss_and_gradients(*batch))


class AccumulatingTrainStep(nn.Cell):
    """A training step over `batches` micro-batches, whose gradients are averaged before one update.

    Two graphs are called from Python: one adds the gradients of a micro-batch to float32 sums, the other updates the
    weights. So the compile time does not grow with the number of micro-batches.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        scale_sense: ScaleSenseSection,
        max_grad_norm: float | None,
        batches: int,
    ):
        super().__init__(auto_prefix=False)
        self.batches = batches
        self.optimizer = optimizer
        loss_scale = LossScale(scale_sense)
        self.accumulate = _Accumulate(network, optimizer, loss_scale)
        self.finish = _FinishAccumulated(Update(optimizer, loss_scale, max_grad_norm, batches), self.accumulate)

    def __call__(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """As `TrainStep.construct`, for a batch that is split into `batches` micro-batches; the loss is their mean."""
        size = batch[0].shape[0] // self.batches
        for start in range(0, size * self.batches, size):
            self.accumulate(*(column[start : start + size] for column in batch))
        return self.finish()


class _Accumulate(CachedGraphCell):
    """Adds the loss and gradients of a micro-batch to the sums."""

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, loss_scale: LossScale):
        super().__init__(auto_prefix=False)
        self.loss_and_gradients = LossAndGradients(network, optimizer.parameters, loss_scale)
        self.map = ops.HyperMap()
        self.loss = Parameter(Tensor(0.0, ms.float32), name="accu_grads.loss", requires_grad=False)
        self.sums = zeros_like(optimizer.parameters, "accu_grads")

    def construct(self, *batch: Tensor) -> Tensor:
        loss, gradients = self.loss_and_gradients(*batch)
        return ops.depend(ops.assign_add(self.loss, loss), self.map(_accumulate, self.sums, gradients))


class _FinishAccumulated(CachedGraphCell):
    """Updates the weights from the sums, and resets these to zero."""

    def __init__(self, update: Update, accumulate: _Accumulate):
        super().__init__(auto_prefix=False)
        self.update = update
        self.loss, self.sums = accumulate.loss, accumulate.sums
        self.map = ops.HyperMap()

    def construct(self) -> tuple[Tensor, ...]:
        results = self.update(self.loss / self.update.batches, self.sums)
        reset = (ops.assign(self.loss, ops.zeros_like(self.loss)), self.map(_reset, ops.depend(self.sums, results)))
        return ops.depend(results, reset)
