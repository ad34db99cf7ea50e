"""`run_mode: train` and `finetune`: the loop is MindSpore's `Model`, the step ours (`mindgpt/train/step.py`)."""

import time
from pathlib import Path

import mindspore as ms
from mindspore import nn
from mindspore.train import Callback, Model

from mindgpt.config.run import RunConfig
from mindgpt.config.training import CheckpointMonitorSection, EvalCallBackSection, LossMonitorSection
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_parallel import apply_recompute
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.datasets import reading, training_data
from mindgpt.tasks.evaluate import Evaluator
from mindgpt.tasks.models import build_model
from mindgpt.tasks.session import keep_config
from mindgpt.train.callbacks import EvaluationCallback, LossMonitor, SkippedSteps
from mindgpt.train.checkpoints import CheckpointMonitor
from mindgpt.train.optimizers import build_optimizer, decay_groups
from mindgpt.train.progress import Progress
from mindgpt.train.schedules import LearningRateTable, learning_rates
from mindgpt.train.step import AccumulatingTrainStep, TrainStep


def train(config: RunConfig) -> None:
    """Train a model as the configuration says."""
    dataset, info = training_data(config)
    evaluator = Evaluator(config) if config.do_eval else None
    progress = Progress(config.runner_config.epochs, dataset.get_dataset_size())
    rates = learning_rates(config.lr_schedule, progress.total_steps)
    model = build_model(config)
    apply_recompute(model.backbone, config.recompute_config)
    optimizer = build_optimizer(config.optimizer, model.trainable_params(), LearningRateTable(rates))
    step = _train_step(config, model, optimizer)
    callbacks = _callbacks(config, progress, model, evaluator)
    runner = config.runner_config
    say(decay_groups(optimizer.parameters, config.optimizer.weight_decay))
    say(
        f"training: {progress.epochs} epoch(s) of {progress.steps_per_epoch} steps, batch {runner.batch_size} x "
        f"{runner.gradient_accumulation_steps} rows of {config.model.config.seq_length} tokens; compiling first"
    )
    config_file = keep_config(config)
    began = time.monotonic()
    try:
        with reading(info):
            _run(config, step, dataset, callbacks, progress)
    finally:
        for callback in callbacks:
            if isinstance(callback, LossMonitor):
                callback.close()
    _closing_lines(progress, callbacks, time.monotonic() - began)
    say(f"configuration: {config_file}")


def _train_step(config: RunConfig, model: GPT2LMHeadModel, optimizer: nn.Optimizer) -> nn.Cell:
    wrapper = config.runner_wrapper
    clip = wrapper.max_grad_norm if wrapper.use_clip_grad else None
    batches = config.runner_config.gradient_accumulation_steps
    if batches > 1:
        return AccumulatingTrainStep(model, optimizer, wrapper.scale_sense, clip, batches)
    return TrainStep(model, optimizer, wrapper.scale_sense, clip)


def _callbacks(
    config: RunConfig, progress: Progress, model: GPT2LMHeadModel, evaluator: Evaluator | None
) -> list[Callback]:
    """In the order of the YAML, but evaluation comes last: after checkpoints, since it might fail."""
    log = Path(config.output_dir) / "log"
    callbacks: list[Callback] = []
    for section in config.callbacks:
        if isinstance(section, LossMonitorSection):
            runner = config.runner_config
            rows = runner.batch_size * runner.gradient_accumulation_steps
            tokens = rows * config.model.config.seq_length
            callbacks.append(LossMonitor(progress, log / "train.jsonl", tokens, section.per_print_times))
        elif isinstance(section, CheckpointMonitorSection):
            callbacks.append(CheckpointMonitor(section, progress, config.output_dir, model, model.config, rank()))
        elif isinstance(section, EvalCallBackSection):
            evaluation = EvaluationCallback(
                lambda: evaluator.run(model), progress, section.eval_steps, section.eval_epochs, log / "eval.jsonl"
            )
            callbacks.append(evaluation)
    callbacks.append(SkippedSteps(progress, config.runner_wrapper.max_skipped_steps))
    return sorted(callbacks, key=lambda callback: isinstance(callback, EvaluationCallback))


def _run(
    config: RunConfig, step: nn.Cell, dataset: ms.dataset.Dataset, callbacks: list[Callback], progress: Progress
) -> None:
    runner = config.runner_config
    step.set_train()
    loop = Model(step)
    sink = runner.sink_mode and ms.get_context("device_target") == "Ascend"
    if runner.sink_mode and not sink:
        say("on CPU, sink_mode has no effect: batches are handed over one by one")
    elif sink and runner.gradient_accumulation_steps > 1:
        say("sink_mode is off: gradient accumulation hands over its micro-batches one by one")
        sink = False
    if sink:
        size = progress.steps_per_epoch if runner.sink_size == -1 else runner.sink_size
        loop.train(progress.total_steps // size, dataset, callbacks, dataset_sink_mode=True, sink_size=size)
    else:
        loop.train(progress.epochs, dataset, callbacks, dataset_sink_mode=False)


def _closing_lines(progress: Progress, callbacks: list[Callback], seconds: float) -> None:
    say(f"trained {progress.total_steps} steps in {seconds:.1f} s")
    for callback in callbacks:
        if isinstance(callback, CheckpointMonitor) and callback.written:
            say(f"checkpoint: {callback.written[-1]}")
        elif isinstance(callback, LossMonitor):
            say(f"log: {callback.log}")
        elif isinstance(callback, SkippedSteps) and callback.count:
            say(f"{callback.count} of these steps were not finite and changed nothing")
