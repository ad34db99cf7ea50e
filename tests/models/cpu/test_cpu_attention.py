"""The C++ kernels' attention, with what it needs of x, against NumPy in float64."""

import numpy as np
import pytest

from tests.models.cpu.kernel_calls import (
    EPS,
    count,
    for_all_processors,
    launch,
    layer_norm,
    needs_compiler,
    randoms,
    softmax,
)

pytestmark = needs_compiler
SCALE = np.array([0.3], np.float32)


class Projections:
    """A layer norm, and weights and biases of queries, keys and values."""

    def __init__(self, hidden):
        self.norm = randoms(1, (hidden,), (hidden,))
        self.pairs = [randoms(seed, (hidden, hidden), (hidden,)) for seed in (2, 3, 4)]
        for weight, _ in self.pairs:
            weight /= np.sqrt(hidden)

    def arguments(self, x, names="qkv"):
        pairs = [self.pairs["qkv".index(name)] for name in names]
        return [x, *self.norm, EPS, *(array for pair in pairs for array in pair)]

    def __call__(self, x):
        """x: (T, H) -> q, k, v: (T, H) float64 each"""
        return [layer_norm(x, *self.norm) @ weight.T + bias for weight, bias in self.pairs]


def heads_of(x, heads):
    """(T, N*D) -> (N, T, D)"""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attention(q, k, v, seen):
    """(N, T, D) each, seen (T, T) -> (N, T, D)"""
    return softmax(np.where(seen, 0.3 * q @ k.transpose(0, 2, 1), -np.inf)) @ v


CLOSE = {"rtol": 0, "atol": 1e-5}  # NumPy in float32 is off by up to 7.4e-6


@for_all_processors
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 20), (1, 5)])
def test_attention_of_next_tokens(libraries, option, heads, size):
    """Texts of several lengths, the longest as long as the cache."""
    slots, positions = 70, np.array([[0], [1], [15], [16], [69]], np.int32)
    texts = len(positions)
    (x,) = randoms(5, (texts, heads * size))
    project = Projections(heads * size)
    keys, values = randoms(6, *[(texts * heads * slots, size)] * 2)
    then = [cache.reshape(texts, heads, slots, size).astype(float) for cache in (keys, values)]
    context = np.empty_like(x)
    arguments = [*project.arguments(x), SCALE, keys, values, positions, count(texts)]
    launch(libraries(option), "AttentionOfNextTokens", arguments, [context])
    q, k, v = project(x)
    for text, (position,) in enumerate(positions):
        for cache, new in zip(then, (k, v), strict=True):
            cache[text, :, position] = new[text].reshape(heads, size)
        seen_keys, seen_values = (cache[text, :, : position + 1] for cache in then)
        expected = attention(heads_of(q[text : text + 1], heads), seen_keys, seen_values, True)
        np.testing.assert_allclose(context[text].reshape(heads, size), expected[:, 0], **CLOSE)
    for cache, expected in zip((keys, values), then, strict=True):
        np.testing.assert_allclose(cache.reshape(expected.shape), expected, **CLOSE)


@for_all_processors
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 20)])
@pytest.mark.parametrize("lengths", [(1,), (130,), (3, 1, 50, 9, 8), (17, 100)])
def test_attention_within_texts(libraries, option, heads, size, lengths):
    library, rows, slots = libraries(option), sum(lengths), 150
    (x,) = randoms(7, (rows + 2, heads * size))
    project = Projections(heads * size)
    caches = randoms(8, *[(heads * slots, size)] * 2)
    before = [np.copy(cache) for cache in caches]
    positions = np.concatenate([*(np.arange(length) for length in lengths), [0, 0]]).astype(np.int32)[None]
    context = np.full_like(x, 7)
    arguments = [*project.arguments(x), SCALE, *caches, positions, count(rows)]
    launch(library, "AttentionWithinTexts", arguments, [context])
    q, k, v = project(x)
    first = 0
    for length in lengths:
        part = slice(first, first + length)
        expected = attention(*(heads_of(x[part], heads) for x in (q, k, v)), np.tri(length, dtype=bool))
        np.testing.assert_allclose(heads_of(context[part], heads), expected, **CLOSE)
        first += length
    assert (context[rows:] == 7).all()
    for cache, written, then in zip(caches, (k, v), before, strict=True):
        cache, then = (array.reshape(heads, slots, size) for array in (cache, then))
        np.testing.assert_allclose(cache[:, :rows], heads_of(written[:rows], heads), **CLOSE)
        np.testing.assert_array_equal(cache[:, rows:], then[:, rows:])


