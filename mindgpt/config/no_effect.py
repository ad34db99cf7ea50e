"""Declares keys that some runs do not obey, each with the reason, which the run prints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from mindgpt.config.strategy import Strategy

if TYPE_CHECKING:
    from mindgpt.config.run_config import RunConfig

_NOT_DEFAULT = object()


@dataclass(frozen=True)
class Run:
    """A resolved configuration, the device target and the strategy."""

    config: "RunConfig"
    target: str
    strategy: Strategy


class NoEffect(NamedTuple):
    """A key that some runs do not obey, in `Section.no_effect`.

    Attributes:
        key: of the section; or, with `value`, of one below it, dotted.
        why: returns the reason for a run; None: the run obeys the key.
        value: the value that has no effect if it is given; absent: all but the default.
    """

    key: str
    why: Callable[[Run], str | None]
    value: Any = _NOT_DEFAULT

    def is_set(self, section: Any) -> bool:
        """Whether the section has the value."""
        value = attrgetter(self.key)(section)
        if self.value is _NOT_DEFAULT:
            return value != type(section).model_fields[self.key].default
        return value == self.value and self.key.split(".")[0] in section.model_fields_set


def when(condition: Callable[[Run], Any], reason: str) -> Callable[[Run], str | None]:
    """A `NoEffect.why`: the reason, with the values of `{config.x}`, for runs that meet the condition."""
    return lambda run: reason.format(config=run.config) if condition(run) else None


def _shards(run: Run) -> bool:
    return run.strategy is Strategy.SEMI_AUTO


in_training = partial(when, lambda run: run.config.trains)
if_sharded = partial(when, _shards)  # which is a training
if_unsharded = partial(when, lambda run: run.config.trains and not _shards(run))
if_data_parallel = partial(when, lambda run: run.config.trains and not _shards(run) and run.config.use_parallel)


def no_effect(keys: list[str], reason: str) -> str:
    """A sentence about keys that have no effect."""
    return f"{', '.join(keys)} {'have' if len(keys) > 1 else 'has'} no effect: {reason}"
