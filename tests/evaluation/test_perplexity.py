"""The perplexity metric against NumPy, and what it counts against transformers' convention."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.evaluation.perplexity import PerplexityCell, PerplexityMetric
from tests.models.kernel_support import skip_without_kernels

pytestmark = pytest.mark.usefixtures("cpu")


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


def test_modelscopes_number_is_beside_the_perplexity():
    """Against `PplMetric` itself: batch means weighted by rows, of all positions; the last batch is short."""
    draw = np.random.default_rng(0)
    metric, average, rows = PerplexityMetric(whole_rows=True), 0.0, 0
    learned = []
    for size in (4, 4, 3):
        losses = draw.exponential(2.0, (size, 7))
        counts = draw.random((size, 7)) < 0.4
        values = losses[counts].sum(), counts.sum(), losses.sum(), losses.size
        metric.update(*(Tensor(value, ms.float32) for value in values))
        average = (average * rows + losses.mean() * size) / (rows + size)
        rows += size
        learned.append(losses[counts])
    mean = np.concatenate(learned).mean()
    wanted = {"loss": mean, "PPL": np.exp(mean), "PplMetric": np.exp(average)}
    assert metric.eval() == pytest.approx(wanted, rel=1e-6)
    merged = PerplexityMetric(whole_rows=True)
    merged.restore([metric.state(), metric.state()])
    assert merged.eval() == pytest.approx(wanted, rel=1e-6)


def test_clear_resets_the_metric():
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


@pytest.fixture(params=["operators", "kernels"])
def by(request, monkeypatch):
    """Evaluation by MindSpore's operators, as on Ascend, or by the C++ kernels."""
    if request.param == "operators":
        monkeypatch.setattr("mindgpt.models.acceleration.USE_KERNELS", False)
    else:
        skip_without_kernels()
    return request.param


def model_with_large_weights(**changes):
    """A toy whose logits are some units apart, so that a token too many that is seen changes them."""
    config = GPT2Config(num_layers=2, hidden_size=16, num_heads=2, vocab_size=23, seq_length=8, **changes)
    model = GPT2LMHeadModel(config).set_train(False)
    draw = np.random.default_rng(1)
    for parameter in model.get_parameters():
        parameter.set_data(parameter + Tensor(draw.normal(0, 0.3, parameter.shape).astype(np.float32)))
    return model


PADDING = {
    "on the right": [[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7],
    "on the left": [[1] * 8, [0] * 3 + [1] * 5, [0] * 7 + [1]],
    "within": [[1, 1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 1, 1, 1], [1] * 8],
}


@pytest.mark.parametrize("padding", PADDING)
def test_the_cell_sums_over_unmasked_labelled_tokens(by, padding):
    """Against NumPy on the model's own logits: padding and -100 are neither predicted nor counted."""
    model = model_with_large_weights()
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 23, (3, 8)).astype(np.int32)
    mask = np.array(PADDING[padding], np.int32)
    labels = np.where(draw.random((3, 8)) < 0.3, -100, ids).astype(np.int32)
    labels[:, 1:][mask[:, :-1] == 0] = -100  # what padding, which may see nothing, would predict
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

    cases = [(Tensor(labels), labels)]
    if padding == "on the right":
        cases.append((None, ids))
    for given, wanted in cases:
        cell = PerplexityCell(model)
        assert (cell.kernels is not None) == (by == "kernels")
        total, count = (value.asnumpy().item() for value in cell(Tensor(ids), Tensor(mask), given))
        assert count == expected(wanted)[1]
        assert total == pytest.approx(expected(wanted)[0], rel=1e-4)


