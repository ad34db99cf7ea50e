"""Metrics of a classifier: accuracy, F1 and Matthews correlation, from a confusion matrix."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore.train import Metric

from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.evaluation.perplexity import NothingCountedError
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification


class ClassificationCell(nn.Cell):
    """The evaluation network of `mindspore.train.Model`: a batch of rows -> logits and labels."""

    def __init__(self, network: GPT2ForSequenceClassification):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, attention_mask: (B, T) int32; labels: (B,) int32 -> logits (B, C) float32, labels"""
        return self.network(input_ids, attention_mask), labels


class ClassificationMetric(Metric):
    """Counts labels and predictions in a confusion matrix; rows with the label -100 do not count.

    Args:
        num_labels: number of labels.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.num_labels = num_labels
        self.clear()

    def clear(self) -> None:
        """Forget all batches."""
        self.confusion = np.zeros((self.num_labels, self.num_labels), np.int64)  # [label, prediction]
        self._loss = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C) and labels (B,), from `ClassificationCell`."""
        logits, labels = logits.asnumpy().astype(np.float64), labels.asnumpy().reshape(-1)
        logits, labels = logits[labels != IGNORED_LABEL], labels[labels != IGNORED_LABEL]
        np.add.at(self.confusion, (labels, logits.argmax(-1)), 1)
        highest = logits.max(-1, initial=-np.inf)
        log_normaliser = highest + np.log(np.exp(logits - highest[:, None]).sum(-1))
        self._loss += float((log_normaliser - logits[np.arange(len(labels)), labels]).sum())

    def state(self) -> list[Any]:
        """The counts so far, for `restore`, as JSON values."""
        return [self.confusion.tolist(), self._loss]

    def restore(self, states: Sequence[Sequence[Any]]) -> None:
        """Replace the counts by the sum of the `state` of several metrics."""
        self.confusion = np.sum([confusion for confusion, _ in states], 0, dtype=np.int64)
        self._loss = sum(loss for _, loss in states)

    @property
    def rows(self) -> int:
        """Rows counted so far."""
        return int(self.confusion.sum())

    def eval(self) -> dict[str, float]:
        """`loss`, the mean cross-entropy in nats, and the scores of `scores`.

        Raises:
            NothingCountedError: no row was counted.
        """
        if not self.rows:
            raise NothingCountedError("the data set has no labelled row: all labels are -100")
        return {"loss": self._loss / self.rows, **scores(self.confusion)}


def scores(confusion: np.ndarray) -> dict[str, float]:
    """`ACC`, `F1` (of label 1, for two labels only), `macro_F1` and `MCC`.

    Args:
        confusion: (C, C) counts, [label, prediction].
    """
    values = {"ACC": accuracy(confusion)}
    of_labels = f1_of_labels(confusion)
    if len(of_labels) == 2:
        values["F1"] = float(of_labels[1])
    return values | {"macro_F1": float(of_labels.mean()), "MCC": matthews_correlation(confusion)}


def accuracy(confusion: np.ndarray) -> float:
    """The share of correct predictions. confusion: (C, C) counts, [label, prediction]."""
    return float(np.trace(confusion) / confusion.sum())


def f1_of_labels(confusion: np.ndarray) -> np.ndarray:
    """(C,): 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; 0 for a label that never occurs and
    is never predicted (van Rijsbergen 1979; as scikit-learn's `f1_score` with `zero_division=0`)."""
    hits = np.diag(confusion).astype(np.float64)
    occurring = confusion.sum(0) + confusion.sum(1)  # TP + FP + TP + FN
    return np.divide(2.0 * hits, occurring, out=np.zeros_like(hits), where=occurring > 0)


def matthews_correlation(confusion: np.ndarray) -> float:
    """The correlation of labels and predictions, in [-1, 1]; 0 where one of them is constant (Gorodkin 2004, eq. 8;
    Matthews 1975 for two labels)."""
    confusion = confusion.astype(np.float64)
    total, hits = confusion.sum(), np.trace(confusion)
    labels, predictions = confusion.sum(1), confusion.sum(0)
    covariance = hits * total - labels @ predictions
    spread = (total**2 - labels @ labels) * (total**2 - predictions @ predictions)
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0
