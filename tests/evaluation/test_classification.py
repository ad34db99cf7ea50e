"""Accuracy, F1 and Matthews correlation against their definitions, computed row by row."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor

from mindgpt.evaluation.classification_metrics import ClassificationMetric, scores


def confusion_of(labels, predictions, size):
    matrix = np.zeros((size, size), np.int64)
    for label, prediction in zip(labels, predictions, strict=True):
        matrix[label, prediction] += 1
    return matrix


def f1(labels, predictions, of):
    """The harmonic mean of precision and recall, counted by hand."""
    hits = sum(y == p == of for y, p in zip(labels, predictions, strict=True))
    given, true = predictions.count(of), labels.count(of)
    precision = hits / given if given else 0.0
    recall = hits / true if true else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def matthews(labels, predictions, size):
    """The correlation of the one-hot labels with the one-hot predictions (Gorodkin 2004, eq. 4)."""
    x, y = np.eye(size)[labels], np.eye(size)[predictions]
    x, y = x - x.mean(0), y - y.mean(0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return (x * y).sum() / spread if spread > 1e-9 else 0.0


@given(st.integers(2, 4).flatmap(
    lambda size: st.tuples(
        st.just(size), st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), min_size=1, max_size=30)
    )
))  # fmt: skip
def test_scores_follow_their_definitions(case):
    size, pairs = case
    labels, predictions = [y for y, _ in pairs], [p for _, p in pairs]
    values = scores(confusion_of(labels, predictions, size))
    by_hand = [f1(labels, predictions, of) for of in range(size)]
    assert values["ACC"] == pytest.approx(np.mean(np.array(labels) == np.array(predictions)))
    assert values["macro_F1"] == pytest.approx(np.mean(by_hand))
    assert ("F1" in values) == (size == 2)
    assert values.get("F1", by_hand[1]) == pytest.approx(by_hand[1])
    assert values["MCC"] == pytest.approx(matthews(labels, predictions, size), abs=1e-9)


def test_two_labels_equal_matthews_formula():
    tp, tn, fp, fn = 6, 3, 1, 2
    values = scores(np.array([[tn, fp], [fn, tp]]))
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert values["MCC"] == pytest.approx((tp * tn - fp * fn) / math.sqrt(spread))
    assert values["F1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert values["ACC"] == pytest.approx(9 / 12)


def test_the_metric_adds_up_batches_and_leaves_out_rows_without_label():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(10, 3)).astype(np.float32) * 3
    labels = draw.integers(0, 3, 10).astype(np.int32)
    labels[[2, 7]] = -100
    metric = ClassificationMetric(3)
    for start, end in ((0, 4), (4, 10)):
        metric.update(Tensor(logits[start:end]), Tensor(labels[start:end]))
    kept = labels >= 0
    log_softmax = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    assert metric.rows == 8
    values = metric.eval()
    assert values["loss"] == pytest.approx(-log_softmax[kept, labels[kept]].mean(), rel=1e-6)
    assert values["ACC"] == pytest.approx((logits.argmax(-1) == labels)[kept].mean())
    metric.clear()
    with pytest.raises(RuntimeError, match="no labelled row"):
        metric.eval()


def test_a_batch_without_any_labelled_row_adds_nothing():
    metric = ClassificationMetric(2)
    metric.update(Tensor(np.ones((2, 2), np.float32)), Tensor(np.full(2, -100, np.int32)))
    assert metric.rows == 0
