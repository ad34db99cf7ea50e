"""The planner: finds the layout of a run by formula, compiles the best to confirm them, and writes the chosen one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import grid_of, layout_problems
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import strategy_of
from mindgpt.planning.dry_run import dry_run, memory_limit
from mindgpt.planning.layout_search import (
    MOST_MICRO_BATCHES,
    Candidate,
    FoundLayouts,
    calibrated,
    own_candidate,
    rows_of,
    search,
)
from mindgpt.planning.plan_report import changes, comparison, describe, memory_lines, table, what_is_short, write_layout

Objective = Literal["tokens_per_second", "fewest_cards"]
_GIB = 2**30


class NothingFits(UserError):
    """Legal layouts exist, and none fits the cards."""


def plan_layout(
    config: RunConfig,
    counts: Sequence[int],
    hardware: Hardware,
    *,
    objective: Objective = "tokens_per_second",
    rows: int | None = None,
    usable: float = 0.85,
    most_batches: int = MOST_MICRO_BATCHES,
    measured: float | None = None,
    shown: int = 10,
    compiled: int = 1,
    output: Path | None = None,
) -> Iterator[str]:
    """FoundLayouts, and yield the lines of the report as they become known.

    Args:
        config: a training.
        counts: numbers of cards; several with `fewest_cards`, and one otherwise.
        hardware: the kind of card.
        objective: what is best.
        rows: of a step; None: as many as the configuration has.
        usable: the fraction of a card's memory that a layout may fill.
        most_batches: the most micro-batches of a sharded model in a step.
        measured: tokens per second and card of the configuration's own layout, which set the hardware's efficiency.
        shown: layouts in the table.
        compiled: how many of the best to compile.
        output: where to write the chosen layout.

    Raises:
        NothingFits: no layout fits.
        UserError: the configuration is no training, no layout is legal, or none compiles.
    """
    config = _as_planned(config)
    if measured is not None:
        own = _on_cards(config, counts[0])
        before, hardware = hardware.efficiency, calibrated(own, hardware, measured)
        yield (
            f"efficiency {before:.3g} -> {hardware.efficiency:.3f}, so that the layout of the configuration, "
            f"{describe(own_candidate(own, hardware))}, gives the measured {measured:g} tokens/s per card"
        )
    limit = usable * memory_limit(config, hardware) * _GIB
    found = _search(config, counts, hardware, objective, rows, limit, most_batches)
    yield from table(found, hardware, shown)
    best = found.fitting[0]
    if compiled:
        best = yield from _confirmed(found, hardware, compiled)
    yield f"chosen: {describe(best)}"
    yield from memory_lines(best)
    for key, (old, new) in changes(config, best.config).items():
        yield f"  {key}: {new}   (was {old})"
    if output is not None:
        write_layout(output, best, config, found.cards)
        yield f"written: {output}"


def _as_planned(config: RunConfig) -> RunConfig:
    if not config.trains:
        raise UserError(
            f"run_mode is {config.run_mode}, and layouts are planned for training: add --run_mode train or finetune"
        )
    if config.context.device_target == "CPU":
        raise UserError("context.device_target is CPU, and layouts are planned for Ascend: add --device_target Ascend")
    return config


def _on_cards(config: RunConfig, cards: int) -> RunConfig:
    """The configuration with its own layout on so many cards.

    Raises:
        UserError: it is for another number of cards.
    """
    own = config.replaced({"use_parallel": cards > 1})
    if grid_of(config).devices == 1 and cards > 1:
        own = own.replaced({"parallel_config.data_parallel": cards})
    problems = list(layout_problems(own, "Ascend", strategy_of(own, "Ascend", cards), cards))
    if problems:
        raise UserError(f"--measured is of the configuration's own layout, which cannot have run: {problems[0]}")
    return own


def _search(
    config: RunConfig,
    counts: Sequence[int],
    hardware: Hardware,
    objective: Objective,
    rows: int | None,
    limit: float,
    most_batches: int,
) -> FoundLayouts:
    """The search for one count, or for the smallest count with a layout that fits."""
    if objective == "tokens_per_second" and len(counts) > 1:
        raise UserError("--rank_size: several numbers of cards are for --objective fewest_cards; give one")
    found, why = None, None
    for cards in sorted(counts):
        try:
            found = search(config, cards, hardware, limit, rows or rows_of(config, cards), most_batches)
        except UserError as error:
            why = why or error
            continue
        if found.fitting:
            return found
    if found is None:
        raise why
    raise NothingFits(what_is_short(found))


def _confirmed(found: FoundLayouts, hardware: Hardware, compiled: int) -> Iterator[str]:
    """Compile the first layouts until so many compiled and fit. Returns the fastest of them.

    Raises:
        UserError: none did.
    """
    done: list[tuple[float, Candidate]] = []
    for candidate in found.fitting[: compiled + _REFUSALS]:
        try:
            plan = dry_run(candidate.config, found.cards, hardware)
        except UserError as error:
            yield f"refused: {describe(candidate)}: {str(error).splitlines()[0]}"
            continue
        yield from comparison(candidate, plan)
        if max(stage.memory for stage in plan.stages) <= found.limit:
            done.append((plan.tokens_per_second, candidate))
        if len(done) == compiled:
            break
    if not done:
        raise UserError(f"none of the {compiled + _REFUSALS} fastest layouts compiled and fitted; --compile 0 skips it")
    return max(done, key=lambda pair: pair[0])[1]


_REFUSALS = 3  # of layouts by MindSpore, after which compiling is given up
