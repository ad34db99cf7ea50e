"""The dry run: is a configuration's layout legal, does it fit the memory of the devices, and what does a step cost?

For every kind of pipeline stage (first, middle, last) the training step is compiled as one of its ranks, in a process
of its own under simulated Ascend, one after the other. Sizes, collectives and products are read from the compiled
graphs; activations and time are estimates (`mindgpt/planning/estimates.py`).
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import data_parallel_problems, grid_of, rows_of_step, semi_auto_problems, shards_optimizer
from mindgpt.config.loader import dump_config
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy, strategy_of
from mindgpt.planning import estimates
from mindgpt.planning.estimates import Activations, StepTime, memory_terms
from mindgpt.planning.formula import stage_kinds
from mindgpt.runtime.compiled_graph import DUMP_ENVIRONMENT, Collective
from mindgpt.runtime.simulated_ascend import is_cann_installed, run_simulated

_REPO = Path(__file__).resolve().parents[2]
_PUBLISHED = "MindFormers published 1376 tokens/s per card for fine-tuning 13B at 2048 tokens on Atlas 800T A2"
_SIZES_OF_13B = (40, 5120, 2048)
_GIB = 2**30
_FROM_GRAPH = ("parameters", "gradients", "optimizer state", "gathered weights")
_ALWAYS_SHOWN = ("parameters", "gradients", "optimizer state")


@dataclass(frozen=True)
class StagePlan:
    """What one rank of a pipeline stage holds and does; bytes and floating-point operations of a step.

    Attributes:
        stage, rank: that were compiled.
        blocks: of the stage.
        parameters, gradients, optimizer: bytes of this rank's shards, from the compiled graph.
        kept_by_block: bytes that a block keeps for its backward pass, from the compiled graph.
        flops: of all matrix products, recomputed ones too, from the compiled graph.
        collectives: how often in a step, from the compiled graph.
        gathered_weights: bytes of optimizer-sharded weights, gathered from their shards once a step and kept to the end
            of the backward pass, from the compiled graph.
        reduced: name of a weight -> bytes of its gradient that are summed over cards, from the compiled graph.
        activations: by formula.
        time: estimated.
        seconds, peak_memory: of compiling; the latter in bytes.
    """

    stage: int
    rank: int
    blocks: int
    parameters: int
    gradients: int
    optimizer: int
    kept_by_block: int
    flops: int
    collectives: Counter[Collective]
    gathered_weights: int
    reduced: dict[str, int]
    activations: Activations
    time: StepTime
    seconds: float
    peak_memory: int

    @property
    def memory(self) -> int:
        """Bytes on a device, including activations."""
        return sum(self.terms.values())

    @property
    def terms(self) -> dict[str, int]:
        """What a device's memory holds: bytes by name."""
        return memory_terms(self.parameters, self.gradients, self.optimizer, self.gathered_weights, self.activations)


@dataclass(frozen=True)
class Plan:
    """A dry run's result: one `StagePlan` for each kind of stage, of a legal layout.

    `notes` say where `config` is not what the person gave.
    """

    config: RunConfig
    notes: list[str]
    hardware: Hardware
    devices: int
    stages: list[StagePlan]

    @property
    def slowest(self) -> StagePlan:
        """The stage whose step takes longest; the others wait for it."""
        return max(self.stages, key=lambda stage: stage.time.total)

    @property
    def tokens_per_second(self) -> float:
        """Estimated, of one card."""
        return estimates.tokens_per_second(self.config, self.slowest.time)


