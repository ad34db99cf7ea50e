"""What `tools/plan.py` prints about the layouts that a search found, and the YAML file of the chosen one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import grid_of
from mindgpt.config.loader import dump_config
from mindgpt.config.run_config import RunConfig
from mindgpt.io.files import write_text
from mindgpt.planning.dry_run import Plan
from mindgpt.planning.layout_search import Candidate, FoundLayouts

_GIB = 2**30
_KEYS = (
    "use_parallel",
    "parallel.parallel_mode",
    "parallel_config.data_parallel",
    "parallel_config.model_parallel",
    "parallel_config.pipeline_stage",
    "parallel_config.micro_batch_num",
    "parallel_config.optimizer_shard",
    "parallel_config.use_seq_parallel",
    "parallel_config.vocab_emb_dp",
    "recompute_config.recompute",
    "recompute_config.select_recompute",
    "runner_config.batch_size",
    "runner_config.gradient_accumulation_steps",
)
"""The settings that make a layout."""


def table(search: FoundLayouts, hardware: Hardware, shown: int) -> Iterator[str]:
    """The lines about a search that found layouts that fit."""
    yield (
        f"{search.legal} legal layouts of {_cards(search.cards)} for {search.rows} rows a step; of "
        f"{len(search.fitting)} that fit {search.limit / _GIB:.3g} GiB, by formula, the fastest:"
    )
    yield f"{'':>4} {'layout':<72} {'GiB':>6} {'tokens/s':>9}  {'compute/messages/idle':<22} bound by"
    for number, candidate in enumerate(search.fitting[:shown], 1):
        time = candidate.time
        shares = " / ".join(f"{part / time.total:.0%}" for part in time)
        yield (
            f"{number:>4} {describe(candidate):<72} {candidate.memory / _GIB:6.1f} "
            f"{candidate.tokens_per_second:>9,.0f}  {shares:<22} {search.bound(candidate)}"
        )
    yield (
        f"tokens/s per card, estimated, not measured: {hardware.name} at efficiency {hardware.efficiency:.3g}, which "
        "--measured TOKENS_PER_S sets by one run of the configuration's own layout"
    )


def _cards(number: int) -> str:
    return f"{number} card{'s' if number > 1 else ''}"


def describe(candidate: Candidate) -> str:
    """A layout in a few words."""
    config, grid = candidate.config, grid_of(candidate.config)
    section, runner = config.parallel_config, config.runner_config
    words = [f"dp {grid.data_parallel}", f"mp {grid.model_parallel}", f"pp {grid.pipeline_stage}"]
    words += ["optimizer shard"] if section.optimizer_shard else []
    words += ["sequence"] if section.use_seq_parallel else []
    words += ["vocabulary"] if not section.vocab_emb_dp else []
    words += [f"recompute {candidate.recompute}"] if candidate.recompute != "none" else []
    batches = section.micro_batch_num if grid.pipeline_stage > 1 else runner.gradient_accumulation_steps
    return f"{' '.join(words)}, {runner.batch_size} x {batches} rows"


def memory_lines(candidate: Candidate) -> Iterator[str]:
    """What the fullest card of a layout holds, by name."""
    stages = grid_of(candidate.config).pipeline_stage
    where = f"a card of stage {candidate.fullest.stage}" if stages > 1 else "a card"
    terms = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in candidate.fullest.terms.items() if size)
    yield f"{where} holds, in GiB: {terms}"


def comparison(candidate: Candidate, plan: Plan) -> Iterator[str]:
    """A compiled layout beside the formula."""
    fullest = max(plan.stages, key=lambda stage: stage.memory)
    compiled = plan.tokens_per_second
    yield (
        f"compiled, {describe(candidate)}: {fullest.memory / _GIB:.2f} GiB (formula {candidate.memory / _GIB:.2f}, "
        f"{candidate.memory / fullest.memory - 1:+.1%}), {compiled:,.0f} tokens/s (formula "
        f"{candidate.tokens_per_second:,.0f}, {candidate.tokens_per_second / compiled - 1:+.1%})"
    )


def what_is_short(search: FoundLayouts) -> str:
    """Why nothing fits."""
    smallest = search.smallest
    (terms,) = memory_lines(smallest)
    return (
        f"none of the {search.legal} legal layouts of {_cards(search.cards)} fits {search.limit / _GIB:.3g} GiB a "
        f"card. The smallest, {describe(smallest)}, needs {smallest.memory / _GIB:.3g}: {terms}. More cards "
        "(--rank_size), fewer rows a step if activations are the most of it (--rows), or half-precision weights "
        "(model.model_config.param_init_type) would help"
    )


def changes(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of the layout that differ: key -> both values."""
    return {key: (old, new) for key in _KEYS if (old := _value(before, key)) != (new := _value(after, key))}


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return bool(value) if key.endswith("optimizer_shard") else value


def write_layout(path: Path, candidate: Candidate, source: RunConfig, cards: int) -> None:
    """Write a complete YAML of the run with this layout; run_mindformer.py loads it.

    Args:
        path: of the file, whose folder must exist.
        candidate: the layout.
        source: the configuration that was planned for; all but the layout is its own.
        cards: how many.
    """
    lines = [f"# The layout that tools/plan.py chose for {_cards(cards)}: {describe(candidate)}."]
    costs = f"{candidate.memory / _GIB:.1f} GiB and {candidate.tokens_per_second:,.0f} tokens/s per card"
    lines += [f"# By formula {costs}, not measured."]
    changed = [f"{key} {old} -> {new}" for key, (old, new) in changes(source, candidate.config).items()]
    lines += [f"# Changed: {'; '.join(changed)}"] if changed else []
    config = candidate.config.replaced({"context.device_target": source.context.device_target})
    write_text(path, "\n".join([*lines, dump_config(config)]))