@for_all_processors
@pytest.mark.parametrize("lengths", [(1,), (130,), (3, 1, 50, 9, 8)])
def test_keys_and_values_first_and_queries_of_some_tokens_later(libraries, option, lengths):
    """The same as all at once."""
    library, heads, size, slots, rows = libraries(option), 3, 20, 150, sum(lengths)
    (x,) = randoms(9, (rows + 1, heads * size))
    project = Projections(heads * size)
    at_once, kept = ([np.zeros((heads * slots, size), np.float32) for _ in range(2)] for _ in range(2))
    positions = np.concatenate([*(np.arange(length) for length in lengths), [0]]).astype(np.int32)
    context, told, later = np.empty_like(x), np.zeros(1, np.int32), np.full((4, heads * size), 7, np.float32)
    arguments = [*project.arguments(x), SCALE, *at_once, positions[None], count(rows)]
    launch(library, "AttentionWithinTexts", arguments, [context])
    launch(library, "KeepKeysAndValues", [*project.arguments(x, "kv"), *kept, count(rows)], [told])
    assert told[0] == rows
    np.testing.assert_array_equal(kept, at_once)
    some = np.array([rows - 1, 0, rows // 2, rows - 1], np.int32)
    arguments = [*project.arguments(x[some], "q"), SCALE, *kept, some, positions[some], count(3)]
    launch(library, "AttentionOfTokens", arguments, [later])
    np.testing.assert_allclose(later[:3], context[some[:3]], **CLOSE)
    assert (later[3] == 7).all()


MASKS = {
    "none": np.ones((3, 61)),
    "on the right": np.arange(61) < np.array([[61], [40], [1]]),
    "on the left": np.arange(61) >= np.array([[0], [1], [60]]),
    "everywhere": np.random.default_rng(0).random((3, 61)) < 0.4,
}


@for_all_processors
@pytest.mark.parametrize("padding", MASKS)
def test_attention_of_rows(libraries, option, padding):
    mask = MASKS[padding].astype(np.int32)
    (texts, length), heads, size = mask.shape, 3, 20
    (x,) = randoms(10, (texts * length, heads * size))
    project = Projections(heads * size)
    context = np.empty_like(x)
    arguments = [*project.arguments(x), SCALE, mask, count(heads), count(texts * length)]
    launch(libraries(option), "AttentionOfRows", arguments, [context])
    q, k, v = project(x)
    for text in range(texts):
        part = slice(text * length, (text + 1) * length)
        seen = np.tri(length, dtype=bool) & ((mask[text] == 1) | np.eye(length, dtype=bool))  # a token sees itself
        expected = attention(*(heads_of(x[part], heads) for x in (q, k, v)), seen)
        np.testing.assert_allclose(heads_of(context[part], heads), expected, **CLOSE)


def test_a_text_does_not_depend_on_those_before_it(libraries):
    """To the last bit, and were they not numbers."""
    project, contexts = Projections(20), []
    for before in (0, 3, 40):
        x = np.concatenate([np.full((before, 20), np.nan, np.float32), *randoms(11, (90, 20))])
        positions = np.concatenate([np.arange(before), np.arange(90)]).astype(np.int32)[None]
        caches, context = [np.zeros((130, 20), np.float32) for _ in range(2)], np.empty_like(x)
        arguments = [*project.arguments(x), SCALE, *caches, positions, count(before + 90)]
        launch(libraries(), "AttentionWithinTexts", arguments, [context])
        contexts.append(context[before:])
    np.testing.assert_array_equal(contexts[0], contexts[1])
    np.testing.assert_array_equal(contexts[0], contexts[2])
