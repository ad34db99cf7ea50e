"""Random weights: their distribution, and what a seed means; the oracles are the normal distribution, and a loop in
NumPy over the pieces of a weight."""

import os
import threading
from importlib import import_module
from itertools import combinations
from statistics import NormalDist

import mindspore as ms
import numpy as np
import pytest
from mindspore.common.initializer import initializer

from mindgpt import GPT2Config, GPT2ForSequenceClassification
from mindgpt.models.random_weights import PIECE, NormalWeights, UniformWeights

pytestmark = pytest.mark.usefixtures("cpu")

BORDERS = (5, PIECE // 2 + 7)
"""The shape of a weight of three pieces, whose rows begin and end within them; the last is not full."""


def weight(shape=BORDERS, std=0.02, dtype=ms.float32, slice_index=None, shape_of_slice=None):
    """A Tensor as a Parameter gets it, whole or that slice of it which a layout leaves on a device."""
    return initializer(NormalWeights(std), shape, dtype).init_data(slice_index, shape_of_slice)


def values(shape=BORDERS, std=0.02, **slices) -> np.ndarray:
    return weight(shape, std, **slices).asnumpy()


def unlike(one: np.ndarray, other: np.ndarray) -> bool:
    """As far as they go together, their correlation is that of independent values: below 5 standard deviations."""
    size = min(one.size, other.size)
    return abs(np.corrcoef(one.ravel()[:size], other.ravel()[:size])[0, 1]) < 5 / np.sqrt(size)


@pytest.fixture
def no_seed(monkeypatch):
    """As in a process that never called `set_seed`."""
    monkeypatch.setattr(import_module("mindspore.common.seed"), "_GLOBAL_SEED", None)
    np.random.seed()
    yield
    np.random.seed(0)


@pytest.fixture
def four_cards(monkeypatch):
    """As `Tensor.init_data` sees a job of four, which need not be there for it."""
    monkeypatch.setattr(import_module("mindspore.common.tensor"), "get_group_size", lambda: 4)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_normal(seed):
    """Moments, and a chi-square over bins of equal probability; limits are 5 standard deviations of each figure."""
    ms.set_seed(seed)
    std, bins = 0.02, 1000
    drawn = values((1024, 2000), std).astype(np.float64).ravel() / std
    count = drawn.size
    assert abs(drawn.mean()) < 5 / np.sqrt(count)
    assert abs(drawn.std() - 1) < 5 / np.sqrt(2 * count)
    assert abs((drawn**3).mean()) < 5 * np.sqrt(15 / count)
    assert abs((drawn**4).mean() - 3) < 5 * np.sqrt(96 / count)
    edges = [NormalDist().inv_cdf(i / bins) for i in range(1, bins)]
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=bins)
    chi_square = ((counts - count / bins) ** 2 / (count / bins)).sum()
    assert abs(chi_square - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))
    for limit in (-4, 4):
        expected = count * NormalDist().cdf(-4)
        assert abs((drawn * np.sign(limit) > 4).sum() - expected) < 5 * np.sqrt(expected)


def test_values_are_uniform():
    """As above; none lies outside, and the outermost nearly on the bounds."""
    ms.set_seed(4)
    bound, bins = 0.3, 1000
    drawn = (
        initializer(UniformWeights(bound), (1024, 2000), ms.float32).init_data().asnumpy().astype(np.float64).ravel()
    )
    count = drawn.size
    assert -bound <= drawn.min() < -0.9999 * bound
    assert 0.9999 * bound < drawn.max() <= bound
    assert abs(drawn.mean()) < 5 * bound / np.sqrt(3 * count)
    counts = np.histogram(drawn, bins, (-bound, bound))[0]
    chi_square = ((counts - count / bins) ** 2 / (count / bins)).sum()
    assert abs(chi_square - (bins - 1)) < 5 * np.sqrt(2 * (bins - 1))


def test_slices_of_uniform_weights_are_as_wide_as_the_whole(four_cards):
    """MindSpore's Kaiming takes the width of a slice for that of the weight."""
    ms.set_seed(4)
    one, other = (
        initializer(UniformWeights(0.3), (16, 4000), ms.float32).init_data(1, [16, 1000]).asnumpy() for _ in range(2)
    )
    assert 0.299 < np.abs(one).max() <= 0.3
    assert unlike(one, other)


def test_neighbours_and_pieces_are_independent():
    drawn = values((4 * PIECE,), 1.0).reshape(4, PIECE).astype(np.float64)
    pairs = {f"pieces {i} and {j}": (drawn[i], drawn[j]) for i, j in combinations(range(4), 2)}
    pairs |= {f"places {step} apart": (drawn[:, :-step].ravel(), drawn[:, step:].ravel()) for step in (1, 2, 768)}
    for name, (one, other) in pairs.items():
        assert unlike(one, other), name
        assert unlike(one**2, other**2), name


