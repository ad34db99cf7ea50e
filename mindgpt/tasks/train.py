"""`run_mode: train` and `finetune`: the loop is MindSpore's `Model`, the step ours (`mindgpt/train/step.py`)."""

import time
import zlib
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.train import Callback, Model

from mindgpt.config.callback_sections import SummaryMonitorSection
from mindgpt.config.errors import UserError
from mindgpt.config.layout import holds_shards
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import Section
from mindgpt.config.strategy import Strategy
from mindgpt.data.buckets import BucketedDataset
from mindgpt.data.dataset import DatasetInfo, fingerprint
from mindgpt.pet.lora import trained_values
from mindgpt.runtime.collectives import data_parallel_ranks, gather_objects, strategy
from mindgpt.runtime.interrupts import on_interrupt
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.runtime.targets import is_simulated
from mindgpt.tasks.checks import ranks_in, resume_folders
from mindgpt.tasks.datasets import reading, rows_a_step, skip_padding_mask, training_data
from mindgpt.tasks.evaluate import Evaluator
from mindgpt.tasks.labelled_data import labelled_training_data
from mindgpt.tasks.model_setup import plan_model
from mindgpt.tasks.output_folder import earlier_run_note
from mindgpt.tasks.session import save_config
from mindgpt.tasks.sharded_start import load_shards
from mindgpt.tasks.training_callbacks import RunCallbacks
from mindgpt.tasks.training_step import (
    build_step,
    compile_sharded,
    loss_scale_note,
    sharding_of,
    sinks_data,
    zeros_for,
)
from mindgpt.train.callbacks import StepMeter, non_finite_part
from mindgpt.train.optimizers import decay_groups, state_line
from mindgpt.train.progress import RunProgress
from mindgpt.train.resume import (
    ResumePoint,
    check_same_plan,
    find_resume_point,
    find_resume_point_of_rank,
    restore_parameters,
)
from mindgpt.train.schedules import learning_rates_of_run, schedule_line
from mindgpt.train.summary import check_tensorboard


def train(config: RunConfig) -> None:
    """Train a model as the configuration says."""
    if any(isinstance(section, SummaryMonitorSection) for section in config.callbacks):
        check_tensorboard()
    sharded = strategy() is Strategy.SEMI_AUTO
    if config.trainer.type == "TextClassificationTrainer":
        dataset, info, config = labelled_training_data(config)
    else:
        dataset, info = training_data(config)
    evaluator = Evaluator(config) if config.do_eval else None
    if evaluator is not None:
        config = evaluator.config
    progress = RunProgress(config.runner_config.epochs, dataset.get_dataset_size())
    plan = _plan(config, progress, info)
    point = _resume_point(config, plan)
    if point is not None and point.step >= progress.total_steps:
        say(f"nothing to resume: {point.path} is of step {point.step}, and the run has {progress.total_steps}")
        return
    learning_rates = learning_rates_of_run(config.lr_schedule, config.optimizer, progress.total_steps)
    model, resolved, start = plan_model(_starting_from(config, point), point.path if point and sharded else None)
    config = config.replaced({"model": resolved.model})
    if not sharded:
        model.unrounded = {}
        start.load(model.parameters_dict(), unrounded=model.unrounded)
    skip_padding_mask(model, info, *([] if evaluator is None else [evaluator.measure.info]))
    step, layout = build_step(config, model, learning_rates, padding=len(dataset.get_col_names()) > 1)
    callbacks = RunCallbacks(config, progress, model, evaluator, _tokens_per_step(config, dataset), plan)
    if sharded:
        say("compiling for all cards")
        step.set_train()
        compile_sharded(step, zeros_for(dataset.output_shapes()), layout)  # now a parameter is this rank's shard
        load_shards(step, start)
    del start  # and with it what is held of the files
    if point is not None:
        restore_parameters(step, point)
        callbacks.resume(point)
        dataset.set_init_step(point.step)
    _check_equal_beginnings(step)
    if sharded and (config.only_save_strategy or is_simulated()):
        _stop_after_compiling(config, step, callbacks, 0 if point is None else point.step)
        return
    if point is None and (note := earlier_run_note(config)):
        say(note)
    say(trained_values(model.get_parameters()))
    say(state_line(step.optimizer))
    decays = config.optimizer.weight_decay, bool(config.optimizer.decay_all)
    say(decay_groups(step.optimizer.parameters, *decays))
    say(schedule_line(config.lr_schedule, learning_rates))
    if note := loss_scale_note(config):
        say(note)
    say(
        f"training: {progress.epochs} epoch(s) of {progress.steps_per_epoch} steps, batch {_rows(config)} rows of "
        f"{_row_lengths(config, dataset)} tokens; {'compiled' if sharded else 'compiling first'}"
    )
    config_file = save_config(config)
    began = time.monotonic()
    try:
        with on_interrupt(callbacks.say_interrupted), reading(info):
            _run(config, step, dataset, callbacks.all, progress, 0 if point is None else point.step)
    finally:
        callbacks.close()
    callbacks.close_with_table(config_file, time.monotonic() - began)
    _check_that_a_step_counted(callbacks.meter)


def _check_that_a_step_counted(meter: StepMeter) -> None:
    """Raise a UserError if every step was skipped: such a run must not end like one that has trained."""
    if meter.all_skipped:
        raise UserError(
            f"no step changed the weights: {non_finite_part(meter.record)} not finite in each of {meter.skipped} "
            f"steps, the last at loss scale {meter.record['loss_scale']:g}. Train for more steps if the loss scale was "
            "still falling, or start it lower with runner_wrapper.scale_sense.loss_scale_value; else lower the "
            "learning rate, and look at the data and at the weights the run began with."
        )


