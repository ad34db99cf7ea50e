"""The search for a layout: every legal one for a number of cards, ranked by what the formula says of it.

A layout is data_parallel x model_parallel x pipeline_stage, with or without optimizer sharding, sequence parallelism
and a sharded vocabulary, a kind of recomputation, and the rows of a step divided into micro-batches. All have the rows
of a step and everything else of the configuration, so a training with another layout is the same training.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import DeviceGrid, grid_of, layout_problems, rows_of_step
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy, asks_for_semi_auto
from mindgpt.planning.estimates import StepTime, tokens_per_second
from mindgpt.planning.formula import StageCost, stage_cost, stage_kinds

RECOMPUTE = {"none": (False, False), "select": (False, True), "full": (True, False)}
"""Name -> `recompute_config.recompute`, `select_recompute`; in the order of what they keep, the most first."""

MOST_MICRO_BATCHES = 64
"""Of a sharded model, whose graph has every micro-batch of a step: more take long to compile."""

_GIB = 2**30
_TOKENS_THAT_FILL_A_CARD = 2048
_LARGE_SHARE = 0.25  # of a step, from which on messages or idle stages are what bounds it


@dataclass(frozen=True)
class Candidate:
    """A legal layout and its cost by formula.

    Attributes:
        config: of the run with this layout.
        recompute: a key of `RECOMPUTE`.
        stages: the kinds of stages.
        tokens_per_second: estimated, of one card.
    """

    config: RunConfig
    recompute: str
    stages: tuple[StageCost, ...]
    tokens_per_second: float

    @property
    def memory(self) -> int:
        """Bytes on the fullest card."""
        return max(stage.memory for stage in self.stages)

    @property
    def fullest(self) -> StageCost:
        """The stage whose cards hold the most."""
        return max(self.stages, key=lambda stage: stage.memory)

    @property
    def time(self) -> StepTime:
        """Of the slowest stage, for which the others wait."""
        return max((stage.time for stage in self.stages), key=lambda time: time.total)


@dataclass(frozen=True)
class FoundLayouts:
    """What a search found.

    Attributes:
        cards: for how many.
        rows: of a step.
        fitting: the layouts that fit the memory, the fastest first.
        smallest: of all legal ones, the one that needs the least memory.
        legal: how many legal layouts there are.
        limit: bytes that a card may hold.
        fastest_too_large: way of sharding -> the highest tokens/s of its layouts that do not fit.
    """

    cards: int
    rows: int
    fitting: list[Candidate]
    smallest: Candidate
    legal: int
    limit: float
    fastest_too_large: dict[tuple, float]

    def bound(self, candidate: Candidate) -> str:
        """What bounds the speed of a layout: "memory", if the same way of sharding would be faster with less
        recomputation or other micro-batches, which do not fit; else "messages" or "idle", if they take a large share of
        a step; else "compute"."""
        if self.fastest_too_large.get(_way_of_sharding(candidate.config), 0.0) > candidate.tokens_per_second:
            return "memory"
        time = candidate.time
        share, name = max((time.messages / time.total, "messages"), (time.idle / time.total, "idle"))
        return name if share > _LARGE_SHARE else "compute"


def search(
    config: RunConfig, cards: int, hardware: Hardware, limit: float, rows: int, most_batches: int = MOST_MICRO_BATCHES
) -> FoundLayouts:
    """Every legal layout of `config` on `cards` cards, by formula.

    Args:
        config: a training; its own layout does not matter.
        cards: how many.
        hardware: the kind of card.
        limit: bytes that a card may hold.
        rows: of a step, on all cards together.
        most_batches: the most micro-batches of a sharded model.

    Raises:
        UserError: no layout is legal.
    """
    found, refused = [], []
    for shape in _shapes(config, cards):
        problems = list(_problems(shape, cards))
        if problems:
            refused += problems
            continue
        found += _of_shape(shape, rows, hardware, limit, most_batches)
    if not found:
        raise UserError(_why_none(config, cards, rows, refused))
    fitting = sorted((candidate for candidate in found if candidate.memory <= limit), key=_preference)
    too_large: dict[tuple, float] = {}
    for candidate in found:
        if candidate.memory > limit:
            way = _way_of_sharding(candidate.config)
            too_large[way] = max(too_large.get(way, 0.0), candidate.tokens_per_second)
    smallest = min(found, key=lambda candidate: candidate.memory)
    return FoundLayouts(cards, rows, fitting, smallest, len(found), limit, too_large)


def _way_of_sharding(config: RunConfig) -> tuple:
    """What layouts have in common that differ in recomputation and micro-batches alone."""
    section = config.parallel_config
    return grid_of(config), section.optimizer_shard, section.use_seq_parallel, section.vocab_emb_dp


def own_candidate(config: RunConfig, hardware: Hardware) -> Candidate:
    """The layout that a configuration has."""
    section = config.recompute_config
    named = "full" if section.recompute else "select" if section.select_recompute else "none"
    return _candidate(config, named, hardware)


def rows_of(config: RunConfig, cards: int) -> int:
    """Rows of a step: as the configuration's own layout has them, or, where it is plainly data parallel, on `cards`."""
    rows = rows_of_step(config)
    if grid_of(config).devices == 1:
        rows *= cards  # data_parallel 1 means all there are
    return rows


