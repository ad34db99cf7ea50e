"""The rules on logits against transformers' processors, and the draws against the exact distribution."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.generation.sampling import (
    GenerationSettings,
    draw,
    keep_top_k,
    keep_top_p,
    next_tokens,
    penalise_repetition,
    softmax,
)
from mindgpt.models.gpt2.gpt2_config import GPT2Config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS, VOCAB = 5, 1000


def some_logits(seed=0, scale=4.0):
    return (np.random.default_rng(seed).standard_normal((ROWS, VOCAB)) * scale).astype(np.float32)


def processed(processor, logits, texts=None):
    ids = torch.zeros((len(logits), 1), dtype=torch.long) if texts is None else torch.tensor(texts)
    return processor(ids, torch.tensor(logits)).numpy()


def assert_same(ours, theirs):
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 50, VOCAB - 1, VOCAB, VOCAB + 5])
def test_top_k_equals_transformers(k):
    logits = some_logits()
    assert_same(keep_top_k(logits, k), processed(transformers.TopKLogitsWarper(k), logits))


def test_top_k_keeps_ties_as_transformers_does():
    logits = np.array([[1, 3, 2, 2, 2, 0]], np.float32)
    assert_same(keep_top_k(logits, 2), processed(transformers.TopKLogitsWarper(2), logits))
    assert np.isfinite(keep_top_k(logits, 2)).sum() == 4


def test_top_k_of_zero_keeps_all():
    np.testing.assert_array_equal(keep_top_k(some_logits(), 0), some_logits())


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_top_p_equals_transformers(p, scale):
    logits = some_logits(scale=scale)
    assert_same(keep_top_p(logits, p), processed(transformers.TopPLogitsWarper(p), logits))


def test_top_p_keeps_the_token_that_crosses_p():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    assert np.isfinite(keep_top_p(logits, 0.6)).tolist() == [[True, True, False, False]]
    assert np.isfinite(keep_top_p(logits, 0.01)).tolist() == [[True, False, False, False]]
    assert np.isfinite(keep_top_p(logits, 1.0)).all()


def test_top_p_after_top_k_never_brings_a_token_back():
    logits = keep_top_k(some_logits(), 5)
    theirs = processed(transformers.TopPLogitsWarper(0.9), logits)
    assert_same(keep_top_p(logits, 0.9), theirs)
    assert np.isneginf(keep_top_p(logits, 0.9999999)).sum(axis=-1).min() >= VOCAB - 5


@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    logits = some_logits()
    texts = np.random.default_rng(1).integers(0, VOCAB, (ROWS, 30))
    texts[:, 5] = texts[:, 6]  # a token that occurs twice is penalised once
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    kept = logits.copy()
    assert_same(penalise_repetition(logits, texts.tolist(), penalty), processed(processor, logits, texts))
    np.testing.assert_array_equal(logits, kept)


def test_greedy_takes_the_highest_after_the_penalty():
    logits = np.array([[2.0, 1.5, -1.0], [2.0, 1.5, -1.0]], np.float32)
    texts = [[0], [2]]
    settings = GenerationSettings(repetition_penalty=2.0)
    assert next_tokens(logits, texts, settings, []).tolist() == [1, 0]


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.8}, {"temperature": 2.0, "top_k": 6, "top_p": 0.7}],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers(changes):
    draws = 20000
    logits = np.random.default_rng(3).standard_normal((1, 8)).astype(np.float32)
    settings = GenerationSettings(do_sample=True, **changes)
    theirs = processed(transformers.TemperatureLogitsWarper(settings.temperature), logits)
    if settings.top_k:
        theirs = processed(transformers.TopKLogitsWarper(settings.top_k), theirs)
    if settings.top_p < 1:
        theirs = processed(transformers.TopPLogitsWarper(settings.top_p), theirs)
    expected = torch.tensor(theirs).double().softmax(-1)[0].numpy() * draws

    stream = np.random.default_rng(4)
    tokens = next_tokens(np.repeat(logits, draws, 0), [[]] * draws, settings, [stream] * draws)
    counts = np.bincount(tokens, minlength=8)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    degrees = possible.sum() - 1
    assert chi_square(counts[possible], expected[possible]) < degrees + 4 * np.sqrt(2 * degrees)  # about 4 sigma


def test_draw_inverts_the_cumulative_distribution_and_never_meets_a_removed_token():
    probabilities = np.array([[0.0, 0.25, 0.0, 0.75, 0.0]])
    uniforms = [0.0, 0.2499, 0.25, 0.9999, np.nextafter(1.0, 0.0)]
    assert [draw(probabilities, np.array([u]))[0] for u in uniforms] == [1, 1, 3, 3, 3]


def test_softmax_is_stable_and_exact():
    logits = np.array([[1000.0, 999.0, -np.inf]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"max_length": 0}, "max_length"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": None}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"seed": -1}, "seed"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"max_new_tokens": True}, "max_new_tokens"),
    ],
    ids=str,
)
def test_settings_that_are_refused(changes, named):
    with pytest.raises(UserError, match=rf"^generation: {named}: must be [^\n]*$"):
        GenerationSettings(**changes)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as error:
        GenerationSettings(top_k=-1, top_p=2, temperature=0)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["top_k", "temperature", "top_p"]


def test_settings_come_from_the_config_and_changes_go_before_it():
    config = GPT2Config(do_sample=True, top_k=7, top_p=0.9, temperature=0.8, repetition_penalty=1.1, eos_token_id=3)
    settings = GenerationSettings.from_config(config, seed=5, top_k=9)
    assert settings == GenerationSettings(None, None, True, 0.8, 9, 0.9, 1.1, 3, 5)
    config = GPT2Config(max_decode_length=100, max_new_tokens=20)
    assert GenerationSettings.from_config(config).max_new_tokens == 20
    changed = GenerationSettings.from_config(config, max_length=50)
    assert (changed.max_length, changed.max_new_tokens) == (50, None)
    with pytest.raises(UserError, match="top_kk: no such setting; did you mean 'top_k'"):
        GenerationSettings.from_config(config, top_kk=1)
