"""From logits to the next token: the settings of generation, and its rules as pure NumPy functions.

Logits are (rows, V) float32, one row per text; a removed token has the logit -inf. The rules are those of the logits
processors of Hugging Face transformers, in their order: repetition penalty, temperature, top-k, top-p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.config.model import GPT2Section
from mindgpt.config.section import nearest, shown


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are continued.

    Args:
        max_new_tokens: tokens to add at most; goes before `max_length`.
        max_length: tokens of prompt and continuation at most. With neither, a text may fill the context window, where
            every text ends.
        do_sample: draw the next token from the distribution; False takes the likeliest (greedy).
        temperature: logits are divided by it before drawing.
        top_k: draw among this many likeliest tokens; 0 is all.
        top_p: draw among the fewest likeliest tokens that together have at least this probability (nucleus sampling,
            Holtzman et al. 2020); 1 is all.
        repetition_penalty: makes tokens of the text so far less likely if above 1 (CTRL, Keskar et al. 2019, 4.1).
        eos_token_id: a text ends with this token; None: no token ends it.
        seed: equal seeds draw equal texts, whatever batch a text is in; None draws anew each time.

    `temperature`, `top_k` and `top_p` mean something only when drawing.

    Raises:
        UserError: values that are not allowed, all of them at once.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    eos_token_id: int | None = None
    seed: int | None = None

    def __post_init__(self):
        whole = {"max_new_tokens": 1, "max_length": 1, "top_k": 0, "eos_token_id": 0, "seed": 0}
        optional = [name for name in whole if name != "top_k"]
        problems = [
            f"{name}: must be a whole number, {least} or more, not {shown(getattr(self, name))}"
            for name, least in whole.items()
            if not (name in optional and getattr(self, name) is None) and not _is_whole(getattr(self, name), least)
        ]
        for name in ("temperature", "repetition_penalty"):
            if not _is_positive(getattr(self, name)):
                hint = "; do_sample=False takes the likeliest token" if name == "temperature" else ""
                problems.append(f"{name}: must be a number above 0, not {shown(getattr(self, name))}{hint}")
        if not (_is_positive(self.top_p) and self.top_p <= 1):
            problems.append(f"top_p: must be above 0 and at most 1 (which keeps all), not {shown(self.top_p)}")
        if not isinstance(self.do_sample, (bool, np.bool_)):
            problems.append(f"do_sample: must be True or False, not {shown(self.do_sample)}")
        if problems:
            raise UserError("\n".join(f"generation: {problem}" for problem in problems))

    @classmethod
    def from_config(cls, config: GPT2Section, **changes: Any) -> "GenerationSettings":
        """The settings that a model's config names (`max_decode_length` there is `max_length` here).

        Args:
            config: the model's config.
            changes: settings to replace. A `max_length` replaces the config's `max_new_tokens` too.

        Raises:
            UserError: an unknown setting, or a value that is not allowed.
        """
        settings = cls(
            max_new_tokens=config.max_new_tokens,
            max_length=config.max_decode_length,
            do_sample=config.do_sample,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            eos_token_id=config.eos_token_id,
        )
        return settings.changed(**changes)

    def changed(self, **changes: Any) -> "GenerationSettings":
        """These settings with `changes` in place; see `from_config`."""
        known = [field.name for field in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise UserError(
                "\n".join(f"generation: {name}: no such setting; {nearest(name, known)}" for name in unknown)
            )
        if changes.get("max_length") is not None:
            changes.setdefault("max_new_tokens", None)
        return replace(self, **changes)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def penalise_repetition(logits: np.ndarray, texts: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
    """Divide the positive logits of tokens that the text contains by `penalty`, multiply the negative ones by it.

    Args:
        logits: (rows, V).
        texts: the ids of each row's text so far, prompt included and without padding, which must not be penalised.
        penalty: above 1 discourages repetition, below 1 encourages it.

    Returns:
        (rows, V), new.
    """
    logits = logits.copy()
    for row, text in zip(logits, texts, strict=True):
        ids = np.asarray(text, np.int64)
        seen = row[ids]
        row[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return logits


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Remove all but the k highest logits of each row; those equal to the k-th stay. k of 0, or of V and more: all.

    logits: (rows, V) -> (rows, V)
    """
    vocab_size = logits.shape[-1]
    if k == 0 or k >= vocab_size:
        return logits
    kth = np.partition(logits, vocab_size - k, axis=-1)[:, vocab_size - k, None]  # (rows, 1)
    return np.where(logits < kth, -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest likeliest tokens of each row whose probabilities add up to p: the one that crosses p stays.

    Tokens as likely as the least likely one that is kept stay too, so the outcome does not hang on a sorting order.

    logits: (rows, V) -> (rows, V)
    """
    if p >= 1:
        return logits
    ascending = np.sort(logits, axis=-1)
    below = np.cumsum(softmax(ascending), axis=-1) <= 1 - p  # tokens whose removal leaves at least p
    first_kept = np.minimum(below.sum(axis=-1, keepdims=True), logits.shape[-1] - 1)
    return np.where(logits < np.take_along_axis(ascending, first_kept, axis=-1), -np.inf, logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, V) logits -> (rows, V) float64 probabilities"""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def draw(probabilities: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """One token per row, by inverting the cumulative distribution.

    Args:
        probabilities: (rows, V); tokens of probability 0 are never drawn.
        uniforms: (rows,) in [0, 1), one draw for each row.

    Returns:
        (rows,) int64 ids.
    """
    cumulative = np.cumsum(probabilities, axis=-1)
    total = cumulative[:, -1]
    # u * total may round up to the total, behind which there is no token
    points = np.minimum(uniforms * total, np.nextafter(total, 0))
    return np.array([np.searchsorted(row, point, side="right") for row, point in zip(cumulative, points, strict=True)])


def next_tokens(
    logits: np.ndarray,
    texts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    streams: Sequence[np.random.Generator],
) -> np.ndarray:
    """The next token of each text.

    Args:
        logits: (rows, V) float32, at the last token of each text.
        texts: each row's ids so far, prompt included, without padding.
        settings: how to choose.
        streams: each row's random stream, from which one number is drawn; unused when greedy.

    Returns:
        (rows,) int64 ids.
    """
    if settings.repetition_penalty != 1:
        logits = penalise_repetition(logits, texts, settings.repetition_penalty)
    if not settings.do_sample:
        return logits.argmax(axis=-1)
    logits = logits / np.float32(settings.temperature)
    logits = keep_top_p(keep_top_k(logits, settings.top_k), settings.top_p)
    return draw(softmax(logits), np.array([stream.random() for stream in streams]))
