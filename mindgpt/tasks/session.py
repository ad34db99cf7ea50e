"""What every run mode does around its job: refuse what is not there, prepare the device, keep the configuration."""

from collections.abc import Iterator
from pathlib import Path

from mindgpt.config import layout
from mindgpt.config.callbacks import CheckpointMonitorSection
from mindgpt.config.errors import UserError
from mindgpt.config.loader import dump_config
from mindgpt.config.run import RunConfig
from mindgpt.data.files import atomic_write
from mindgpt.runtime.collectives import join_cut, join_data_parallel, join_tensor_parallel
from mindgpt.runtime.device import choose_target, prepare_device
from mindgpt.runtime.precision import replaced_on_cpu
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.tasks.cards import cut_of, is_cut, shares_layers


def prepare(config: RunConfig) -> None:
    """Make the process ready to build a model: device, seed, and the other processes of the job. Writes nothing yet:
    the run may still be refused.

    Raises:
        UserError: the configuration asks for something mindgpt does not do yet, the device is not there, or the layout
            does not fit the processes.
    """
    target = choose_target(config.context.device_target)
    problems = [*_not_there(config), *layout_problems(config, target)]
    if problems:
        raise UserError("\n".join(problems))
    notes = prepare_device(config.context, config.output_dir, config.seed)
    notes += replaced_on_cpu(config.model.config)
    if config.use_parallel and world_size() == 1:
        notes.append("use_parallel is True, but no cluster is around this process: running on one card")
    if shares_layers(config, target):
        join_tensor_parallel()
        notes.append(f"tensor parallel: {world_size()} cards, each with its share of heads and widths")
    elif is_cut(config, target):
        join_cut(cut_of(config))
        notes.append(f"{world_size()} cards: {layout.grid_of(config)}")
    elif world_size() > 1:
        join_data_parallel()
        notes.append(f"data parallel: {world_size()} processes, each with the whole model and its share of the data")
    for note in [*notes, *_without_effect(config)]:
        say(note)


def keep_config(config: RunConfig) -> Path:
    """Write the resolved configuration, every default filled in, to `<output_dir>/<run_mode>_config.yaml`.

    For the moment when nothing about data and weights can be refused any more, so that a run that never began does not
    write over what an earlier one left.
    """
    path = Path(config.output_dir) / f"{config.run_mode}_config.yaml"
    if rank() != 0:
        return path
    with atomic_write(path, "w") as file:
        file.write(dump_config(config))
    return path


def _without_effect(config: RunConfig) -> Iterator[str]:
    """What the configuration sets and one card does the same way whatever it says; nothing is dropped in silence."""
    if any(isinstance(section, CheckpointMonitorSection) and section.async_save for section in config.callbacks):
        yield "async_save: True has no effect: a checkpoint is whole before the next step begins"
    if config.run_mode == "predict" and not config.model.config.use_past:
        yield "use_past: False has no effect: text is always generated with a key/value cache"
    if config.micro_batch_interleave_num > 1:
        yield "micro_batch_interleave_num has no effect on one card"
    if config.recompute_config.recompute_slice_activation or config.recompute_config.parallel_optimizer_comm_recompute:
        yield "recompute_config: the keys about slices and communication have no effect on one card"


def layout_problems(config: RunConfig, target: str) -> Iterator[str]:
    """What about the layout does not fit the processes that there are, or the device `target`."""
    parallel, cards = config.parallel_config, world_size()
    if cards == 1:
        return
    if shares_layers(config, target):
        yield from layout.tensor_parallel_problems(config, cards)
        return
    if is_cut(config, target):
        yield from layout.layout_problems(config, cards)
        if config.do_eval:
            yield (
                "do_eval: a model that is cut over cards is not evaluated while it is trained. Set it to False, and "
                "evaluate a checkpoint with --run_mode eval, which takes the folder of its slices"
            )
        return
    if not config.use_parallel or config.parallel.parallel_mode == "stand_alone":
        off = "parallel.parallel_mode is stand_alone" if config.use_parallel else "use_parallel is False"
        yield f"there are {cards} processes, but {off}: all would do the same. Set use_parallel: True, or start one"
        return
    cut = {
        "parallel_config.model_parallel": parallel.model_parallel > 1,
        "parallel_config.pipeline_stage": parallel.pipeline_stage > 1,
        "parallel_config.optimizer_shard": bool(parallel.optimizer_shard),
        "parallel.enable_parallel_optimizer": config.parallel.enable_parallel_optimizer,
    }
    more = [key for key, wanted in cut.items() if wanted]
    if more:
        who = "on CPU several processes" if target == "CPU" else "with parallel_mode data_parallel several processes"
        yield (
            f"{who} can only be data parallel, and the configuration asks for {', '.join(more)}. Set model_parallel "
            "and pipeline_stage to 1, and the others to False; tools/dry_run.py checks a layout for Ascend anywhere"
        )
        return
    by_mode = config.parallel.parallel_mode == "data_parallel" and parallel.data_parallel == 1  # its default
    if not by_mode and parallel.data_parallel != cards:
        yield (
            f"parallel_config: data_parallel {parallel.data_parallel} x model_parallel {parallel.model_parallel} x "
            f"pipeline_stage {parallel.pipeline_stage} = {parallel.data_parallel} cards, but there are {cards} "
            f"processes. Set data_parallel to {cards}, or start {parallel.data_parallel}"
        )


def _not_there(config: RunConfig) -> Iterator[str]:
    """What the configuration may say and this version does not do; each with what to do instead."""
    if config.only_save_strategy and world_size() == 1:
        yield "only_save_strategy: one card has no strategy to save; it is for runs whose layout cuts the model"
    if config.profile:
        yield "profile: True: profiling is not in this version; start the run under MindSpore's own profiler"