def _shapes(config: RunConfig, cards: int) -> Iterator[RunConfig]:
    """The configuration with every grid and every way of sharding, before rows are divided. Only what divides."""
    network = config.model.config
    for model_parallel in _divisors(cards):
        sizes = (network.num_heads, network.hidden_size, network.ffn_hidden_size)
        if any(size % model_parallel for size in sizes):
            continue
        for stages in _divisors(cards // model_parallel):
            if stages > network.num_layers:
                continue
            grid = DeviceGrid(cards // (model_parallel * stages), model_parallel, stages)
            yield from _ways_of_sharding(config, grid)


def _ways_of_sharding(config: RunConfig, grid: DeviceGrid) -> Iterator[RunConfig]:
    network = config.model.config
    several = grid.model_parallel > 1
    by_tokens = several and network.seq_length % grid.model_parallel == 0
    by_vocabulary = several and network.vocab_size % grid.model_parallel == 0
    plain = grid.devices == grid.data_parallel
    for optimizer_shard in (False, True) if grid.devices > grid.pipeline_stage else (False,):
        for sequence_parallel in (False, True) if by_tokens else (False,):
            for whole_vocabulary in (True, False) if by_vocabulary else (True,):
                yield config.replaced(
                    {
                        "use_parallel": grid.devices > 1,
                        "parallel.parallel_mode": (
                            "data_parallel" if plain and not optimizer_shard else "semi_auto_parallel"
                        ),
                        "parallel.enable_parallel_optimizer": False,
                        "parallel_config": config.parallel_config.replaced(
                            {
                                "data_parallel": grid.data_parallel,
                                "model_parallel": grid.model_parallel,
                                "pipeline_stage": grid.pipeline_stage,
                                "optimizer_shard": optimizer_shard,
                                "use_seq_parallel": sequence_parallel,
                                "vocab_emb_dp": whole_vocabulary,
                                "micro_batch_num": grid.pipeline_stage,
                            }
                        ),
                        "runner_config.gradient_accumulation_steps": 1,
                        "model.config.offset": 0,  # of another number of stages
                    }
                )


def _problems(shape: RunConfig, cards: int) -> Iterator[str]:
    """Why MindSpore or mindgpt refuses a way of sharding, whatever the rows and the recomputation."""
    yield from layout_problems(shape, "Ascend", _strategy(shape, cards), cards)


def _strategy(shape: RunConfig, cards: int) -> Strategy:
    if cards == 1:
        return Strategy.SINGLE
    return Strategy.SEMI_AUTO if asks_for_semi_auto(shape) else Strategy.DATA_PARALLEL


def _of_shape(shape: RunConfig, rows: int, hardware: Hardware, limit: float, most_batches: int) -> Iterator[Candidate]:
    """The candidates of one way of sharding: how many rows at a time, what is recomputed."""
    grid, interleaved = grid_of(shape), shape.micro_batch_interleave_num if asks_for_semi_auto(shape) else 1
    each, rest = divmod(rows, grid.data_parallel * interleaved)
    if rest:
        return
    for name, (full, select) in RECOMPUTE.items():
        recomputed = shape.replaced({"recompute_config.recompute": full, "recompute_config.select_recompute": select})
        is_legal = {}
        for batch in _divisors(each):
            count = each // batch
            if grid.pipeline_stage > 1 and count < grid.pipeline_stage:
                break
            if count > most_batches and asks_for_semi_auto(shape):
                continue
            candidate = recomputed.replaced(_batches(grid, batch, count))
            if (count > 1) not in is_legal:
                is_legal[count > 1] = not list(_problems(candidate, grid.devices))
            if not is_legal[count > 1]:
                continue
            found = _candidate(candidate, name, hardware)
            yield found
            if found.memory > limit:
                break  # more rows at a time need more


def _batches(grid: DeviceGrid, batch: int, count: int) -> dict[str, Any]:
    """Settings of `count` micro-batches of `batch` rows."""
    in_stages = grid.pipeline_stage > 1
    return {
        "runner_config.batch_size": batch,
        "runner_config.gradient_accumulation_steps": 1 if in_stages else count,
        "parallel_config.micro_batch_num": count if in_stages else 1,
    }


def _candidate(config: RunConfig, recompute: str, hardware: Hardware) -> Candidate:
    stages = tuple(stage_cost(config, hardware, stage) for stage in stage_kinds(config))
    slowest = max((stage.time for stage in stages), key=lambda time: time.total)
    return Candidate(config, recompute, stages, tokens_per_second(config, slowest))


def _preference(candidate: Candidate) -> tuple[float, ...]:
    """A key to sort by: the faster first; of those within about 1 %, which is less than the formula is worth, the one
    that computes more tokens at a time, up to a number that fills a card; then the one that holds less, by 2 % at
    least; then the faster again."""
    runner, network = candidate.config.runner_config, candidate.config.model.config
    tokens = min(runner.batch_size * network.seq_length, _TOKENS_THAT_FILL_A_CARD)
    speed = candidate.tokens_per_second
    return -round(math.log(speed, 1.01)), -tokens, round(math.log(candidate.memory, 1.02)), -speed, candidate.memory


def _why_none(config: RunConfig, cards: int, rows: int, refused: list[str]) -> str:
    network = config.model.config
    reason = (
        f"no layout of {cards} cards: none of their divisions divides num_heads {network.num_heads}, hidden_size "
        f"{network.hidden_size} and the {rows} rows of a step, in as few micro-batches as are allowed. Try another "
        "--rank_size, or --rows"
    )
    return f"{reason}. Of the others the first is refused: {refused[0]}" if refused else reason


def calibrated(config: RunConfig, hardware: Hardware, measured: float) -> Hardware:
    """The hardware with the `efficiency` at which the formula gives `measured` tokens per second and card for the
    layout of `config`.

    Raises:
        UserError: no efficiency between 0 and 1 does.
    """

    def estimated(efficiency: float) -> float:
        return own_candidate(config, replace_efficiency(hardware, efficiency)).tokens_per_second

    highest = estimated(1.0)
    if measured > highest:
        raise UserError(
            f"--measured {measured:g}: with efficiency 1 the formula gives {highest:.0f} tokens/s per card for the "
            f"layout of the configuration, {grid_of(config)}. Is it tokens/s of one card, of this layout, and are "
            "fp16_tflops and the bandwidths of the hardware file right?"
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if estimated(middle) < measured else (low, middle)
    return replace_efficiency(hardware, high)


def replace_efficiency(hardware: Hardware, efficiency: float) -> Hardware:
    """The same hardware with another efficiency."""
    return hardware.model_copy(update={"efficiency": efficiency})


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
