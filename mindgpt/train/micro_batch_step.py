"""A training step over micro-batches of a model that is cut over cards; they follow one another through the stages.

Three things that MindSpore 2.10 does not say, each found in compiled graphs (tests/tasks/test_sharded_graphs.py):
what the last stage reads, such as a loss scale inside the network, is cut away from all others along with whatever
depends on it, the update of the weights included, and without a word; the network of a micro-batch must be a cell under
`lazy_inline`; and every parameter that requires a gradient needs a sum of gradients beside it, so those of other stages
must not require one.
"""

import mindspore as ms
from mindspore import ParameterTuple, Tensor, lazy_inline, nn, ops
from mindspore.parallel.nn import GradAccumulation, MicroBatchInterleaved, Pipeline

from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.train.optimizers.state import zeros_like
from mindgpt.train.step import LossScale, Update

_take_sum = ops.MultitypeFuncGraph("take_sum")
_take_gradient = ops.MultitypeFuncGraph("take_gradient")


@_take_sum.register("Tensor", "Tensor")
def _take_sum_of(gradient, total):
    """The sum over all micro-batches, which the backward pass leaves in `total`; empties it."""
    taken = ops.depend(total, gradient) * 1.0
    return ops.depend(taken, ops.assign(total, ops.depend(ops.zeros_like(total), taken)))


@_take_gradient.register("Tensor", "Tensor")
def _take_gradient_of(gradient, total):
    """With a sharded optimizer the sum is scattered, and the gradient is the part of this card; empties `total`."""
    taken = gradient * 1.0
    return ops.depend(taken, ops.assign(total, ops.depend(ops.zeros_like(total), taken)))


class SharedNetwork(nn.Cell):
    """A network compiled once and called for every micro-batch."""

    @lazy_inline
    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *batch: Tensor) -> Tensor:
        return self.network(*batch)


class InterleavedNetwork(nn.Cell):
    """The mean loss of `parts` equal parts of a batch, of which one computes while another waits for its messages.

    Ascend's compiler orders the two by the marks that MindSpore's cell puts on them. Each part's mean counts alike, as
    the micro-batches of gradient accumulation do.
    """

    def __init__(self, network: nn.Cell, parts: int):
        super().__init__(auto_prefix=False)
        self.summed = MicroBatchInterleaved(network, parts)
        self.parts = parts

    def construct(self, *batch: Tensor) -> Tensor:
        return self.summed(*batch) / self.parts


class MicroBatchTrainStep(nn.Cell):
    """As `TrainStep`, over `micro_batches` parts of a batch, whose gradients are averaged before one update.

    Args:
        network: returns the loss in training mode; its cells have their `pipeline_stage`, if there are stages.
        optimizer: updates the parameters of this card's stage, the only ones that require gradients.
        scale_sense, max_grad_norm: as in `TrainStep`.
        micro_batches: at least as many as stages.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        scale_sense: ScaleSenseSection,
        max_grad_norm: float | None,
        micro_batches: int,
    ):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.loss_scale = LossScale(scale_sense)
        self.micro_batches = micro_batches
        if ms.get_auto_parallel_context("pipeline_stages") > 1:
            self.network = Pipeline(SharedNetwork(network), micro_batches)
        else:
            self.network = GradAccumulation(network, micro_batches)
        self.network.set_grad()
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        # What is lent by another stage comes last: its gradient is summed here and sent there, and not updated here.
        self.own = len(optimizer.parameters)
        own = {id(parameter) for parameter in optimizer.parameters}
        lent = [parameter for parameter in network.trainable_params() if id(parameter) not in own]
        self.parameters = ParameterTuple([*optimizer.parameters, *lent])
        self.sums = zeros_like(self.parameters, "accu_grads")
        self.sharded = ms.get_auto_parallel_context("enable_parallel_optimizer")
        self.map = ops.HyperMap()
        self.update = Update(optimizer, self.loss_scale, max_grad_norm, micro_batches)

    def construct(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """As `TrainStep.construct`. The network's loss is on the last stage only; the others have 0 in its place."""
        loss = self.network(*batch)
        gradients = self.gradient(self.network, self.parameters)(*batch, self.loss_scale.value * 1.0)
        gradients = self.map(_take_gradient if self.sharded else _take_sum, gradients, self.sums)
        return self.update(loss / self.micro_batches, gradients[: self.own])
