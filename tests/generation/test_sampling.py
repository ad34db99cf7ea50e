"""The choice of a token: draws against the exact distribution, random streams, greedy."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.generation.requests import random_streams
from mindgpt.generation.sampling import next_tokens, sample
from mindgpt.generation.settings import GenerationSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DRAWS, VOCAB = 20_000, 12


def exact_probabilities(logits, text, settings):
    """float64, by the processors of transformers and torch's softmax."""
    steps = [
        (settings.repetition_penalty != 1, transformers.RepetitionPenaltyLogitsProcessor, settings.repetition_penalty),
        (settings.no_repeat_ngram_size, transformers.NoRepeatNGramLogitsProcessor, settings.no_repeat_ngram_size),
        (settings.temperature != 1, transformers.TemperatureLogitsWarper, settings.temperature),
        (settings.top_k is not None, transformers.TopKLogitsWarper, settings.top_k),
        (settings.top_p < 1, transformers.TopPLogitsWarper, settings.top_p),
        (settings.min_p is not None, transformers.MinPLogitsWarper, settings.min_p),
        (settings.typical_p < 1, transformers.TypicalLogitsWarper, settings.typical_p),
    ]
    scores = torch.tensor(logits).double()
    for applies, processor, value in steps:
        scores = processor(value)(torch.tensor([text]), scores) if applies else scores
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"typical_p": 0.6},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2, "temperature": 2.0},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(changes, fits):
    """Each of the 20,000 draws from a random stream of its own, as the engine has them."""
    logits, text = np.random.default_rng(3).permutation(np.linspace(-1, 2, VOCAB, dtype=np.float32))[None], [2, 5, 9, 2]
    settings = GenerationSettings(do_sample=True, **changes)
    streams = random_streams(4, None, DRAWS // 10, 10)
    many = np.repeat(logits, DRAWS, 0)
    tokens = next_tokens(many, [text] * DRAWS, [2] * DRAWS, [9] * DRAWS, settings, streams)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert fits(counts, exact_probabilities(logits, text, settings))
    # and the test can tell this distribution from its neighbours
    for other in ({"temperature": settings.temperature * 1.3}, {"top_k": 3}):
        assert not fits(counts, exact_probabilities(logits, text, settings.changed(**other)))
    if changes:
        assert not fits(counts, exact_probabilities(logits, text, GenerationSettings()))


def test_random_streams_are_independent_of_one_another(fits):
    """Two numbers of a stream, and numbers of streams that are neighbours by seed, prompt or copy: all of the unit
    square alike."""
    seeds, prompts, copies = 20, 40, 25
    numbers = [[stream.random(2) for stream in random_streams(seed, None, prompts, copies)] for seed in range(seeds)]
    numbers = np.reshape(numbers, (seeds, prompts, copies, 2))
    first, second = numbers[..., 0], numbers[..., 1]
    pairs = [(first, second)]
    for axis in range(3):
        here, there = (np.delete(numbers, edge, axis) for edge in (-1, 0))
        pairs += [(here[..., 0], there[..., 0]), (here[..., 1], there[..., 0])]
    for one, other in pairs:
        cells = (one.ravel() * 10).astype(int) * 10 + (other.ravel() * 10).astype(int)
        assert fits(np.bincount(cells, minlength=100), np.full(100, 0.01))


def test_a_draw_inverts_the_cumulative_distribution_and_never_meets_a_removed_token():
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[0.0, 0.25, 0.0, 0.75, 0.0]], np.float32)) + 50
    uniforms = [0.0, 0.2499, 0.2501, 0.9999, np.nextafter(1.0, 0.0)]
    assert [sample(logits, np.array([u]))[0] for u in uniforms] == [1, 1, 3, 3, 3]


def some_rows(rows=8, vocab=300):
    random = np.random.default_rng(1)
    logits = (random.standard_normal((rows, vocab)) * 2).astype(np.float32)
    return logits, [random.integers(0, vocab, 3 + row).tolist() for row in range(rows)]


def drawn(logits, texts, settings, rows, steps=20):
    """`steps` tokens for these rows, whose streams are named by the seed and the row's number."""
    streams = [np.random.default_rng([settings.seed, row]) for row in rows]
    texts = [list(texts[row]) for row in rows]
    lengths = [len(text) for text in texts]
    for _ in range(steps):
        tokens = next_tokens(logits[rows], texts, lengths, [99] * len(rows), settings, streams)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
    return texts


def test_equal_seeds_draw_equal_texts_whatever_the_batch():
    logits, texts = some_rows()
    settings = GenerationSettings(do_sample=True, seed=3, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.3)
    together = drawn(logits, texts, settings, list(range(8)))
    assert together == drawn(logits, texts, settings, list(range(8)))
    for rows in ([0], [5], [7, 2, 4]):
        assert drawn(logits, texts, settings, rows) == [together[row] for row in rows]
    others = drawn(logits, texts, settings.changed(seed=4), list(range(8)))
    assert all(ours != theirs for ours, theirs in zip(together, others, strict=True))


def test_greedy_takes_the_likeliest_token_after_the_rules_and_needs_no_stream():
    logits = np.array([[2.0, 1.5, -1.0], [2.0, 1.5, -1.0], [2.0, 1.5, -1.0]], np.float32)
    texts, lengths = [[0], [2], [2, 0, 2]], [1, 1, 3]
    settings = GenerationSettings(repetition_penalty=2.0, no_repeat_ngram_size=2, temperature=9.0, top_k=1)
    assert next_tokens(logits, texts, lengths, [9] * 3, settings, []).tolist() == [1, 0, 1]


@pytest.mark.parametrize("do_sample", [False, True])
def test_rules_that_leave_no_token_are_reported(do_sample):
    logits, texts = some_rows(2, 4)
    texts = [[index % 4 for index in text] for text in texts]
    settings = GenerationSettings(suppress_tokens=range(3), eos_token_id=3, min_new_tokens=1, do_sample=do_sample)
    streams = [np.random.default_rng(0)] * 2
    with pytest.raises(UserError, match="leave no token.*suppress_tokens.*Relax one"):
        next_tokens(logits, texts, [len(text) for text in texts], [9, 9], settings, streams)
    assert next_tokens(logits, texts, [1, 1], [9, 9], settings, streams).tolist() == [3, 3]
