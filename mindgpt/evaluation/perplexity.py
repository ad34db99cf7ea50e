"""Perplexity: exp of the mean negative log-likelihood per token."""

import math
from collections.abc import Sequence

from mindspore import Tensor, nn
from mindspore.train import Metric

from mindgpt.models.acceleration import loss_cell
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel


class NothingCountedError(RuntimeError):
    """A metric has no value, since nothing in the data counts. The message continues the name of the data."""


class PerplexityCell(nn.Cell):
    """What `mindspore.train.Model` evaluates: a batch of rows -> its summed loss and the tokens it is summed over.

    By the device's own kernels, if they fit this network.

    Args:
        network: the language model.
        whole_rows: also sum over all positions of the rows, padding included, in a second forward pass.
    """

    def __init__(self, network: GPT2LMHeadModel, whole_rows: bool = False):
        super().__init__(auto_prefix=False)
        self.network = network
        self.whole_rows = whole_rows
        self.kernels = loss_cell(network)

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """input_ids, attention_mask, labels: (B, L) int32 -> two float32 scalars; each row gives L - 1 predictions.
        With `whole_rows` two more."""
        if not self.whole_rows:
            return self.summed_loss(input_ids, attention_mask, labels)
        total, count = self.summed_loss(input_ids, attention_mask, labels)
        whole_total, whole_count = self.summed_loss(input_ids, None, None)
        return total, count, whole_total, whole_count

    def summed_loss(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `GPT2LMHeadModel.summed_loss`."""
        if self.kernels is not None:
            return self.kernels(input_ids, attention_mask, labels)
        return self.network.summed_loss(input_ids, attention_mask, labels)


class PerplexityMetric(Metric):
    """Loss and perplexity over a data set, averaged over all predicted tokens.

    With `batch_means`, the mean of batch means instead: MindFormers 1.5 gave every batch the same weight, also a short
    last one, and its published numbers were computed so.

    With `whole_rows`, `PplMetric` beside them, under the name that ModelScope gave it: exp of the mean over all
    positions of the rows. It averages the means of batches by their rows; as all rows are of one length, that is the
    mean over positions. Padding and prompts count, though training leaves them out, so of short texts it says little.
    """

    def __init__(self, batch_means: bool = False, whole_rows: bool = False):
        super().__init__()
        self.batch_means, self.whole_rows = batch_means, whole_rows
        self.clear()

    def clear(self) -> None:
        """Forget all batches."""
        self._batches: list[tuple[float, int]] = []
        self._whole_batches: list[tuple[float, int]] = []

    def update(self, total: Tensor, count: Tensor, *whole: Tensor) -> None:
        """Add a batch: summed loss and number of predicted tokens (scalars), from `PerplexityCell`; with `whole_rows`
        also of whole rows."""
        self._batches.append((float(total.asnumpy()), int(count.asnumpy())))
        if self.whole_rows:
            whole_total, whole_count = whole
            self._whole_batches.append((float(whole_total.asnumpy()), int(whole_count.asnumpy())))

    def state(self) -> list[list[tuple[float, int]]]:
        """All batches so far, for `restore`, as JSON values."""
        return [self._batches, self._whole_batches]

    def restore(self, states: Sequence[Sequence[Sequence[Sequence[float]]]]) -> None:
        """Replace the batches by those of the `state` of several metrics, in order."""
        self._batches, self._whole_batches = (
            [(float(total), int(count)) for state in states for total, count in state[kind]] for kind in (0, 1)
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens so far."""
        return sum(count for _, count in self._batches)

    def eval(self) -> dict[str, float]:
        """`loss`, in nats per token, and `PPL` = exp(loss), infinite if that overflows float64; with `whole_rows` also
        `PplMetric`.

        Raises:
            NothingCountedError: no token was predicted.
        """
        self._check_anything_counted()
        values = self.token_weighted()
        if self.batch_means:
            means = [total / count for total, count in self._batches if count]
            values = _loss_and_perplexity(sum(means) / len(means))
        if self.whole_rows:
            positions = sum(count for _, count in self._whole_batches)
            values["PplMetric"] = perplexity(sum(total for total, _ in self._whole_batches) / positions)
        return values

    def token_weighted(self) -> dict[str, float]:
        """As `eval` without `batch_means`."""
        self._check_anything_counted()
        return _loss_and_perplexity(sum(total for total, count in self._batches if count) / self.tokens)

    def _check_anything_counted(self) -> None:
        if not self.tokens:
            raise NothingCountedError(
                "the data set has no token to predict: every row is padding, or all labels are -100"
            )


def _loss_and_perplexity(loss: float) -> dict[str, float]:
    return {"loss": loss, "PPL": perplexity(loss)}


def perplexity(loss: float) -> float:
    """e^loss, of a mean negative log-likelihood in nats; infinite where that is beyond float64."""
    return math.exp(loss) if loss < 700 else math.inf
