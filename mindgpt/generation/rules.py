"""The rules of generation: pure NumPy functions from logits to logits.

Logits are (rows, V) float32, one row per text; a token that is ruled out has the logit -inf. Every function returns new
logits (or the given ones where nothing changes), and what it does to a row depends on that row alone. The rules are
those of the logits processors of Hugging Face transformers, and so is their order. "Text" means the ids of a row so
far: the prompt and then the new tokens, without padding.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mindgpt.generation.settings import GenerationSettings

Texts = Sequence[Sequence[int] | np.ndarray]


def process(
    logits: np.ndarray,
    texts: Texts,
    prompt_lengths: Sequence[int],
    limits: Sequence[int],
    settings: GenerationSettings,
) -> np.ndarray:
    """The rules that hold however tokens are chosen: penalties, bans, the least length, forced tokens.

    Args:
        logits: (rows, V) float32, at the last token of each text.
        texts: each row's ids so far, prompt included, without padding.
        prompt_lengths: how many of them are the prompt's.
        limits: the greatest length of each row's text, prompt included.
        settings: which rules to apply.

    Returns:
        (rows, V) float32.
    """
    if settings.repetition_penalty != 1:
        logits = penalise_repetition(logits, texts, settings.repetition_penalty)
    if settings.presence_penalty != 0 or settings.frequency_penalty != 0:
        new_tokens = [text[length:] for text, length in zip(texts, prompt_lengths, strict=True)]
        logits = penalise_frequency(logits, new_tokens, settings.presence_penalty, settings.frequency_penalty)
    if settings.no_repeat_ngram_size:
        logits = ban_repeated_ngrams(logits, texts, settings.no_repeat_ngram_size)
    if settings.bad_words_ids:
        logits = ban_sequences(logits, texts, settings.bad_words_ids)
    lengths = np.array([len(text) for text in texts])
    if settings.min_length:
        logits = ban_in_rows(logits, lengths < settings.min_length, settings.eos_token_ids)
    if settings.min_new_tokens:
        logits = ban_in_rows(logits, lengths - prompt_lengths < settings.min_new_tokens, settings.eos_token_ids)
    if settings.forced_bos_token_id is not None:
        logits = force_in_rows(logits, lengths == 1, (settings.forced_bos_token_id,))
    if settings.forced_eos_token_id is not None:
        logits = force_in_rows(logits, lengths == np.asarray(limits) - 1, settings.forced_eos_token_ids)
    if settings.suppress_tokens:
        logits = ban_in_rows(logits, np.ones(len(logits), np.bool_), settings.suppress_tokens)
    return logits


def warp(logits: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """The rules that shape the distribution to sample from: temperature, top-k, top-p, min-p, typical, in this order.

    In beam sampling each of them leaves one token more than there are ends of text (two if there are none), so that a
    text can go on whatever is sampled.

    logits: (rows, V) float32 -> (rows, V) float32
    """
    least = max(2, len(settings.eos_token_ids) + 1) if settings.num_beams > 1 else 1
    if settings.temperature != 1:
        logits = divide(logits, settings.temperature)
    if settings.top_k is not None:
        logits = keep_top_k(logits, max(settings.top_k, least))
    if settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p, least)
    if settings.min_p is not None:
        logits = keep_min_p(logits, settings.min_p, least)
    if settings.typical_p < 1:
        logits = keep_typical(logits, settings.typical_p, least)
    return logits


def divide(logits: np.ndarray, temperature: float) -> np.ndarray:
    """logits / temperature. In rows where float32 cannot hold the highest quotient, the differences from it: softmax
    makes the same of them.

    Args:
        logits: (rows, V).
        temperature: above 0.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotients = logits / np.float32(temperature)
        highest = logits.max(axis=-1, keepdims=True)
        overflown = np.isfinite(highest) & ~np.isfinite(highest / np.float32(temperature))
        if overflown.any():
            differences = (logits.astype(np.float64) - highest) / temperature
            quotients = np.where(overflown, differences.astype(np.float32), quotients)
    return quotients