KINDS = [
    *({"hidden_act": name} for name in ("gelu", "gelu_erf", "fast_gelu", "relu", "silu")),
    {"scale_attn_by_inverse_layer_idx": True},
    {"layernorm_epsilon": 0.1},
]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_kernels_and_operators_agree(changes, monkeypatch):
    skip_without_kernels()
    model = model_with_large_weights(**changes)
    ids = Tensor(np.random.default_rng(2).integers(0, 23, (2, 9)).astype(np.int32))  # a window and its last target
    by_kernels = PerplexityCell(model)(ids)
    monkeypatch.setattr("mindgpt.models.acceleration.USE_KERNELS", False)
    by_operators = PerplexityCell(model)(ids)
    assert by_kernels[1].asnumpy() == by_operators[1].asnumpy() == 16
    assert by_kernels[0].asnumpy() == pytest.approx(by_operators[0].asnumpy(), rel=1e-4)


def test_the_kernels_see_new_weights(by):
    """An evaluation during training: the cell is built once, and the weights change."""
    model = model_with_large_weights()
    cell, ids = PerplexityCell(model), Tensor(np.random.default_rng(3).integers(0, 23, (2, 8)).astype(np.int32))
    first = cell(ids)[0].asnumpy()
    for parameter in model.get_parameters():
        parameter.set_data(parameter * 1.5)
    second = cell(ids)[0].asnumpy()
    assert second != pytest.approx(first, rel=0.01)
    assert second == pytest.approx(PerplexityCell(model)(ids)[0].asnumpy(), rel=1e-6)


def test_ids_and_labels_of_64_bits(by):
    model = model_with_large_weights()
    ids = np.random.default_rng(4).integers(0, 23, (2, 8))
    cell, labels = PerplexityCell(model), np.where(ids > 15, -100, ids)
    narrow, wide = (cell(*(Tensor(x.astype(dtype)) for x in (ids, ids > -1, labels))) for dtype in (np.int32, np.int64))
    assert [value.asnumpy() for value in wide] == [value.asnumpy() for value in narrow]


@pytest.mark.parametrize("number", [23, 10**9, -1])
@pytest.mark.parametrize("where", ["ids", "labels"])
def test_an_id_outside_the_vocabulary_is_an_error(number, where):
    """Were it padding; a process that reads there may end."""
    skip_without_kernels()
    ids, mask = np.ones((2, 2, 8), np.int32)
    labels = ids.copy()
    (ids if where == "ids" else labels)[1, 5] = number
    if where == "ids":
        mask[1, 5:] = 0
    with pytest.raises(RuntimeError, match="LaunchEmbedding" if where == "ids" else "LaunchTargetLosses"):
        PerplexityCell(model_with_large_weights())(Tensor(ids), Tensor(mask), Tensor(labels))[0].asnumpy()


def test_rows_of_one_token():
    skip_without_kernels()
    with pytest.raises(ValueError, match="rows of one token"):
        PerplexityCell(model_with_large_weights())(Tensor(np.zeros((2, 1), np.int32)))


def test_rows_longer_than_the_context_length(by):
    model = model_with_large_weights()
    with pytest.raises(ValueError, match="9 tokens in a row, but the position table holds 8"):
        PerplexityCell(model)(Tensor(np.zeros((1, 10), np.int32)))


def test_the_cell_also_sums_over_whole_rows(by):
    """Against NumPy on the logits of rows that nothing masks: padding is a token like others, with id 0."""
    model = model_with_large_weights()
    draw = np.random.default_rng(5)
    mask = np.array(PADDING["on the right"], np.int32)
    ids = (draw.integers(1, 23, (3, 8)) * mask).astype(np.int32)
    labels = np.where((mask == 1) & (draw.random((3, 8)) < 0.5), ids, -100).astype(np.int32)
    logits = model(Tensor(ids)).asnumpy().astype(np.float64)[:, :-1]
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    found = [
        value.asnumpy().item() for value in PerplexityCell(model, whole_rows=True)(*map(Tensor, (ids, mask, labels)))
    ]
    learned = labels[:, 1:] != -100
    assert found == pytest.approx([losses[learned].sum(), learned.sum(), losses.sum(), losses.size], rel=1e-4)
