"""The training step of a run: shards the built model if its strategy says so, and builds and compiles the step."""

import math
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindgpt.config.execution_sections import why_no_data_sinking
from mindgpt.config.layout import blocks_of_stages, shards_optimizer, shards_rows_of_head, shards_vocabulary
from mindgpt.config.no_effect import Run
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.gpt2.gpt2_parallel import (
    Layout,
    apply_layout,
    has_tied_copy,
    is_tied,
    parameters_of_stage,
)
from mindgpt.models.gpt2.gpt2_recompute import apply_recompute
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.pet.lora_parallel import apply_layout_to_lora
from mindgpt.runtime.collectives import Sharding, neighbours, strategy
from mindgpt.train.accumulation_loop import AccumulationLoop
from mindgpt.train.micro_batch_step import InterleavedNetwork, MicroBatchTrainStep
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.optimizers.adafactor import AdaFactor, MeanOverShards
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import AccumulatingTrainStep, TrainStep

_HIGHEST_START = 2.0**16
"""Of a dynamic loss scale. The largest float16 is just below; MindFormers' YAMLs start at 2^32, and waste steps."""


def sharding_of(config: RunConfig) -> Sharding:
    """What MindSpore has to know about the layout before a model is built."""
    return Sharding(
        stages=config.parallel_config.pipeline_stage,
        shard_optimizer=shards_optimizer(config),
        strategy_folder=Path(config.output_dir) / "strategy",
        settings=config.parallel.given(),
    )


def layout_of(config: RunConfig, padding: bool) -> Layout:
    """The layout of `parallel_config`. padding: whether the data has a column `attention_mask`."""
    section, network = config.parallel_config, config.model.config
    return Layout(
        data_parallel=section.data_parallel,
        model_parallel=section.model_parallel,
        blocks=tuple(blocks_of_stages(config)),
        sequence_parallel=section.use_seq_parallel and section.model_parallel > 1,
        vocab_parallel=shards_vocabulary(config),
        head_by_rows=shards_rows_of_head(config),
        padding=padding or network.reset_attention_mask,
        own_positions=network.reset_position_ids,
    )