def penalise_repetition(logits: np.ndarray, texts: Texts, penalty: float) -> np.ndarray:
    """Divide the positive logits of tokens that the text contains by `penalty`, multiply the negative ones by it.

    CTRL, Keskar et al. 2019, section 4.1, in the form of transformers: the paper divides negative logits too, which
    makes those tokens likelier.

    Args:
        logits: (rows, V).
        texts: each row's ids so far. The prompt counts, padding must not be in it.
        penalty: above 1 discourages repetition, below 1 encourages it.
    """
    logits = logits.copy()
    for row, text in zip(logits, texts, strict=True):
        ids = np.asarray(text, np.int64)
        seen = row[ids]
        row[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return logits


def penalise_frequency(logits: np.ndarray, new_tokens: Texts, presence: float, frequency: float) -> np.ndarray:
    """Take `presence` off the logit of each token that came up, and `frequency` as often as it did.

    The formula of OpenAI's API: logit[j] - count[j] * frequency - (count[j] > 0) * presence. Below 0 they encourage.
    The prompt does not count.

    Args:
        logits: (rows, V).
        new_tokens: each row's ids after the prompt.
    """
    logits = logits.copy()
    for row, text in zip(logits, new_tokens, strict=True):
        ids, counts = np.unique(np.asarray(text, np.int64), return_counts=True)
        row[ids] -= (counts * frequency + presence).astype(np.float32)
    return logits


def ban_repeated_ngrams(logits: np.ndarray, texts: Texts, size: int) -> np.ndarray:
    """Rule out the tokens that would end a sequence of `size` tokens which the text, prompt included, has already.

    Paulus et al. 2017 (section 2.5), for trigrams.
    """
    logits = logits.copy()
    for row, text in zip(logits, texts, strict=True):
        if len(text) >= size:
            ids = np.asarray(text, np.int64)
            windows = np.lib.stride_tricks.sliding_window_view(ids, size)  # (sequences, size)
            begun = ids[len(ids) + 1 - size :]  # the last size - 1 tokens, which the next one would complete
            row[windows[(windows[:, :-1] == begun).all(axis=1), -1]] = -np.inf
    return logits


def ban_sequences(logits: np.ndarray, texts: Texts, sequences: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Rule out the tokens that would complete one of `sequences` at the end of a text."""
    logits = logits.copy()
    for beginnings, last_tokens in _by_length(sequences):
        size = beginnings.shape[1]
        for row, text in zip(logits, texts, strict=True):
            if len(text) >= size:
                begun = np.asarray(text[len(text) - size :], np.int64)
                row[last_tokens[(beginnings == begun).all(axis=1)]] = -np.inf
    return logits


@lru_cache(maxsize=8)
def _by_length(sequences: tuple[tuple[int, ...], ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """All but the last token, and the last, of the sequences of each length: (n, length - 1) and (n,) int64 each."""
    lengths = sorted(set(map(len, sequences)))
    arrays = [np.array([ids for ids in sequences if len(ids) == length], np.int64) for length in lengths]
    return [(array[:, :-1], array[:, -1]) for array in arrays]


def ban_in_rows(logits: np.ndarray, rows: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Rule out the tokens `ids` in those rows for which `rows`, (rows,) bool, is true."""
    if not ids or not rows.any():
        return logits
    logits = logits.copy()
    logits[np.ix_(rows, ids)] = -np.inf
    return logits


def force_in_rows(logits: np.ndarray, rows: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Rule out all tokens but `ids`, which become equally likely, in those rows for which `rows` is true."""
    if not rows.any():
        return logits
    logits = logits.copy()
    logits[rows] = -np.inf
    logits[np.ix_(rows, ids)] = 0
    return logits


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k likeliest tokens of each row, and those as likely as the k-th. k of V and more: all.

    Fan et al. 2018.
    """
    if k >= logits.shape[-1]:
        return logits
    return _without(logits, logits < _kth_highest(logits, k))


def keep_top_p(logits: np.ndarray, p: float, least: int = 1) -> np.ndarray:
    """Keep the fewest likeliest tokens of each row whose probabilities add up to p: the one that crosses p stays.

    Nucleus sampling, Holtzman et al. 2020, section 3.1. Tokens as likely as the least likely one that is kept stay
    too. transformers keeps some of these equals and drops others, as its sort, which is not stable, has put them;
    without equals the outcome is the same.

    Args:
        logits: (rows, V).
        p: above 0; 1 keeps all.
        least: how many tokens stay whatever their probability.
    """
    if p >= 1:
        return logits
    lowest_kept = np.empty((len(logits), 1), np.float32)
    for row, choice in enumerate(logits):
        choice = choice[_possible(choice)]
        weights = _weights(choice)
        total = weights.sum()
        # The tokens below this weight have less than 1 - p together: they are not needed, nor worth sorting.
        candidates = np.sort(choice[weights >= (1 - p) * total / len(choice)])[::-1]
        likelier = np.cumsum(_weights(candidates))[:-1]  # what has been gathered before each candidate but the first
        lowest_kept[row] = candidates[np.searchsorted(likelier, p * total)]
    return _without(logits, logits < np.minimum(lowest_kept, _kth_highest(logits, least)))


def keep_min_p(logits: np.ndarray, min_p: float, least: int = 1) -> np.ndarray:
    """Keep the tokens of each row that are at least `min_p` times as likely as the likeliest.

    Min-p sampling, Nguyen et al. 2024, section 3.

    Args:
        logits: (rows, V).
        min_p: 0 keeps all, 1 the likeliest alone.
        least: how many tokens stay whatever their probability; those as likely as the last of them stay too.
    """
    if min_p == 0:
        return logits
    # In float64: far from 0, where GPT-2's logits are, the steps of float32 are too wide for the bar.
    lowest_kept = logits.max(axis=-1, keepdims=True).astype(np.float64) + np.log(min_p)
    return _without(logits, logits < np.minimum(lowest_kept, _kth_highest(logits, least)))


def keep_typical(logits: np.ndarray, mass: float, least: int = 1) -> np.ndarray:
    """Keep the fewest tokens of each row that together have the probability `mass`, the most typical ones first.

    A token is the more typical the nearer its information, -log p, is to the row's entropy (locally typical sampling,
    Meister et al. 2022). Tokens as typical as the last one that is kept stay too. The entropy and the sums are float64:
    transformers, whose are those of the logits' dtype, keeps a few others where float32 logits are nearly flat
    or the vocabulary is large.

    Args:
        logits: (rows, V).
        mass: above 0; 1 keeps all.
        least: how many tokens, the most typical ones, stay whatever their probability.
    """
    if mass >= 1:
        return logits
    removed = np.zeros(logits.shape, np.bool_)
    for row, choice in enumerate(logits):
        ids = _possible(choice)
        weights = _weights(choice[ids])
        probabilities = weights / weights.sum()
        information = np.log(weights.sum()) - (choice[ids].astype(np.float64) - choice.max())
        distances = np.abs(information - probabilities @ information)
        removed[row, ids[distances > _typical_distance(distances, probabilities, mass, least)]] = True
    return _without(logits, removed)


def _typical_distance(distances: np.ndarray, probabilities: np.ndarray, mass: float, least: int) -> float:
    """How far the last token that is kept is from the entropy; both arrays: (tokens,)."""
    # Sorting is the slow part. The likelier tokens, which have more than `mass` together, reach it at a distance that
    # all tokens reach before: only those within it need to be sorted.
    likelier = np.flatnonzero(probabilities >= (1 - mass) / len(probabilities))
    order = likelier[np.argsort(distances[likelier])]
    reached = min(np.searchsorted(np.cumsum(probabilities[order]), mass), len(order) - 1)
    within = np.flatnonzero(distances <= distances[order[reached]])
    order = within[np.argsort(distances[within])]
    last = min(np.searchsorted(np.cumsum(probabilities[order]), mass), len(order) - 1)
    nearest = min(least, len(distances)) - 1
    return max(distances[order[last]], np.partition(distances, nearest)[nearest])


def _without(logits: np.ndarray, removed: np.ndarray) -> np.ndarray:
    return np.where(removed, np.float32(-np.inf), logits)


def _possible(choice: np.ndarray) -> np.ndarray:
    """The tokens of one row, (V,), that have not been ruled out: there may be few, and exp(-inf) is slow."""
    return np.flatnonzero(choice > -np.inf)


def _weights(choice: np.ndarray) -> np.ndarray:
    """Probabilities of the tokens of a row but for a common factor: float64, 1 for the likeliest."""
    return np.exp(choice.astype(np.float64) - choice.max())


def _kth_highest(logits: np.ndarray, k: int) -> np.ndarray:
    """The k-th highest logit of each row, (rows, 1); the lowest if there are fewer."""
    rows, vocab_size = logits.shape
    if k == 1:
        return logits.max(axis=-1, keepdims=True)
    groups = vocab_size // 64
    if k > groups // 4:
        place = max(vocab_size - k, 0)
        return np.partition(logits, place, axis=-1)[:, place, None]
    # Ten times as fast, where k is small: k groups hold a logit as high as the k-th of the groups' maxima, so that none
    # below it can be the k-th of the row, and few are left to be sorted.
    maxima = logits[:, : groups * 64].reshape(rows, 64, groups).max(axis=1)
    bounds = np.partition(maxima, groups - k, axis=-1)[:, groups - k]
    return np.array([[np.sort(row[row >= bound])[-k]] for row, bound in zip(logits, bounds, strict=True)])
