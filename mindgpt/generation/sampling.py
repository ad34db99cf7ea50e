"""From logits to the next token: the rules of `rules.py`, then the likeliest token or a sample."""

from collections.abc import Sequence

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.generation.rules import Texts, process, warp
from mindgpt.generation.settings import GenerationSettings


def sample(logits: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One token per row from softmax(logits), by inverting the cumulative distribution.

    Args:
        logits: (rows, V); tokens whose logit is -inf are never sampled.
        uniforms: (rows,) in [0, 1), one for each row.

    Returns:
        (rows,) int64 ids.
    """
    ids = np.empty(len(logits), np.int64)
    for row, (choice, uniform) in enumerate(zip(logits, uniforms, strict=True)):
        possible = np.flatnonzero(choice > -np.inf)
        cumulative = np.cumsum(np.exp(choice[possible].astype(np.float64) - choice.max()))
        # u * total may round up to the total, after which there is no token
        point = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0))
        ids[row] = possible[np.searchsorted(cumulative, point, side="right")]
    return ids


def next_tokens(
    logits: np.ndarray,
    texts: Texts,
    prompt_lengths: Sequence[int],
    limits: Sequence[int],
    settings: GenerationSettings,
    streams: Sequence[np.random.Generator],
) -> np.ndarray:
    """The next token of each text.

    Args:
        logits: (rows, V) float32, at the last token of each text.
        texts: each row's ids so far, prompt included, without padding.
        prompt_lengths: how many of them are the prompt's.
        limits: the greatest length of each row's text, prompt included.
        settings: how to choose.
        streams: each row's random stream, from which one number is taken; unused when greedy.

    Returns:
        (rows,) int64 ids.

    Raises:
        UserError: the rules leave a row no token.
    """
    logits = process(logits, texts, prompt_lengths, limits, settings)
    check_choice(logits)
    if not settings.samples:
        return logits.argmax(axis=-1)
    return sample(warp(logits, settings), np.array([stream.random() for stream in streams]))


def check_choice(logits: np.ndarray) -> None:
    """Raise `UserError` if a row of processed logits, (rows, V), has no token left."""
    if np.isneginf(logits.max(axis=-1)).any():
        raise UserError(
            "generation: the rules leave no token to go on with: suppress_tokens, bad_words_ids, no_repeat_ngram_size, "
            "min_length and min_new_tokens together rule out the whole vocabulary. Relax one of them."
        )
