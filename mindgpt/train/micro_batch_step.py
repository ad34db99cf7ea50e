"""The training step of a sharded model over micro-batches, which pass through the pipeline stages one after another.

MindSpore 2.10 has three undocumented rules, found in compiled graphs (tests/tasks/test_sharded_graphs.py). What only
the last stage reads, such as a loss scale inside the network, is silently removed from the other stages, with
everything that depends on it, even the update of the weights. The network of a micro-batch must be a cell under
`lazy_inline`. And every parameter that requires a gradient needs a gradient sum, so parameters of other stages must not
require one.
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
    """The sum over all micro-batches, which the backward pass leaves in `total`; resets `total`."""
    taken = ops.depend(total, gradient) * 1.0
    return ops.depend(taken, ops.assign(total, ops.depend(ops.zeros_like(total), taken)))


@_take_gradient.register("Tensor", "Tensor")
def _take_gradient_of(gradient, total):
    """This card's shard of the gradient, which a sharded optimizer gets from a ReduceScatter; resets `total`."""
    taken = gradient * 1.0
    return ops.depend(taken, ops.assign(total, ops.depend(ops.zeros_like(total), taken)))


class SharedNetwork(nn.Cell):
    """A network that is compiled once and called for every micro-batch."""

    @lazy_inline
    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *batch: Tensor) -> Tensor:
        return self.network(*batch)


class InterleavedNetwork(nn.Cell):
    """The mean loss of `parts` equal parts of a batch, interleaved: one computes while another communicates.

    Ascend's compiler schedules them by attributes that MindSpore's cell sets. The means of the parts have equal weight,
    as micro-batches have in gradient accumulation.
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
        optimizer: updates the parameters of this rank's stage, the only ones that require gradients.
        scale_sense, max_grad_norm: as in `TrainStep`.
        micro_batches: at least the number of stages.
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
        # Tied copies of another stage's parameters come last: their gradients are summed here and sent to that stage.
        self.own = len(optimizer.parameters)
        own = {id(parameter) for parameter in optimizer.parameters}
        copies = [parameter for parameter in network.trainable_params() if id(parameter) not in own]
        self.parameters = ParameterTuple([*optimizer.parameters, *copies])
        self.sums = zeros_like(self.parameters, "accu_grads")
        self.sharded = ms.get_auto_parallel_context("enable_parallel_optimizer")
        self.map = ops.HyperMap()
        self.update = Update(optimizer, self.loss_scale, max_grad_norm, micro_batches)

    def construct(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """As `TrainStep.construct`. Only the last stage has the network's loss; the others have 0."""
        loss = self.network(*batch)
        gradients = self.gradient(self.network, self.parameters)(*batch, self.loss_scale.value * 1.0)
        gradients = self.map(_take_gradient if self.sharded else _take_sum, gradients, self.sums)
        return self.update(loss / self.micro_batches, gradients[: self.own])