def _stop_after_compiling(config: RunConfig, step: nn.Cell, callbacks: RunCallbacks, done: int) -> None:
    """End a run that is only to write its strategy, or whose cards are simulated and compute nothing. The latter also
    writes this rank's shards of the weights, with which the merging of checkpoints can be tried."""
    say(f"compiled; strategy: {sharding_of(config).strategy_folder}")
    if is_simulated() and callbacks.checkpoints is not None:
        say(f"the cards are simulated, so nothing is trained; weights: {callbacks.checkpoints.save(step, done)}")


def _plan(config: RunConfig, progress: RunProgress, info: DatasetInfo) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes, for the same batches and updates to follow.

    Not the layout: shards that `tools/transform_ckpt.py` has transformed are resumed in another layout.
    """
    runner, data = config.runner_config, config.train_dataset
    with reading(info):
        checksum = fingerprint(info)
    plan = {
        "rows of data": info.num_rows,
        "checksum of data": checksum,
        "processes": data_parallel_ranks(),
        "rows a step": rows_a_step(config),
        "gradient_accumulation_steps": runner.gradient_accumulation_steps,
        "steps an epoch": progress.steps_per_epoch,
        "seed": config.seed,
        "train_dataset.data_loader.shuffle": data.data_loader.shuffle,
        **{f"train_dataset.{key}": getattr(data, key) for key in ("num_buckets", "num_samples", "repeat")},
        **_settings("optimizer", config.optimizer, without="learning_rate"),  # which lr_schedule holds, too
        **_settings("lr_schedule", config.lr_schedule),
    }
    return {name: value for name, value in plan.items() if value is not None}


def _settings(name: str, section: Section | None, without: str = "") -> dict[str, Any]:
    """The keys of a section, prefixed with its name."""
    values = {} if section is None else section.model_dump(exclude={without})
    return {f"{name}.{key}": value for key, value in values.items()}


def _resume_point(config: RunConfig, plan: dict[str, Any]) -> ResumePoint | None:
    """The checkpoint to resume from, or None: in this output folder, or in the one that `load_checkpoint` names."""
    if not config.resume_training:
        return None
    folders = resume_folders(config)
    if holds_shards(config, strategy()):
        point = find_resume_point_of_rank(config.resume_training, folders, rank(), world_size())
    else:
        point = find_resume_point(config.resume_training, ranks_in(folders))
    check_same_plan(point, plan)
    say(f"resuming from {point.path}, after step {point.step}")
    return point


def _starting_from(config: RunConfig, point: ResumePoint | None) -> RunConfig:
    """The configuration to build the model with: a resumed run starts from the weights of its checkpoint, unless that
    holds a rank's shards alone."""
    if point is None or strategy() is Strategy.SEMI_AUTO:
        return config
    return config.replaced({"load_checkpoint": str(point.path)})


def _check_equal_beginnings(step: nn.Cell) -> None:
    """Check that all data-parallel processes begin with the same weights, which the same updates then keep equal.

    Raises:
        UserError: they do not; it names the processes and a parameter.
    """
    if data_parallel_ranks() == 1:
        return
    mine = {name: zlib.crc32(p.asnumpy().tobytes()) for name, p in step.parameters_dict().items()}
    others = gather_objects(mine)
    for name, of_rank_0 in others[0].items():
        different = [number for number, sums in enumerate(others) if sums.get(name) != of_rank_0]
        if different:
            raise UserError(
                f"the processes do not begin with the same weights: {name} of rank(s) "
                f"{', '.join(map(str, different))} differs from that of rank 0. On several machines, load_checkpoint "
                "and the YAML must be the same on each."
            )


def _rows(config: RunConfig) -> str:
    """The rows of a step; unless the model is sharded as a product: batch size, micro-batches, processes."""
    if strategy() is Strategy.SEMI_AUTO:
        return str(rows_a_step(config))
    runner, ranks = config.runner_config, data_parallel_ranks()
    return f"{runner.batch_size} x {runner.gradient_accumulation_steps}" + (f" x {ranks}" if ranks > 1 else "")


def _tokens_per_step(config: RunConfig, dataset: ms.dataset.Dataset) -> int:
    """Tokens that a step computes: all positions of its rows, so padding of unpacked instruction data counts too. Where
    rows are of several lengths, those that are not padding, on average."""
    if isinstance(dataset, BucketedDataset):
        return round(dataset.tokens_per_batch * data_parallel_ranks())
    return rows_a_step(config) * config.model.config.seq_length


def _row_lengths(config: RunConfig, dataset: ms.dataset.Dataset) -> str:
    if isinstance(dataset, BucketedDataset):
        return " or ".join(map(str, dataset.plan.buckets))
    return str(config.model.config.seq_length)


def _run(
    config: RunConfig,
    step: nn.Cell,
    dataset: ms.dataset.Dataset,
    callbacks: list[Callback],
    progress: RunProgress,
    done: int,
) -> None:
    """Train. `done`: the steps before the checkpoint that the run resumes from."""
    runner = config.runner_config
    step.set_train()
    loop = Model(step)
    if sinks_data(config):
        size = progress.steps_per_epoch if runner.sink_size == -1 else runner.sink_size
        loop.train(
            progress.total_steps // size,
            dataset,
            callbacks,
            dataset_sink_mode=True,
            sink_size=size,
            initial_epoch=done // size,
        )
    else:
        first = done // progress.steps_per_epoch
        loop.train(progress.epochs, dataset, callbacks, dataset_sink_mode=False, initial_epoch=first)
