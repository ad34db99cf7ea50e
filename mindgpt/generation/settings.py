"""`GenerationSettings`: the settings of generation as Python callers give them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationError

from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import KNOWN_ELSEWHERE, SAMPLING, GenerationSection
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.no_effect import no_effect
from mindgpt.config.section import Count, CountOrZero, dotted, nearest, problems_of, refuse


class GenerationSettings(GenerationSection):
    """How texts are continued: the settings of `GenerationSection`, under the names of transformers, and two more:

        max_length: tokens of prompt and continuation at most; with an `end_token`, of the continuation. Without it and
            `max_new_tokens`, a text may fill the context length.
        seed: equal seeds sample equal texts, whatever batch a text is in; None samples anew each time.

    Lists may be given as lists, tuples or arrays; None means the default. bert4keras's names, `other_names`, mean ours.

    Raises:
        UserError: settings that do not exist, are not allowed or contradict each other, all problems at once.
    """

    other_names: ClassVar = {
        "minlen": "min_new_tokens",
        "maxlen": "max_new_tokens",
        "end_id": "end_token",
        "topk": "top_k",
        "topp": "top_p",
        "n": "num_return_sequences",
    }

    max_length: Count | None = None
    seed: CountOrZero | None = None

    def __init__(self, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _user_error(problems_of(error)) from None

    @classmethod
    def translated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Take NumPy's numbers and arrays, and ranges."""
        return {name: _plain(value) for name, value in data.items()}

    def complete(self) -> None:
        refuse(self.contradictions(self.max_length))

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
        """These settings with `changes` in place; see `from_config`.

        An `eos_token_id` replaces an `end_token` that was set before. With an `end_token`, a `min_length` replaces a
        `min_new_tokens`, and the other way round; with `exclusive_filters` a `top_k` replaces a `top_p`. A `do_sample`
        of False removes the settings of sampling that are not among the changes.
        """
        changes = self.in_own_names(changes)
        if changes.get("do_sample") is False:  # no warning that earlier settings of sampling have no effect
            changes = dict.fromkeys(SAMPLING) | changes
        if changes.get("exclusive_filters", self.exclusive_filters):
            changes = _with_one_filter(changes)
        given = {name for name, value in changes.items() if value is not None}
        if {"end_token", "eos_token_id"} <= given:
            raise _user_error([(("eos_token_id",), "end_token ends a text instead of it; give one of the two")])
        if "eos_token_id" in given and self.end_token is not None:
            changes |= {"end_token": None, "min_ends": None}
        if "max_length" in given:
            changes.setdefault("max_new_tokens", None)
        if changes.get("end_token", self.end_token) is not None:
            for name, other in (("min_length", "min_new_tokens"), ("min_new_tokens", "min_length")):
                if name in given:
                    changes.setdefault(other, None)
        return type(self)(**self.model_dump() | changes)

    @classmethod
    def in_own_names(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, and whatever else is among them, with bert4keras's names replaced by ours.

        Raises:
            UserError: two names of one setting have different values.
        """
        own: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in given.items():
            known = cls.other_names.get(name, name)
            if known in own and own[known] != value:
                other = names[known]
                raise _user_error([((name,), f"means the same as {other}, and has another value; give one of them")])
            own[known], names[known] = value, name
        return own

    @property
    def least_new_tokens(self) -> int:
        """With an `end_token`: how many new tokens a text has at least that it ends."""
        return max(self.min_length, self.min_new_tokens, 1)

    def end_with(self, new_tokens: Sequence[int]) -> bool:
        """Whether a text ends with the last of these, which are all that were added to its prompt."""
        if self.end_token is None:
            return new_tokens[-1] in self.eos_token_ids
        if new_tokens[-1] != self.end_token or len(new_tokens) < self.least_new_tokens:
            return False
        return self.min_ends == 1 or new_tokens.count(self.end_token) >= self.min_ends

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `UserError` for ids that a model of this vocabulary does not have."""
        if problems := [((name,), message) for name, message in self.ids_outside(vocab_size)]:
            raise _user_error(problems)
        if isinstance(self.end_token, str):
            raise _user_error([(("end_token",), "give the tokenizer=, too: it is a text, and these are ids")])


def _with_one_filter(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of settings that have `exclusive_filters`: a `top_k` or `top_p` of 0 is none, any other is the only one
    unless both are given."""
    off = {"top_k": None, "top_p": 1.0}
    changes = {name: off[name] if name in off and value == 0 else value for name, value in changes.items()}
    filters = [name for name in off if changes.get(name, off[name]) != off[name]]
    others = off if filters else {}
    return {name: value for name, value in others.items() if name not in changes} | changes


def _user_error(problems: Iterable[tuple[tuple[int | str, ...], str]]) -> UserError:
    return UserError("\n".join(f"generation: {dotted(where)}: {message}" for where, message in problems))


def way_out(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is no setting: why, what to use, or the nearest that is known."""
    return KNOWN_ELSEWHERE.get(name) or nearest(name, known)


def warn_without_effect(settings: GenerationSettings, depth: int) -> None:
    """Warn of settings of sampling where nothing is sampled; `depth` calls below the line of the person."""
    for reason, names in settings.unused_sampling_settings().items():
        warnings.warn(no_effect(names, reason), UserWarning, stacklevel=depth + 1)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, tuples and ranges, as Python's numbers and lists."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, (list, tuple, range)) else value
