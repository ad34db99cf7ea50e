"""Beam search against transformers' `generate`, on a network that was trained; beam sampling against its definition."""

import numpy as np
import pytest

from mindgpt.generation import GenerationSettings
from mindgpt.generation.beam_search import Search, log_softmax

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SPACE, NEWLINE = 32, 10


def searched(generator, prompts, settings):
    """All rows, in batches of four prompts: with four beams, one graph."""
    settings = GenerationSettings(**settings)
    groups = [prompts[start : start + 4] for start in range(0, len(prompts), 4)]
    return [row for group in groups for row in generator.generate(group, settings)]


@pytest.mark.long
def test_fifty_prompts_equal_transformers(each_generator, continued_by_transformers, prompts):
    settings = {"num_beams": 4, "max_new_tokens": 24, "eos_token_id": NEWLINE}
    ours = searched(each_generator, prompts, settings)
    assert ours == [continued_by_transformers(prompt, **settings)[0] for prompt in prompts]
    assert len({len(row) for row in ours}) > 3
    greedy = each_generator.generate(prompts[:16], GenerationSettings(max_new_tokens=24, eos_token_id=NEWLINE))
    assert greedy != ours[:16]


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": True, "num_return_sequences": 4},
        {"early_stopping": "never", "num_return_sequences": 4},
        {"early_stopping": "never", "length_penalty": 0.0, "num_return_sequences": 4},
        {"length_penalty": 2.0, "num_return_sequences": 3},
        {"length_penalty": -1.0, "num_return_sequences": 2},
        {"eos_token_id": [SPACE, NEWLINE, ord("e")], "num_return_sequences": 4},
        {"eos_token_id": None, "num_return_sequences": 4},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
        {"max_new_tokens": None, "max_length": 70, "forced_eos_token_id": SPACE},
    ],
    ids=str,
)
def test_settings_equal_transformers(generator, continued_by_transformers, prompts, settings):
    settings = {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": SPACE} | settings
    some = prompts[:12]
    ours = searched(generator, some, settings)
    assert ours == [row for prompt in some for row in continued_by_transformers(prompt, **settings)]


def test_a_batch_equals_transformers_with_padding_on_the_left(generator, peer, prompts):
    some, pad = prompts[:4], 255
    settings = {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": SPACE}
    longest = max(map(len, some))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in some])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some])
    with torch.no_grad():
        theirs = peer.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=pad, **settings)[:, longest:]
    ours = searched(generator, some, settings)
    assert [row + [pad] * (theirs.shape[1] - len(row)) for row in ours] == theirs.tolist()


def test_stop_ends_beams(generator, continued_by_transformers, prompts):
    """To end where a token comes up is what an end-of-text token does, but for how many candidates are looked at."""
    rules = {"num_beams": 4, "max_new_tokens": 12}
    ours = generator.generate(prompts[:4], GenerationSettings(**rules), stop=lambda _, new: new[-1] == SPACE)
    assert ours == [continued_by_transformers(prompt, **rules, eos_token_id=SPACE)[0] for prompt in prompts[:4]]


def test_beams_of_every_text_find_the_best_one():
    """With as many beams as texts, the search is exhaustive: the best text of 4 tokens over a vocabulary of 3."""
    random = np.random.default_rng(0)
    tables = [log_softmax(random.standard_normal((3,) * step + (3,)).astype(np.float32)) for step in range(4)]
    settings = GenerationSettings(num_beams=81, num_return_sequences=5)
    search = Search([7], 5, settings, random, None)
    while search.running:
        new = [tuple(beam.text[1:]) for beam in search.running]
        search.advance(np.stack([tables[len(text)][text] for text in new]))
    texts = sorted(np.ndindex(3, 3, 3, 3), key=lambda text: -sum(tables[i][text[: i + 1]] for i in range(4)))
    assert search.texts() == [list(text) for text in texts[:5]]


def test_candidates_are_drawn_without_replacement():
    """Which two of five tokens beam sampling looks at first: the probability of every ordered pair, by counting."""
    random = np.random.default_rng(0)
    probabilities = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
    settings = GenerationSettings(num_beams=2, do_sample=True)
    draws, counts = 5000, np.zeros((5, 5))
    scores = np.stack([np.log(probabilities), np.full(5, -np.inf)]).astype(np.float32)
    search = Search([1], 9, settings, random, None)
    for _ in range(draws):
        (_, first), (_, second), *rest = search._candidates(scores)
        counts[first, second] += 1
        assert len({first, second, *(token for _, token in rest)}) == 4
    expected = draws * np.outer(probabilities, probabilities) / (1 - probabilities)[:, None]
    pairs = ~np.eye(5, dtype=bool)
    assert counts[~pairs].sum() == 0
    statistic = ((counts - expected) ** 2 / expected)[pairs].sum()
    assert statistic < 19 + 4 * np.sqrt(2 * 19)


def test_beam_sampling_of_one_candidate_is_beam_search(generator, prompts):
    """Where there are no more tokens to draw from than candidates are drawn, all of them are looked at."""
    rules = {"num_beams": 2, "max_new_tokens": 1, "num_return_sequences": 2}
    drawn = generator.generate(prompts[:8], GenerationSettings(**rules, do_sample=True, top_k=2, seed=0))
    searched_rows = generator.generate(prompts[:8], GenerationSettings(**rules))
    pairs = [sorted(map(tuple, rows[i : i + 2])) for rows in (drawn, searched_rows) for i in range(0, 16, 2)]
    assert pairs[:8] == pairs[8:]
