"""What every run mode does around its job: prepare the device, join the other processes, write the configuration."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.config.layout import grid_of, layout_problems
from mindgpt.config.loader import dump_config
from mindgpt.config.no_effect import Run
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy, strategy_of
from mindgpt.io.files import atomic_write, read_text, set_aside
from mindgpt.runtime.collectives import join
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.precision import replaced_on_cpu
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.runtime.targets import choose_target
from mindgpt.tasks.training_step import sharding_of


def prepare(config: RunConfig) -> None:
    """Make the process ready to build a model: device, seed, strategy, and the other processes of the job. Nothing is
    written yet: the run may still be refused.

    Raises:
        UserError: the configuration asks for something mindgpt does not do yet, the device is not there, or the layout
            does not fit the processes.
    """
    target, ranks = choose_target(config.context.device_target), world_size()
    strategy = strategy_of(config, target, ranks)
    problems = [*_unsupported(config), *layout_problems(config, target, strategy, ranks)]
    if problems:
        raise UserError("\n".join(problems))
    notes = prepare_device(config.context, config.output_dir, config.seed)
    notes += replaced_on_cpu(config.model.config)
    join(strategy, sharding_of(config))
    if strategy is Strategy.TENSOR_PARALLEL:
        notes.append(f"tensor parallel: {ranks} cards, each with its share of heads and widths")
    elif strategy is Strategy.SEMI_AUTO:
        notes.append(f"{ranks} cards: {grid_of(config)}")
    elif strategy is Strategy.DATA_PARALLEL:
        notes.append(f"data parallel: {ranks} processes, each with the whole model and its share of the data")
    elif config.use_parallel:
        notes.append("use_parallel is True, but no cluster is around this process: running on one card")
    for note in [*notes, *config.notes_without_effect(Run(config, target, strategy))]:
        say(note)


def save_config(config: RunConfig) -> Path:
    """Write the resolved configuration, every default filled in, to `<output_dir>/<run_mode>_config.yaml`.

    Call it once data and weights have passed all checks, so that a run that never began does not overwrite what an
    earlier one left.
    """
    path = Path(config.output_dir) / f"{config.run_mode}_config.yaml"
    if rank() != 0:
        return path
    text = dump_config(config)
    if config.trains and path.exists() and _without_command(read_text(path)) != text:
        set_aside(path)  # of an earlier run, whose checkpoints and logs stay, too
    with atomic_write(path, "w") as file:
        file.write(_command() + text)
    return path


def _command() -> str:
    """A line of YAML comment with the command of this process, which `mindgpt info` shows."""
    words = " ".join([Path(sys.argv[0]).name, *map(shlex.quote, sys.argv[1:])])
    return f"# {words}\n" if words.isprintable() else ""


def _without_command(text: str) -> str:
    return text.split("\n", 1)[1] if text.startswith("# ") and "\n" in text else text


def _unsupported(config: RunConfig) -> Iterator[str]:
    """A message for each valid setting that this version does not support, with what to do instead."""
    if config.only_save_strategy and world_size() == 1:
        yield "only_save_strategy: one card has no strategy to save; it is for runs whose layout shards the model"
    if config.profile:
        yield "profile: True: profiling is not in this version; start the run under MindSpore's own profiler"