@pytest.mark.parametrize("cores", [None, 1, 2, 3, 64])
def test_values_follow_from_the_seed_alone(cores, monkeypatch):
    """As drawn by a loop in NumPy, whatever the process drew before, and whatever the number of cores."""
    state = np.random.RandomState(7)  # what `set_seed(7)` makes of the global generator
    expected = []
    for shape in (BORDERS, BORDERS, (2, PIECE), (3, 4)):
        number, seed = (int(state.randint(1, 2**63, dtype=np.int64)) for _ in range(2))
        size, sequence = int(np.prod(shape)), np.random.SeedSequence((seed, number))
        streams = [np.random.Generator(np.random.SFC64(s)) for s in sequence.spawn(3)]
        drawn = np.concatenate([stream.standard_normal(PIECE, np.float32) for stream in streams])[:size]
        expected.append(drawn.reshape(shape) * np.float32(0.02))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    weight()
    ms.set_seed(7)
    for array in expected:
        assert values(array.shape).tobytes() == array.tobytes()


def test_an_error_in_a_helping_thread_is_raised(monkeypatch):
    sequence, this_thread, helper_came = np.random.SeedSequence, threading.current_thread(), threading.Event()

    def failing_elsewhere(*arguments, **settings):
        if threading.current_thread() is this_thread:
            assert helper_came.wait(10)
            return sequence(*arguments, **settings)
        helper_came.set()
        raise MemoryError("no room")

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(np.random, "SeedSequence", failing_elsewhere)
    with pytest.raises(MemoryError, match="no room"):
        weight()


def test_half_precision_holds_the_float32_draws_rounded():
    torch = pytest.importorskip("torch", reason="the oracle of bfloat16 is torch")

    def drawn(dtype):
        ms.set_seed(5)
        return weight(dtype=dtype)

    exact = drawn(ms.float32).asnumpy()
    half, brain = drawn(ms.float16), drawn(ms.bfloat16)
    assert (half.dtype, brain.dtype) == (ms.float16, ms.bfloat16)
    assert half.asnumpy().tobytes() == exact.astype(np.float16).tobytes()
    assert np.array_equal(brain.astype(ms.float32).asnumpy(), torch.tensor(exact).bfloat16().float().numpy())


def test_no_weight_is_drawn_before_the_memory_is_there(monkeypatch):
    monkeypatch.setattr(np.random, "SFC64", None)
    lazy = initializer(NormalWeights(0.02), BORDERS, ms.float32)
    assert lazy.has_init
    with pytest.raises(TypeError, match="not callable"):
        lazy.init_data()


@pytest.mark.parametrize("seed", [None, 11])
def test_slices_of_equal_weights_differ(seed, no_seed, four_cards):
    """Queries, keys and values of all layers have one shape, and are cut in one way."""
    if seed is not None:
        ms.set_seed(seed)
    ours = [values((16, PIECE), slice_index=1, shape_of_slice=[4, PIECE]) for _ in range(3)]
    for one, other in combinations(ours, 2):
        assert unlike(one, other)


@pytest.mark.parametrize("seed", [None, 11])
def test_devices_that_hold_the_same_slice_draw_the_same(seed, no_seed, four_cards, monkeypatch):
    def drawn_on_a_device(index, drawn_before):
        if seed is not None:
            ms.set_seed(seed)
        monkeypatch.setattr(ms.Tensor, "delta_seed", 0)  # counts the weights of a process that has no seed
        lazy = initializer(NormalWeights(0.02), (16, PIECE), ms.float32)
        np.random.random(drawn_before)
        return lazy.init_data(index, [4, PIECE]).asnumpy()

    first = drawn_on_a_device(1, 0)
    assert first.shape == (4, PIECE)
    assert np.array_equal(first, drawn_on_a_device(1, 100))
    assert unlike(first, drawn_on_a_device(2, 0))


def test_without_a_seed_every_process_draws_anew(no_seed):
    one = values((3, 4))
    np.random.seed()  # as NumPy does when a process begins
    assert not np.array_equal(one, values((3, 4)))


def test_weights_of_a_model():
    """One seed, one model; another seed, another model; no two weights of one model alike; each with its deviation."""
    config = GPT2Config(num_layers=2, num_heads=2, hidden_size=64, vocab_size=500, seq_length=64, num_labels=64)

    def build(seed):
        ms.set_seed(seed)
        model = GPT2ForSequenceClassification(config)
        return {p.name: p.asnumpy().ravel() for p in model.get_parameters() if p.ndim == 2}

    one, same, other = build(1), build(1), build(2)
    assert len(one) == 15  # two embeddings, six matrices a block, the head
    for name, array in one.items():
        std = 0.02 / 2 if "projection" in name else 0.02  # 1 / sqrt(2 layers)
        assert array.std() == pytest.approx(std, rel=5 / np.sqrt(2 * array.size)), name
        assert np.array_equal(array, same[name]), name
        assert unlike(array, other[name]), name
    for (name, array), (other_name, other_array) in combinations(one.items(), 2):
        assert unlike(array, other_array), (name, other_name)
