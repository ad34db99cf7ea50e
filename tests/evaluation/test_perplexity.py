"""The perplexity metric against NumPy, and what it counts against transformers' convention."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.evaluation.perplexity import PerplexityCell, PerplexityMetric


def feed(metric, batches):
    """batches: for each the losses of its predicted tokens."""
    for losses in batches:
        metric.update(Tensor(np.sum(losses), ms.float32), Tensor(len(losses), ms.float32))
    return metric


BATCHES = [[1.0, 2.0, 6.0], [], [4.0], [0.5, 0.25]]


def test_each_token_counts_once():
    metric = feed(PerplexityMetric(), BATCHES)
    mean = np.mean(np.concatenate(BATCHES))
    assert metric.eval() == pytest.approx({"loss": mean, "PPL": np.exp(mean)})
    assert metric.tokens == 6


def test_mean_of_batch_means():
    """MindFormers' way; a batch without any token has no mean and is left out."""
    metric = feed(PerplexityMetric(batch_means=True), BATCHES)
    mean = np.mean([np.mean(batch) for batch in BATCHES if batch])
    assert mean != pytest.approx(np.mean(np.concatenate(BATCHES)))
    assert metric.eval() == pytest.approx({"loss": mean, "PPL": np.exp(mean)})
    assert metric.token_weighted() == PerplexityMetric.eval(feed(PerplexityMetric(), BATCHES))


def test_a_cleared_metric_starts_anew():
    metric = feed(PerplexityMetric(), BATCHES)
    metric.clear()
    assert feed(metric, [[3.0]]).eval()["loss"] == 3.0
    assert metric.tokens == 1


def test_many_batches_lose_no_precision():
    """Summed in float64: in float32 the total would stop growing in steps of 0.1 after some millions."""
    metric = feed(PerplexityMetric(), [])
    for _ in range(1000):
        metric.update(Tensor(1e7, ms.float32), Tensor(1e6, ms.float32))
        metric.update(Tensor(0.125, ms.float32), Tensor(1, ms.float32))
    assert metric.eval()["loss"] == pytest.approx((1e10 + 125) / (1e9 + 1000), rel=1e-12)


def test_nothing_to_predict_and_too_much():
    with pytest.raises(RuntimeError, match="no token to predict"):
        feed(PerplexityMetric(), [[], []]).eval()
    assert feed(PerplexityMetric(), [[800.0]]).eval() == {"loss": 800.0, "PPL": math.inf}
    assert math.isnan(feed(PerplexityMetric(), [[math.nan]]).eval()["loss"])


@pytest.mark.usefixtures("cpu")
def test_the_cell_sums_over_what_masks_and_labels_leave():
    """Against NumPy on the model's own logits: padding and -100 are neither predicted nor counted."""
    config = GPT2Config(num_layers=1, hidden_size=16, num_heads=2, vocab_size=23, seq_length=8)
    model = GPT2LMHeadModel(config)
    model.set_train(False)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 23, (3, 8)).astype(np.int32)
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7], np.int32)
    labels = np.where(draw.random((3, 8)) < 0.3, -100, ids).astype(np.int32)
    logits = model(Tensor(ids), Tensor(mask)).asnumpy().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def expected(labels):
        total, count = 0.0, 0
        for row in range(3):
            for position in range(1, 8):
                if mask[row, position] and labels[row, position] != -100:
                    total -= log_probabilities[row, position - 1, labels[row, position]]
                    count += 1
        return total, count

    for given, wanted in ((None, ids), (Tensor(labels), labels)):
        total, count = (value.asnumpy().item() for value in PerplexityCell(model)(Tensor(ids), Tensor(mask), given))
        assert count == expected(wanted)[1]
        assert total == pytest.approx(expected(wanted)[0], rel=1e-5)
