"""One training step: loss, gradients, and the update that a non-finite number can never reach.

The order is: float32 loss, times the loss scale, gradient, sum over micro-batches, unscale, check, clip by global
norm, update, adjust the scale.
"""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.config.training import ScaleSenseSection

_square_sum = ops.MultitypeFuncGraph("square_sum")
_rescale = ops.MultitypeFuncGraph("rescale")
_accumulate = ops.MultitypeFuncGraph("accumulate")
_empty = ops.MultitypeFuncGraph("empty")


@_square_sum.register("Tensor", "Tensor")
def _square_sum_of(factor, gradient):
    scaled = ops.cast(gradient, ms.float32) * factor  # first, so that a large loss scale does not overflow the square
    return (scaled * scaled).sum()


@_rescale.register("Tensor", "Tensor")
def _rescale_one(factor, gradient):
    return ops.cast(ops.cast(gradient, ms.float32) * factor, gradient.dtype)


@_accumulate.register("Tensor", "Tensor")
def _accumulate_one(total, gradient):
    return ops.assign_add(total, ops.cast(gradient, ms.float32))


@_empty.register("Tensor")
def _empty_one(total):
    return ops.assign(total, ops.zeros_like(total))


class LossScale(nn.Cell):
    """What the loss is multiplied by, so that small half-precision gradients do not vanish.

    Dynamic (Micikevicius et al. 2018, section 3.2): divided by `scale_factor` after a non-finite step, down to 1, and
    multiplied by it after `scale_window` finite steps in a row. Static: never changed.
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
    """From scaled gradients to new weights, unless the loss or a gradient is not finite."""

    def __init__(self, optimizer: nn.Optimizer, loss_scale: LossScale, max_grad_norm: float | None, batches: int = 1):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.clip = max_grad_norm is not None
        self.max_grad_norm = max_grad_norm
        self.batches = float(batches)
        self.map = ops.HyperMap()
        self.is_finite = ops.IsFinite()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `TrainStep.construct`. gradients: of the scaled loss, summed over `batches` micro-batches."""
        scale = self.loss_scale.value * 1.0  # the scale of this step, before it is adjusted
        unscale = 1.0 / (scale * self.batches)
        norm = ops.sqrt(sum(self.map(ops.partial(_square_sum, unscale), gradients)))
        finite = ops.logical_and(self.is_finite(norm), self.is_finite(loss))
        rate = self.optimizer.get_lr()
        if finite:
            factor = unscale
            if self.clip:
                factor = factor * ops.minimum(self.max_grad_norm / (norm + 1e-6), 1.0)
            clipped = self.map(ops.partial(_rescale, factor), gradients)
            loss = ops.depend(loss, self.optimizer(clipped))
        loss = ops.depend(loss, self.loss_scale(finite))
        return loss, ops.logical_not(finite), scale, rate, norm


class LossAndGradients(nn.Cell):
    """The loss of a batch, and the gradients of that loss times the loss scale."""

    def __init__(self, network: nn.Cell, parameters: ParameterTuple, loss_scale: LossScale):
        super().__init__(auto_prefix=False)
        self.network = network
        self.network.set_grad()
        self.loss_scale = loss_scale
        self.value_and_grad = ms.value_and_grad(self._scaled_loss, None, parameters, has_aux=True)

    def _scaled_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.network(*batch)
        return loss * self.loss_scale.value, loss

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (_, loss), gradients = self.value_and_grad(*batch)
        return loss, gradients


class TrainStep(nn.Cell):
    """A whole step in one graph.

    Args:
        network: returns the loss in training mode.
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
    """A step over `batches` micro-batches, whose gradients are averaged before one update.

    Two graphs, called from Python: one adds the gradient of a micro-batch to float32 sums, the other updates the
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
        """As `TrainStep.construct`, for a batch of `batches` times as many rows; the loss is their mean."""
        size = batch[0].shape[0] // self.batches
        for start in range(0, size * self.batches, size):
            self.accumulate(*(column[start : start + size] for column in batch))
        return self.finish()


class _Accumulate(nn.Cell):
    """Adds loss and gradients of one micro-batch to the sums."""

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, loss_scale: LossScale):
        super().__init__(auto_prefix=False)
        self.loss_and_gradients = LossAndGradients(network, optimizer.parameters, loss_scale)
        self.map = ops.HyperMap()
        self.loss = Parameter(Tensor(0.0, ms.float32), name="accu_grads.loss", requires_grad=False)
        self.sums = ParameterTuple(
            Parameter(initializer("zeros", p.shape, ms.float32), name=f"accu_grads.{p.name}", requires_grad=False)
            for p in optimizer.parameters
        )

    def construct(self, *batch: Tensor) -> Tensor:
        loss, gradients = self.loss_and_gradients(*batch)
        return ops.depend(ops.assign_add(self.loss, loss), self.map(_accumulate, self.sums, gradients))


class _FinishAccumulated(nn.Cell):
    """Updates from the sums and empties them."""

    def __init__(self, update: Update, accumulate: _Accumulate):
        super().__init__(auto_prefix=False)
        self.update = update
        self.loss, self.sums = accumulate.loss, accumulate.sums
        self.map = ops.HyperMap()

    def construct(self) -> tuple[Tensor, ...]:
        results = self.update(self.loss / self.update.batches, self.sums)
        emptied = (ops.assign(self.loss, ops.zeros_like(self.loss)), self.map(_empty, ops.depend(self.sums, results)))
        return ops.depend(results, emptied)