def shard_model(config: RunConfig, model: PretrainedCell, layout: Layout, stage: int) -> list[Parameter]:
    """Shard a built model. Returns the parameters that this rank trains: in a pipeline, those of its stage."""
    apply_layout(model, layout)
    apply_layout_to_lora(model, layout)
    apply_recompute(model.backbone, config.recompute_config, blocks_of_stages(config))
    group = config.parallel_config.gradient_aggregation_group  # blocks whose gradients travel in one message
    for number, block in enumerate(model.backbone.blocks):
        block.set_comm_fusion(number // group + 2)  # 1 is MindSpore's own, which the embedding keeps
    stages = layout.pipeline_stages
    if stages > 1 and is_tied(model):
        _store_in_float32(model, model.backbone.embedding.word_embedding.embedding_table)
    trained = parameters_of_stage(model, layout.blocks, stage)
    held = {id(parameter) for parameter in trained}
    for parameter in model.trainable_params():
        parameter.requires_grad = id(parameter) in held or has_tied_copy(model, stages, stage, parameter)
    return trained


def _store_in_float32(model: PretrainedCell, table: Parameter) -> None:
    """Store a half-precision tied table in float32 where its two uses, embedding and head, are in different stages.

    The last stage sums the head's gradient over micro-batches in float32. MindSpore 2.10 sends that sum, but the first
    stage receives a value of the table's dtype; with a sharded optimizer it then fails to add the two gradients. It
    takes less memory than a half-precision table and its master copy.
    """
    if table.dtype == ms.float32 or not table.requires_grad:
        return
    values = None if table.has_init else model.unrounded.get(table.name, Tensor(table, ms.float32))
    table.set_dtype(ms.float32)
    if values is not None:
        table.set_data(values)


def sinks_data(config: RunConfig) -> bool:
    """Whether the device takes batches from a queue, several steps in a row, without Python between."""
    run = Run(config, ms.get_context("device_target"), strategy())
    return config.runner_config.sink_mode and why_no_data_sinking(run) is None


def _step_cell(config: RunConfig, model: nn.Cell, optimizer: nn.Optimizer, sharded: bool) -> nn.Cell:
    """The step of a run. sharded: whether the model is sharded."""
    wrapper, section, loss_scale = config.runner_wrapper, config.parallel_config, first_loss_scale(config)
    clip = wrapper.max_grad_norm if wrapper.use_clip_grad else None
    batches = config.runner_config.gradient_accumulation_steps
    if sharded and config.micro_batch_interleave_num > 1:
        model = InterleavedNetwork(model, config.micro_batch_interleave_num)
    if sharded and section.pipeline_stage > 1:
        return MicroBatchTrainStep(model, optimizer, loss_scale, clip, section.micro_batch_num)
    if batches > 1:
        whole_steps = AccumulationLoop if sinks_data(config) else AccumulatingTrainStep
        kind = MicroBatchTrainStep if sharded else whole_steps
        return kind(model, optimizer, loss_scale, clip, batches)
    return TrainStep(model, optimizer, loss_scale, clip)


def first_loss_scale(config: RunConfig) -> ScaleSenseSection:
    """The loss scale, which starts no higher than `_HIGHEST_START` if it is dynamic and gradients are float16."""
    section, network = config.runner_wrapper.scale_sense, config.model.config
    in_half = "float16" in (network.compute_dtype, network.param_init_type)
    if section.type != "dynamic" or not in_half or section.loss_scale_value <= _HIGHEST_START:
        return section
    return section.replaced({"loss_scale_value": _HIGHEST_START})


def loss_scale_note(config: RunConfig) -> str | None:
    """A note if the loss scale starts lower than configured; None: it does not."""
    asked, first = config.runner_wrapper.scale_sense.loss_scale_value, first_loss_scale(config).loss_scale_value
    if first == asked:
        return None
    return (
        f"loss scale: starts at {first:g}, not at {asked:g}: float16 gradients overflow there, and every step would be "
        "skipped until it has fallen"
    )


def build_step(
    config: RunConfig, model: PretrainedCell, learning_rates: np.ndarray, padding: bool
) -> tuple[nn.Cell, Layout]:
    """The training step of a built model, which is sharded if the strategy is `SEMI_AUTO`. Not compiled yet.

    Args:
        config: of the run.
        model: is changed.
        learning_rates: (steps,) float32, of each step.
        padding: whether the data has a column `attention_mask`.

    Returns:
        The step, and the layout, which `compile_sharded` needs.
    """
    layout, sharded = layout_of(config, padding), strategy() is Strategy.SEMI_AUTO
    if sharded:
        trained = shard_model(config, model, layout, sharding_of(config).stage)
    else:
        apply_recompute(model.backbone, config.recompute_config, blocks_of_stages(config))
        trained = model.trainable_params()
    shards = None
    if sharded and layout.model_parallel > 1:
        shards = MeanOverShards(neighbours(layout.model_parallel), layout.model_parallel)
    optimizer = build_optimizer(config.optimizer, trained, LearningRateTable(learning_rates), shards)
    optimizer.set_masters(model.unrounded)
    model.unrounded = {}  # no longer needed
    return _step_cell(config, model, optimizer, sharded), layout


def compile_sharded(step: nn.Cell, columns: Sequence[Tensor], layout: Layout) -> dict[str, int]:
    """Compile a step for the batch of all ranks, after which every parameter is this rank's shard of it.

    Returns:
        For each trained parameter the number of ranks that hold the same shard, which the gradient norm needs.
    """
    whole = {parameter.name: parameter.shape for parameter in step.optimizer.parameters}
    step.compile(*columns)
    ranks_of_a_stage = layout.data_parallel * layout.model_parallel
    holders = {
        parameter.name: ranks_of_a_stage * parameter.size // math.prod(whole[parameter.name])
        for parameter in step.optimizer.parameters
    }
    step.update.norm.set_holders(list(holders.values()))
    if isinstance(step.optimizer, AdaFactor):
        step.optimizer.set_shards(whole)
    return holders


def zeros_for(shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """A batch to compile with: int32 zeros of these shapes, one tensor a column."""
    return [Tensor(np.zeros(shape, np.int32)) for shape in shapes]
