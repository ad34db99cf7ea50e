"""`GenerationSettings`: the settings of generation as Python callers give them."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import ValidationError

from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import KNOWN_ELSEWHERE, GenerationSection
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.no_effect import no_effect
from mindgpt.config.section import Count, CountOrZero, dotted, nearest, problems_of, refuse


class GenerationSettings(GenerationSection):
    """How texts are continued: the settings of `GenerationSection`, under the names of transformers, and two more:

        max_length: tokens of prompt and continuation at most. Without it and `max_new_tokens`, a text may fill the
            context length.
        seed: equal seeds sample equal texts, whatever batch a text is in; None samples anew each time.

    Lists may be given as lists, tuples or arrays; None means the default.

    Raises:
        UserError: settings that do not exist, are not allowed or contradict each other, all problems at once.
    """

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
        """These settings with `changes` in place; see `from_config`."""
        if changes.get("max_length") is not None:
            changes.setdefault("max_new_tokens", None)
        return type(self)(**self.model_dump() | changes)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `UserError` for ids that a model of this vocabulary does not have."""
        if problems := [((name,), message) for name, message in self.ids_outside(vocab_size)]:
            raise _user_error(problems)


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