def dry_run(config: RunConfig, devices: int, hardware: Hardware) -> Plan:
    """Compile the plan of `config` for `devices` devices.

    Raises:
        UserError: the layout does not fit, MindSpore refuses it, or nothing can be compiled here.
    """
    config, notes = as_launched(config, devices)
    stages = []
    for stage in stage_kinds(config):
        found = _compiled(config, stage * (devices // grid_of(config).pipeline_stage), devices)
        stages.append(_stage_plan(config, hardware, stage, found))
    return Plan(config, notes, hardware, devices, stages)


def as_launched(config: RunConfig, devices: int) -> tuple[RunConfig, list[str]]:
    """The configuration as a launcher of `devices` processes on Ascend would run it, and notes about what was changed.

    Raises:
        UserError: that run would be refused.
    """
    if not config.trains:
        raise UserError(
            f"run_mode is {config.run_mode}, and the dry run is of a training step: add --run_mode train or finetune"
        )
    if config.context.device_target == "CPU":
        raise UserError("context.device_target is CPU, and the dry run is for Ascend: add --device_target Ascend")
    notes = []
    if devices > 1 and not config.use_parallel:
        notes.append(f"use_parallel is False; this is the plan with True, which {devices} cards need")
    config = config.replaced(
        {
            "context.device_target": "Ascend",
            "context.save_graphs": False,
            "load_checkpoint": "",
            "use_parallel": devices > 1,
        }
    )
    if strategy_of(config, "Ascend", devices) is Strategy.DATA_PARALLEL:
        problems = list(data_parallel_problems(config, devices, "Ascend"))
        config = config.replaced({"parallel_config.data_parallel": devices})  # 1, the default, means all in this mode
    else:
        problems = list(semi_auto_problems(config, devices))
    if problems:
        raise UserError("\n".join([*problems, *notes]))
    return config, notes


def _compiled(config: RunConfig, rank: int, devices: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mindgpt-dry-run-") as name:
        folder = Path(name)
        config = config.replaced({"output_dir": str(folder / "output")} | _absolute_paths(config))
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        result = run_simulated(
            [sys.executable, "-m", "mindgpt.planning.planned_step", "config.yaml", "facts.json"],
            rank,
            devices,
            cwd=folder,
            more=DUMP_ENVIRONMENT | {"MS_DEV_SAVE_GRAPHS_PATH": str(folder / "graphs")},
            python_path=[_REPO],
        )
        facts = folder / "facts.json"
        if result.returncode == 2:
            raise UserError(result.stderr[result.stderr.rfind("error: ") + len("error: ") :].strip())
        if result.returncode != 0 or not facts.exists():
            raise UserError(
                f"compiling rank {rank} of {devices} ended with status {result.returncode}. Its last words:\n"
                + "\n".join((result.stdout + result.stderr).splitlines()[-15:])
            )
        found = json.loads(facts.read_text())
    if "refused" in found:
        raise UserError(f"MindSpore refuses the plan of rank {rank} of {devices}: {found['refused']}")
    return found | {"rank": rank}


def _absolute_paths(config: RunConfig) -> dict[str, str]:
    """Files that a compiled step reads, as it is compiled in a folder of its own."""
    key = "context.ascend_config.parallel_speed_up_json_path"
    file = config.context.ascend_config.parallel_speed_up_json_path
    return {key: str(Path(file).absolute())} if file else {}


def _stage_plan(config: RunConfig, hardware: Hardware, stage: int, found: dict[str, Any]) -> StagePlan:
    collectives = Counter(
        {Collective(kind, purpose, tuple(ranks), size): n for kind, purpose, ranks, size, n in found["collectives"]}
    )
    return StagePlan(
        stage=stage,
        rank=found["rank"],
        blocks=found["blocks"],
        parameters=found["parameters"],
        gradients=found["gradients"],
        optimizer=found["optimizer"],
        kept_by_block=found["kept_by_block"],
        flops=found["flops"],
        collectives=collectives,
        gathered_weights=sum(c.bytes * n for c, n in collectives.items() if c.purpose == "weights"),
        reduced=found["reduced"],
        activations=estimates.activations_of_stage(config, stage, found["blocks"]),
        time=estimates.step_time(config, hardware, found["flops"], collectives, found["rank"]),
        seconds=found["seconds"],
        peak_memory=found["peak_memory"],
    )


def report(plan: Plan) -> Iterator[str]:
    """The lines of the report."""
    config, grid = plan.config, grid_of(plan.config)
    with_what = "CANN" if is_cann_installed() else "empty CANN libraries"
    cards = f"{plan.devices} card{'s' if plan.devices > 1 else ''}"
    yield from plan.notes
    yield f"legal: {cards} = {grid}; compiled for simulated Ascend with {with_what}"
    limit = memory_limit(config, plan.hardware)
    for stage in plan.stages:
        yield from _stage_lines(config, stage, limit)
    yield from _cost_lines(plan)


def shortfall(plan: Plan) -> str | None:
    """Why a plan does not fit the memory of a device, and what to change; None if it does."""
    fullest, limit = max(plan.stages, key=lambda stage: stage.memory), memory_limit(plan.config, plan.hardware)
    if fullest.memory <= limit * _GIB:
        return None
    listed = ", ".join(f"{name} {rounded(size)}" for name, size in fullest.terms.items() if size)
    activations = fullest.activations.total
    changes = list(_activation_savers(plan.config)) if 2 * activations > fullest.memory else []
    changes += [*_weight_savers(plan.config), "a larger model_parallel or pipeline_stage, or more cards"]
    where = f"a card of stage {fullest.stage}" if grid_of(plan.config).pipeline_stage > 1 else "a card"
    return (
        f"the layout is legal, but {where} would hold {rounded(fullest.memory)} of the {limit:g} GiB available: "
        f"{listed}. What reduces it: {'; or '.join(changes)}"
    )


def _activation_savers(config: RunConfig) -> Iterator[str]:
    """Settings that reduce the memory of activations and are not in use."""
    if config.runner_config.batch_size > 1:
        yield f"runner_config.batch_size below {config.runner_config.batch_size}"
    if not config.recompute_config.recompute:
        yield "recompute_config.recompute: True"
    if not config.model.config.use_flash_attention:
        yield "model.model_config.use_flash_attention: True"
    if grid_of(config).model_parallel > 1 and not config.parallel_config.use_seq_parallel:
        yield "parallel_config.use_seq_parallel: True"


def _weight_savers(config: RunConfig) -> Iterator[str]:
    """Settings that reduce the memory of weights and optimizer state on the same grid, and are not in use."""
    if grid_of(config).data_parallel > 1 and not shards_optimizer(config):
        yield "parallel_config.optimizer_shard: True (with parallel.parallel_mode: 1)"


def memory_limit(config: RunConfig, hardware: Hardware) -> float:
    """GiB that a run may use on a device."""
    allowed = config.context.max_device_memory
    return min(hardware.memory_gib, float(allowed.removesuffix("GB")) if allowed else hardware.memory_gib)


def _stage_lines(config: RunConfig, stage: StagePlan, limit: float) -> Iterator[str]:
    stages, by_formula = grid_of(config).pipeline_stage, estimates.kept_by_block(config)
    where = f"stage {stage.stage} of {stages}" if stages > 1 else "every card"
    yield (
        f"{where} ({stage.blocks} blocks; compiled as rank {stage.rank} in {stage.seconds:.0f} s with "
        f"{stage.peak_memory / _GIB:.1f} GiB):"
    )
    for name, size in stage.terms.items():
        if size or name in _ALWAYS_SHOWN:
            yield f"  {name:<18}{_size(size)}{'' if name in _FROM_GRAPH else '   estimate'}"
    in_graph = f"{stage.kept_by_block:,} bytes in the compiled graph"
    yield f"    kept by a block {_size(by_formula)}   formula, if nothing is recomputed; {in_graph}"
    fits = "fits" if stage.memory <= limit * _GIB else "DOES NOT FIT"
    yield f"  together          {_size(stage.memory)}   {fits} {limit:g} GiB"
    yield "  collectives of a step:"
    by_group: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    sizes: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for (kind, purpose, ranks, size), count in stage.collectives.items():
        by_group[kind, purpose, ranks] += count
        sizes[kind, purpose, ranks] += count * size
    for (kind, purpose, ranks), count in sorted(by_group.items()):
        size = _size(sizes[kind, purpose, ranks])
        yield f"    {count:>5} {kind:<13} of {purpose:<11} {size}   cards {_shown(ranks)}"
    if stage.reduced:
        name, size = max(stage.reduced.items(), key=lambda item: item[1])
        yield f"    the largest of the gradients: {rounded(size)} of {name}"
        if grid_of(config).data_parallel == 1:
            yield "      cards of model_parallel that hold a whole weight each compute a part of its gradient"


def _cost_lines(plan: Plan) -> Iterator[str]:
    config, slowest = plan.config, plan.slowest
    by_formula = estimates.flops_of_step(config)
    yield f"floating-point operations of a step: {by_formula:.4g} on all cards by formula"
    yield (
        f"  counted in the graph of rank {slowest.rank}: {slowest.flops:.4g}, "
        f"{slowest.flops * plan.devices / by_formula:.3f} of a card's share (recomputation and what cards repeat count)"
    )
    time = slowest.time
    yield (
        f"estimated, not measured: {plan.tokens_per_second:.0f} tokens/s per card on "
        f"{plan.hardware.name}, {rows_of_step(config)} rows of {config.model.config.seq_length} tokens a step in "
        f"{time.total:.3g} s ({time.compute:.3g} computing, {time.messages:.3g} waiting for messages, {time.idle:.3g} "
        "idle)"
    )
    network = config.model.config
    if (network.num_layers, network.hidden_size, network.seq_length) == _SIZES_OF_13B:
        yield f"  {_PUBLISHED}"


def _size(size: int) -> str:
    return f"{rounded(size):>12} ({size:,} bytes)"


def rounded(size: int) -> str:
    unit, name = (_GIB, "GiB") if size >= _GIB else (2**20, "MiB")
    return f"{size / unit:.2f} {name}"


def _shown(ranks: tuple[int, ...]) -> str:
    if not ranks:
        return "all"
    text = ", ".join(map(str, ranks))
    return text if len(ranks) <= 8 else f"{', '.join(map(str, ranks[:3]))}, ... {ranks[-1]} ({len(ranks)})"
