"""`GenerationSettings`: how texts are continued, checked when made."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import (
    KNOWN_ELSEWHERE,
    GenerationSection,
    contradictions,
    id_tuple,
    ids_outside,
    sampling_without_effect,
)
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.section import Count, CountOrZero, dotted, nearest, problems_of, refuse


class _CheckedSettings(GenerationSection):
    """The checks of `GenerationSettings`."""

    max_length: Count | None = None
    seed: CountOrZero | None = None

    def complete(self) -> None:
        refuse(contradictions(self, self.max_length))


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How texts are continued. The names are those of transformers; every default is without effect.

    How long a text gets:
        max_new_tokens: tokens to add at most; goes before `max_length`.
        max_length: tokens of prompt and continuation at most. With neither, a text may fill the context window.
        min_new_tokens: `eos_token_id` is ruled out until so many tokens are new. (Stop strings still end a text.)
        min_length: the same, counting the prompt.
        eos_token_id: a text ends with this token, or with any of these; None: no token ends it.
        stop_strings: a text ends where one of these comes up in it.
        context_overflow: "refuse": a prompt that fills the context window is an error, and every text ends there.
            "slide": the model then goes on with the last tokens alone.

    How a token is chosen:
        do_sample: draw it from the distribution; False takes the likeliest (greedy, or the best of `num_beams`).
        temperature: logits are divided by it before drawing.
        top_k: draw among this many likeliest tokens; None is all.
        top_p: draw among the fewest likeliest tokens that together have at least this probability.
        min_p: draw among tokens at least this many times as likely as the likeliest.
        typical_p: draw among the fewest tokens of nearly the expected information that together have this probability.
        seed: equal seeds draw equal texts, whatever batch a text is in; None draws anew each time.
        num_return_sequences: texts for each prompt.
        num_beams: texts to pursue at once in beam search; 1 is none.
        length_penalty: beams are compared by log-probability / length ** length_penalty.
        early_stopping: when beam search ends: True with `num_beams` texts, False once no better one is likely, "never"
            once none is possible.

    What is said (see `mindgpt.generation.rules` for formulas and sources):
        repetition_penalty: makes tokens of prompt and text less likely if above 1.
        presence_penalty, frequency_penalty: taken off the logits of new tokens once, and as often as they occur.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0: no rule.
        bad_words_ids: token sequences that must not come up.
        suppress_tokens: tokens that must not come up.
        forced_bos_token_id: the token after a prompt of one token.
        forced_eos_token_id: the token, or tokens to choose from, with which a text of the greatest length ends.

    `temperature`, `top_k`, `top_p`, `min_p`, `typical_p` and `seed` mean something only with `do_sample`.

    Lists may be given as lists, tuples or arrays, and are held as tuples; None means the default.

    Raises:
        UserError: values that are not allowed or contradict each other, all problems at once.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_id: int | tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] | None = None
    context_overflow: str = "refuse"

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    seed: int | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        given = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        try:
            checked = _CheckedSettings.model_validate(given)
        except ValidationError as error:
            problems = problems_of(error)
            raise UserError(
                "\n".join(f"generation: {dotted(where)}: {message}" for where, message in problems)
            ) from None
        for name in given:
            object.__setattr__(self, name, _frozen(getattr(checked, name)))

    @classmethod
    def from_config(cls, config: GPT2Section, **changes: Any) -> "GenerationSettings":
        """The settings that a model's config names (`max_decode_length` there is `max_length` here).

        Args:
            config: the model's config.
            changes: settings to replace. A `max_length` replaces the config's `max_new_tokens` too.

        Raises:
            UserError: an unknown setting, or a value that is not allowed.
        """
        named = {name: getattr(config, name) for name in GenerationSection.model_fields}
        return cls(max_length=config.max_decode_length, **named).changed(**changes)

    def changed(self, **changes: Any) -> "GenerationSettings":
        """These settings with `changes` in place; see `from_config`."""
        known = [field.name for field in fields(self)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise UserError(
                "\n".join(f"generation: {name}: no such setting; {way_out(name, known)}" for name in unknown)
            )
        if changes.get("max_length") is not None:
            changes.setdefault("max_new_tokens", None)
        return replace(self, **changes)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; () if none does."""
        return id_tuple(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> tuple[int, ...]:
        """The tokens with which a text of the greatest length ends; () if any will do."""
        return id_tuple(self.forced_eos_token_id)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `UserError` for ids that a model of this vocabulary does not have."""
        problems = [f"generation: {name}: {message}" for name, message in ids_outside(self, vocab_size)]
        if problems:
            raise UserError("\n".join(problems))


def way_out(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is no setting: why, what to use, or the nearest that is known."""
    return KNOWN_ELSEWHERE.get(name) or nearest(name, known)


def warn_without_effect(settings: GenerationSettings, depth: int) -> None:
    """Warn of settings of drawing where nothing is drawn; `depth` calls below the line of the person."""
    if sentence := sampling_without_effect(settings):
        warnings.warn(sentence, UserWarning, stacklevel=depth + 1)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, tuples and ranges, as Python's numbers and lists."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, (list, tuple, range)) else value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
