"""Dropout: its rate, its scale, its gradient, the independence of its masks, and that a seed fixes them."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.recompute_section import RecomputeSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.dropout import HashedDropout, MaskedDropout, StepKey, mask_generator
from mindgpt.models.gpt2.gpt2_parallel import Layout, shard_dropout
from mindgpt.models.gpt2.gpt2_recompute import apply_recompute
from mindgpt.train.optimizers import AdamW
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import TrainStep

pytestmark = pytest.mark.usefixtures("cpu")

ROWS, COLUMNS = 3000, 256


def masks(rate, count=1, seed=0, shape=(ROWS, COLUMNS)):
    """What `count` calls keep, as 0 and 1."""
    ms.set_seed(seed)
    cell = HashedDropout(rate).set_train(True)
    ones = Tensor(np.ones(shape, np.float32))
    return [(cell(ones).asnumpy() > 0).astype(np.float64) for _ in range(count)]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_in_all_rows_and_columns(rate):
    (kept,) = masks(rate)
    deviation = np.sqrt(rate * (1 - rate))
    assert kept.mean() == pytest.approx(1 - rate, abs=5 * deviation / np.sqrt(kept.size))
    # Counts of independent draws scatter by the square root of their number, neither more nor less.
    assert kept.mean(axis=1).std() == pytest.approx(deviation / np.sqrt(COLUMNS), rel=0.1)
    assert kept.mean(axis=0).std() == pytest.approx(deviation / np.sqrt(ROWS), rel=0.25)


def test_neighbours_and_calls_are_independent():
    first, second, third = masks(0.3, count=3)
    limit = 5 / np.sqrt(first.size)
    pairs = {
        "next column": (first[:, :-1], first[:, 1:]),
        "next row": (first[:-1], first[1:]),
        "diagonal": (first[:-1, :-1], first[1:, 1:]),
        "power-of-two column": (first[:, :-128], first[:, 128:]),
        "power-of-two row": (first[:-1024], first[1024:]),
        "next call": (first, second),
        "the call after": (first, third),
    }
    for name, (one, other) in pairs.items():
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < limit, name


def test_bits_are_uniform_in_blocks():
    """Chi-square over the 256 patterns of 8 neighbouring values at rate 1/2."""
    (kept,) = masks(0.5)
    patterns = kept.reshape(-1, 8) @ (2 ** np.arange(8))
    counts = np.bincount(patterns.astype(int), minlength=256)
    expected = len(patterns) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 255 - 5 * np.sqrt(2 * 255) < chi_square < 255 + 5 * np.sqrt(2 * 255)


def test_kept_values_are_scaled_and_so_is_their_gradient():
    cell = HashedDropout(0.25).set_train(True)
    x = Tensor(np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32))

    def total(x):
        y = cell(x)
        return y.sum(), y

    (_, y), gradient = ms.value_and_grad(total, 0, has_aux=True)(x)
    y, gradient = y.asnumpy(), gradient.asnumpy()
    kept = y != 0
    np.testing.assert_allclose(y[kept], x.asnumpy()[kept] / 0.75, rtol=1e-6)
    np.testing.assert_allclose(gradient, kept / 0.75, rtol=1e-6)
    assert 0.6 < kept.mean() < 0.9


def test_the_seed_fixes_all_masks():
    one, again, other = masks(0.2, 6, seed=1), masks(0.2, 6, seed=1), masks(0.2, 6, seed=2)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], one[1])


def test_cells_of_one_model_draw_different_masks():
    ms.set_seed(0)
    cells = [HashedDropout(0.5).set_train(True) for _ in range(2)]
    ones = Tensor(np.ones((64, 64), np.float32))
    assert not np.array_equal(cells[0](ones).asnumpy(), cells[1](ones).asnumpy())


def test_nothing_is_dropped_outside_training_or_at_rate_zero():
    x = Tensor(np.ones((5, 5), np.float32))
    np.testing.assert_array_equal(HashedDropout(0.5).set_train(False)(x).asnumpy(), x.asnumpy())
    np.testing.assert_array_equal(HashedDropout(0.0).set_train(True)(x).asnumpy(), x.asnumpy())


class Pair(nn.Cell):
    """Two dropouts of one network, under the key of a step."""

    def __init__(self, rate=0.4):
        super().__init__(auto_prefix=False)
        self.one, self.two = HashedDropout(rate), HashedDropout(rate)
        self.step_key = StepKey(self)

    def construct(self, x):
        masks = self.one(x), self.two(x), self.one(x)
        return *masks, self.step_key()


def test_the_key_of_a_step_fixes_its_masks_and_is_no_weight():
    ms.set_seed(3)
    network = Pair().set_train(True)
    ones = Tensor(np.ones((512, 256), np.float32))
    unbroken = []
    keys = []
    for _ in range(4):
        keys.append(network.step_key.key.asnumpy().copy())
        unbroken.append([mask.asnumpy() > 0 for mask in network(ones)[:3]])
    assert len({key.item() for key in keys}) == 4
    network.step_key.key.set_data(Tensor(keys[2]))
    resumed = [[mask.asnumpy() > 0 for mask in network(ones)[:3]] for _ in range(2)]
    np.testing.assert_array_equal(resumed, unbroken[2:])
    for one, two, one_again in unbroken:
        np.testing.assert_array_equal(one, one_again)  # the same cell in the same step, as recomputation needs it
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / np.sqrt(one.size)
    for step, later in zip(unbroken, unbroken[1:], strict=False):
        assert abs(np.corrcoef(step[0].ravel(), later[0].ravel())[0, 1]) < 5 / np.sqrt(step[0].size)
    assert [p.name for p in network.get_parameters()] == ["dropout_key"]
    assert not list(network.one.get_parameters())


def test_no_mask_is_another_one_moved():
    """Masks are hashes of sums, so one key and another might give one pattern at two places; nothing may line up."""
    ms.set_seed(1)
    network = Pair(0.5).set_train(True)
    ones = Tensor(np.ones((256, 256), np.float32))
    masks = [mask.asnumpy() > 0 for _ in range(2) for mask in network(ones)[:2]]
    signs = [np.where(mask, 1.0, -1.0) for mask in masks]
    spectra = [np.fft.rfft2(sign) for sign in signs]
    for i, first in enumerate(spectra):
        for second in spectra[i + 1 :]:
            correlation = np.fft.irfft2(first * np.conj(second)) / signs[0].size
            assert np.abs(correlation).max() < 7 / np.sqrt(signs[0].size)


@pytest.mark.parametrize("recompute", [{"recompute": True}, {"select_recompute": True}], ids=str)
def test_recomputation_changes_no_gradient(recompute):
    """Three steps of a network with much dropout: another mask in the backward pass would show in the norm."""

    def steps(section):
        ms.set_seed(0)
        sizes = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "vocab_size": 31, "seq_length": 8}
        rates = dict.fromkeys(("hidden_dropout_rate", "attention_dropout_rate", "embedding_dropout_rate"), 0.4)
        model = GPT2LMHeadModel(GPT2Config(**sizes, **rates))
        apply_recompute(model.backbone, RecomputeSection(**section))
        optimizer = AdamW(model.trainable_params(), LearningRateTable(np.full(3, 0.01)))
        step = TrainStep(model, optimizer, ScaleSenseSection(), None).set_train()
        rows = np.random.default_rng(0).integers(0, 31, (3, 4, 9)).astype(np.int32)
        outputs = [step(Tensor(batch)) for batch in rows]
        return [(loss.asnumpy().item(), norm.asnumpy().item()) for loss, _, _, _, norm in outputs]

    np.testing.assert_allclose(steps(recompute), steps({}), rtol=1e-5)


def test_shards_of_a_tensor_have_masks_of_their_own_and_copies_the_same(monkeypatch):
    """4 ranks, data_parallel 2 x model_parallel 2: MindSpore gives neighbours what is sharded least."""

    def seeds(rank, strategy):
        monkeypatch.setenv("RANK_ID", str(rank))
        monkeypatch.setenv("MS_WORKER_NUM", "8")
        ms.set_seed(1)
        cell = MaskedDropout(0.1)
        shard_dropout(cell, Layout(data_parallel=2, model_parallel=2), strategy)
        return cell.draw_mask.Seed0, cell.draw_mask.Seed1

    by_rows = [seeds(rank, (2, 1)) for rank in range(4)]
    assert by_rows[0] == by_rows[1] != by_rows[2] == by_rows[3]
    assert len({seeds(rank, (2, 2, 1, 1)) for rank in range(4)}) == 4
    assert seeds(5, (2, 2, 1, 1)) == seeds(1, (2, 2, 1, 1))  # of the second pipeline stage, whose cells are others


def test_a_mask_generator_is_never_recomputed_and_every_one_has_its_seed():
    ms.set_seed(0)
    generators = [mask_generator() for _ in range(3)]
    assert len({(one.Seed0, one.Seed1) for one in generators}) == 3
    assert all(one.get_attr_dict()["recompute"] is False for one in generators)
