"""A model that is cut over cards: whether it is; laid out before a training step is built of it, settled when that is
compiled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindgpt.config.layout import cuts_vocabulary, grid_of, shards_optimizer
from mindgpt.config.run_config import RunConfig
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.gpt2.gpt2_parallel import (
    Layout,
    apply_layout,
    apply_recompute,
    has_tied_copy,
    parameters_of_stage,
)
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.pet.lora_parallel import apply_layout_to_lora
from mindgpt.runtime.collectives import Cut, model_is_cut
from mindgpt.runtime.ranks import world_size
from mindgpt.train.micro_batch_step import InterleavedNetwork, MicroBatchTrainStep
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import AccumulatingTrainStep, TrainStep

_HIGHEST_START = 2.0**16
"""Of a dynamic loss scale. The largest float16 is just below; MindFormers' YAMLs start at 2^32, and waste steps."""


def is_cut(config: RunConfig, target: str) -> bool:
    """Whether training on the device `target` cuts the model over several cards."""
    return _wants_cut(config, target) and config.run_mode in ("train", "finetune")


def shares_layers(config: RunConfig, target: str) -> bool:
    """Whether evaluation or prediction cuts the model, by tensor parallelism (`gpt2_tensor_parallel.py`)."""
    grid = grid_of(config)
    wanted = _wants_cut(config, target) and config.run_mode in ("eval", "predict")
    return wanted and grid.cards > grid.data_parallel  # else the processes share the data, each with the whole model


def _wants_cut(config: RunConfig, target: str) -> bool:
    wanted = config.use_parallel and config.parallel.parallel_mode == "semi_auto_parallel"
    return wanted and target == "Ascend" and world_size() > 1


def cut_of(config: RunConfig) -> Cut:
    """What MindSpore has to know about the layout before a model is built."""
    section = config.parallel_config
    return Cut(
        stages=section.pipeline_stage,
        shard_optimizer=shards_optimizer(config),
        strategy_folder=Path(config.output_dir) / "strategy",
    )


def layout_of(config: RunConfig, padding: bool) -> Layout:
    """The layout of `parallel_config`. padding: whether the data has a column `attention_mask`."""
    section = config.parallel_config
    return Layout(
        data_parallel=section.data_parallel,
        model_parallel=section.model_parallel,
        pipeline_stages=section.pipeline_stage,
        sequence_parallel=section.use_seq_parallel and section.model_parallel > 1,
        vocab_parallel=cuts_vocabulary(config),
        padding=padding,
    )


def lay_out(config: RunConfig, model: PretrainedCell, layout: Layout, stage: int) -> list[Parameter]:
    """Cut a built model. Returns what is to be trained on this card: of a pipeline, what its stage holds."""
    apply_layout(model, layout)
    apply_layout_to_lora(model, layout)
    apply_recompute(model.backbone, config.recompute_config)
    together = config.parallel_config.gradient_aggregation_group  # blocks whose gradients travel in one message
    for number, block in enumerate(model.backbone.blocks):
        block.set_comm_fusion(number // together + 2)  # 1 is MindSpore's own, which the embedding keeps
    stages = layout.pipeline_stages
    trained = parameters_of_stage(model, stages, stage)
    held = {id(parameter) for parameter in trained}
    for parameter in model.trainable_params():
        parameter.requires_grad = id(parameter) in held or has_tied_copy(model, stages, stage, parameter)
    return trained


def train_step(config: RunConfig, model: nn.Cell, optimizer: nn.Optimizer, cut: bool) -> nn.Cell:
    """The step of a run. cut: whether the model is laid out over cards."""
    wrapper, section, loss_scale = config.runner_wrapper, config.parallel_config, first_loss_scale(config)
    clip = wrapper.max_grad_norm if wrapper.use_clip_grad else None
    batches = config.runner_config.gradient_accumulation_steps
    if cut and config.micro_batch_interleave_num > 1:
        model = InterleavedNetwork(model, config.micro_batch_interleave_num)
    if cut and section.pipeline_stage > 1:
        return MicroBatchTrainStep(model, optimizer, loss_scale, clip, section.micro_batch_num)
    if batches > 1:
        kind = MicroBatchTrainStep if cut else AccumulatingTrainStep
        return kind(model, optimizer, loss_scale, clip, batches)
    return TrainStep(model, optimizer, loss_scale, clip)


def first_loss_scale(config: RunConfig) -> ScaleSenseSection:
    """The loss scale, which starts no higher than `_HIGHEST_START` where it may fall and gradients are float16."""
    section, network = config.runner_wrapper.scale_sense, config.model.config
    in_half = "float16" in (network.compute_dtype, network.param_init_type)
    if section.type != "dynamic" or not in_half or section.loss_scale_value <= _HIGHEST_START:
        return section
    return section.model_copy(update={"loss_scale_value": _HIGHEST_START})


def loss_scale_note(config: RunConfig) -> str | None:
    """A line for the person, if the loss scale starts lower than asked for."""
    asked, first = config.runner_wrapper.scale_sense.loss_scale_value, first_loss_scale(config).loss_scale_value
    if first == asked:
        return None
    return (
        f"loss scale: starts at {first:g}, not at {asked:g}: float16 gradients overflow there, and every step would be "
        "skipped until it has fallen"
    )


def holds_parts(config: RunConfig) -> bool:
    """Whether the cards of a cut model hold different parts of it; where they share rows alone, each has all of it."""
    grid = grid_of(config)
    return model_is_cut() and (grid.cards > grid.data_parallel or shards_optimizer(config))


def build_step(config: RunConfig, model: PretrainedCell, rates: np.ndarray, padding: bool) -> tuple[nn.Cell, Layout]:
    """Lay out a built model and make its training step, not compiled yet; also on one card, where nothing is cut.

    Args:
        rates: the learning rate of each step.
        padding: whether the data has a column `attention_mask`.

    Returns:
        The step, and the layout by which `compile_cut` settles it where the model is cut.
    """
    layout = layout_of(config, padding)
    if model_is_cut():
        trained = lay_out(config, model, layout, cut_of(config).stage)
    else:
        apply_recompute(model.backbone, config.recompute_config)
        trained = model.trainable_params()
    optimizer = build_optimizer(config.optimizer, trained, LearningRateTable(rates))
    return train_step(config, model, optimizer, model_is_cut()), layout


def compile_cut(step: nn.Cell, columns: Sequence[Tensor], layout: Layout) -> dict[str, int]:
    """Compile a step for a batch of all cards, after which every parameter is this card's part of it.

    Returns:
        The number of cards that hold the same part, for each trained parameter, which the norm of the gradients needs.
    """
    whole = {parameter.name: parameter.size for parameter in step.optimizer.parameters}
    step.compile(*columns)
    cards_of_a_stage = layout.data_parallel * layout.model_parallel
    holders = {
        parameter.name: cards_of_a_stage * parameter.size // whole[parameter.name]
        for parameter in step.optimizer.parameters
    }
    step.update.norm.set_holders(list(holders.values()))
    return holders


def zeros_for(shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Batches of these shapes to compile with, int32."""
    return [Tensor(np.zeros(shape, np.int32)) for shape in shapes]
