"""`recompute_config`: what the backward pass computes again, for all blocks or for some of each pipeline stage."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from mindgpt.config.no_effect import NoEffect, if_unsharded, in_training
from mindgpt.config.section import Section, shown

OfStages = bool | list[int | bool]
"""For which blocks something is meant: all or none, or the number of each pipeline stage, whose first blocks it is."""

Operators = OfStages | list[str] | dict[str, OfStages]
"""The same for a default group of operators; or a list of patterns of operators in a block, for all blocks; or such
patterns, each with its blocks."""

_OF_STAGES = "must be True, False or a list with the number of blocks of each pipeline stage, such as [2, 1, 0, 0]"


def _of_stages(value: Any) -> OfStages:
    if isinstance(value, bool):
        return value
    if isinstance(value, list) and any(isinstance(number, list) for number in value):
        raise ValueError(
            f"must be one list with a number for each pipeline stage, not {shown(value)}: lists of lists are for "
            "interleaved pipeline stages, and a card holds one stage here"
        )
    if isinstance(value, list) and value and all(isinstance(number, int) and number >= 0 for number in value):
        return value
    raise ValueError(f"{_OF_STAGES}, not {shown(value)}")


def _pattern(value: str) -> str:
    try:
        for part in value.split(r"\."):
            re.compile(part)
    except re.error as error:
        raise ValueError(f"{shown(value)} is not a regular expression: {error}") from None
    return value


def _operators(value: Any) -> Operators:
    if isinstance(value, Mapping):
        return {_pattern(str(pattern)): _of_stages(blocks) for pattern, blocks in value.items()}
    if isinstance(value, list) and value and all(isinstance(pattern, str) for pattern in value):
        return [_pattern(pattern) for pattern in value]
    return False if value == [] else _of_stages(value)


def blocks_meant(value: OfStages, stage: int, blocks: int) -> int:
    """How many of a stage's `blocks` a value is for; they are the first of the stage."""
    number = value if isinstance(value, bool) else value[stage]
    if isinstance(number, bool):
        return blocks if number else 0
    return min(number, blocks)


Blocks = Annotated[Any, BeforeValidator(_of_stages)]
OperatorsOfBlocks = Annotated[Any, BeforeValidator(_operators)]
_OPERATORS = ("select_recompute", "select_comm_recompute", "select_recompute_exclude", "select_comm_recompute_exclude")


class RecomputeSection(Section):
    """`recompute_config`: which activations are recomputed in the backward pass rather than kept.

    `recompute` is an `OfStages`, the `select_` keys are `Operators`. A pattern is the path of an operator in a block,
    regular expressions joined by `\\.`, such as `output\\.activation\\.tanh`. Blocks under `recompute` do not look at
    `select_recompute` and `select_comm_recompute`. `select_comm_recompute` recomputes the messages that follow an
    operator, by default of the layer norms: with sequence parallelism the gathering of what they normalised. The
    `exclude` keys take operators out, and have no default.
    """

    recompute: Blocks = False
    select_recompute: OperatorsOfBlocks = False
    select_comm_recompute: OperatorsOfBlocks = False
    select_recompute_exclude: OperatorsOfBlocks = False
    select_comm_recompute_exclude: OperatorsOfBlocks = False
    parallel_optimizer_comm_recompute: bool = False
    mp_comm_recompute: bool = True
    recompute_slice_activation: bool = False

    no_effect: ClassVar = (
        NoEffect("recompute_slice_activation", if_unsharded("the model is not sharded over cards")),
        NoEffect("mp_comm_recompute", if_unsharded("the model is not sharded over cards")),
        NoEffect("select_comm_recompute", if_unsharded("the model is not sharded over cards")),
        NoEffect("select_comm_recompute_exclude", if_unsharded("the model is not sharded over cards")),
        NoEffect(
            "parallel_optimizer_comm_recompute",
            in_training(
                "MindSpore 2.10 keeps the weights that it has gathered from their shards until the backward pass, "
                "whatever the key says"
            ),
        ),
    )

    @property
    def names_operators(self) -> bool:
        """Whether `select_recompute` names operators, in place of the attention kernel."""
        value = self.select_recompute
        return isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], str))

    @property
    def differs_by_stage(self) -> bool:
        """Whether pipeline stages recompute different numbers of blocks."""
        values = [getattr(self, key) for key in ("recompute", *_OPERATORS)]
        return any(
            isinstance(of_stages, list) and not isinstance(of_stages[0], str)
            for value in values
            for of_stages in (value.values() if isinstance(value, dict) else [value])
        )

    def wrong_lengths(self, stages: int) -> list[tuple[str, str]]:
        """The lists that do not have a number for each of so many pipeline stages: (key, what is wrong)."""
        found = []
        for key in ("recompute", *_OPERATORS):
            value = getattr(self, key)
            for of_stages in value.values() if isinstance(value, dict) else [value]:
                is_numbers = isinstance(of_stages, list) and not isinstance(of_stages[0], str)
                if is_numbers and len(of_stages) != stages:
                    found.append(
                        (key, f"{shown(of_stages)} has {len(of_stages)} numbers, and pipeline_stage is {stages}")
                    )
        return found
