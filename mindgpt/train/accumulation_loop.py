"""Gradient accumulation in one graph, for data sinking, in which a device takes whole steps without Python between."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.train.step import AccumulatingTrainStep


class AccumulationLoop(nn.Cell):
    """As `AccumulatingTrainStep`, whose two parts a loop in the graph calls. The compile time does not grow with the
    number of micro-batches either.

    Args:
        network, optimizer, scale_sense, max_grad_norm, batches: as of `AccumulatingTrainStep`.
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
        step = AccumulatingTrainStep(network, optimizer, scale_sense, max_grad_norm, batches)
        self.optimizer = optimizer
        self.batches = batches
        self.accumulate, self.finish = step.accumulate, step.finish
        self.first = Tensor(0, ms.int32)

    def construct(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """As `AccumulatingTrainStep.__call__`. batch: columns, each (batches * rows, ...)."""
        columns = ()
        for column in batch:
            columns += (ops.reshape(column, (self.batches, -1, *column.shape[1:])),)
        number = self.first
        while number < self.batches:
            micro_batch = ()
            for column in columns:
                micro_batch += (ops.gather(column, number, 0),)
            number = ops.depend(number + 1, self.accumulate(*micro_batch))
        return self.finish()
