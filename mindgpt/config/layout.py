"""Whether a parallel layout fits the devices and the network, checked before anything is built."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mindgpt.config.recompute_section import blocks_meant
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy, asks_for_semi_auto

_SHOWN = 3  # working layouts that a message names
_WITH_MEANS_OF_MATRICES = ("adafactor",)  # optimizers that need means over whole rows and columns


class DeviceGrid(NamedTuple):
    """Over how many devices each dimension of parallelism goes; their product is the number of devices."""

    data_parallel: int
    model_parallel: int
    pipeline_stage: int

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self)

    def __str__(self) -> str:
        return (
            f"data_parallel {self.data_parallel} x model_parallel {self.model_parallel} x "
            f"pipeline_stage {self.pipeline_stage}"
        )


def grid_of(config: RunConfig) -> DeviceGrid:
    """The grid that the section `parallel_config` asks for."""
    section = config.parallel_config
    return DeviceGrid(section.data_parallel, section.model_parallel, section.pipeline_stage)


def blocks_of_stages(config: RunConfig) -> list[int]:
    """The number of blocks of each pipeline stage, which are consecutive: as `offset` says, else as even as can be, the
    later stages one block more.

    The first stage has the embedding as well, and keeps the most activations under the schedule one forward, one
    backward, so the remainder goes to the end.
    """
    stages, network = config.parallel_config.pipeline_stage, config.model.config
    if isinstance(network.offset, list):
        return [network.num_layers // stages + more for more in network.offset]
    return [(network.num_layers + stage) // stages for stage in range(stages)]


class RecomputedBlocks(NamedTuple):
    """Blocks of a pipeline stage: all, those recomputed as a whole, and those that recompute their attention kernel."""

    blocks: int
    full: int
    selective: int


def recomputed_blocks(config: RunConfig, stage: int) -> RecomputedBlocks:
    """What `recompute_config` asks of a pipeline stage. Operators that `select_recompute` names count as nothing."""
    section, blocks = config.recompute_config, blocks_of_stages(config)[stage]
    full = blocks_meant(section.recompute, stage, blocks)
    if section.names_operators:
        return RecomputedBlocks(blocks, full, 0)
    return RecomputedBlocks(blocks, full, max(0, blocks_meant(section.select_recompute, stage, blocks) - full))


def shards_optimizer(config: RunConfig) -> bool:
    """Whether weights and optimizer state are sharded over data-parallel ranks. `optimizer_shard`, if set, decides."""
    wanted = config.parallel_config.optimizer_shard
    return config.parallel.enable_parallel_optimizer if wanted is None else wanted


def holds_shards(config: RunConfig, strategy: Strategy) -> bool:
    """Whether the ranks of a training hold different weights; else each holds all of them."""
    grid = grid_of(config)
    return strategy is Strategy.SEMI_AUTO and (grid.devices > grid.data_parallel or shards_optimizer(config))


def interleaved_batches(config: RunConfig) -> int:
    """Into how many a micro-batch is divided, so that one computes while others communicate; 1 unless sharded."""
    return config.micro_batch_interleave_num if asks_for_semi_auto(config) else 1


def shards_vocabulary(config: RunConfig) -> bool:
    """Whether token embedding, head and loss are sharded by vocabulary: asked for, and the vocabulary divides."""
    section = config.parallel_config
    divisible = config.model.config.vocab_size % section.model_parallel == 0
    return section.model_parallel > 1 and not section.vocab_emb_dp and divisible


def shards_rows_of_head(config: RunConfig) -> bool:
    """Whether the ranks of a model-parallel group share the rows (tokens) of the head and the loss, each with the whole
    vocabulary: where they do not shard the vocabulary, and can divide the tokens of a row.

    Otherwise each would compute all logits. It adds sums of two scalars to a step and saves the gathering of the rows
    with sequence parallelism; without it every rank has the rows, and what it gives back to the last block is its part
    of a gradient that the blocks sum over the group anyway.
    """
    parallel = config.parallel_config.model_parallel
    divisible = config.model.config.seq_length % parallel == 0
    return parallel > 1 and not shards_vocabulary(config) and divisible


def rows_of_step(config: RunConfig) -> int:
    """Sequences of a step on all devices of `parallel_config` together.

    `batch_size` is that of a data-parallel rank, of a micro-batch, and of each of its interleaved batches.
    """
    runner, section = config.runner_config, config.parallel_config
    micro_batches = section.micro_batch_num if section.pipeline_stage > 1 else 1
    batches = micro_batches * interleaved_batches(config) * runner.gradient_accumulation_steps
    return runner.batch_size * section.data_parallel * batches


def layout_problems(config: RunConfig, target: str, strategy: Strategy, devices: int) -> Iterator[str]:
    """What about the layout does not fit the network, the strategy or the number of devices of the kind `target`."""
    if strategy is Strategy.SEMI_AUTO:
        yield from semi_auto_problems(config, devices)
        if config.do_eval:
            yield (
                "do_eval: a model that is sharded over cards is not evaluated while it is trained. Set it to False, "
                "and evaluate a checkpoint with --run_mode eval, which takes the folder of its shards"
            )
    elif strategy is Strategy.TENSOR_PARALLEL:
        yield from tensor_parallel_problems(config, devices)
    elif strategy is Strategy.DATA_PARALLEL:
        yield from data_parallel_problems(config, devices, target)
    if target == "Ascend":
        yield from _flash_problems(config)


def semi_auto_problems(config: RunConfig, devices: int) -> Iterator[str]:
    """What about the layout of a sharded training does not fit the network or `devices` devices."""
    grid = grid_of(config)
    if grid.devices != devices:
        yield f"parallel_config: {grid} = {grid.devices} cards, but there are {devices}. {_nearest(config, devices)}"
        return
    wrong = list(_division_problems(config, grid))
    if wrong:
        yield f"parallel_config: {'; '.join(wrong)}. {_nearest(config, devices)}"
    yield from _pipeline_problems(config, grid)
    yield from _recompute_problems(config, grid)
    if config.optimizer.type in _WITH_MEANS_OF_MATRICES and shards_optimizer(config):
        yield (
            f"optimizer.type: {config.optimizer.type} does not take its row and column means over data-parallel ranks, "
            "among which a sharded optimizer shards the weights. Its state is small as it is: set "
            "parallel_config.optimizer_shard to False (and parallel.enable_parallel_optimizer), or use adamw, lion or "
            "sgd"
        )


def _flash_problems(config: RunConfig) -> Iterator[str]:
    """Rows of which flash attention cannot drop weights: its mask has a bit for each key, in whole bytes."""
    network = config.model.config
    dropped, rows = network.attention_dropout_rate, network.seq_length
    if config.trains and network.use_flash_attention and dropped > 0 and rows % 8:
        yield (
            f"model.model_config.use_flash_attention: with attention_dropout_rate {dropped:g} it needs a seq_length "
            f"that is a multiple of 8, not {rows}. Set it to False, or attention_dropout_rate to 0"
        )


def data_parallel_problems(config: RunConfig, processes: int, target: str) -> Iterator[str]:
    """What about the layout does not fit data parallelism on `processes` devices of the kind `target`."""
    parallel, mode = config.parallel_config, config.parallel.parallel_mode
    if not config.use_parallel or mode == "stand_alone":
        off, on = ("use_parallel is False", "use_parallel: True")
        if config.use_parallel:
            off, on = ("parallel.parallel_mode is stand_alone", "it to data_parallel")
        yield f"there are {processes} processes, but {off}: all would do the same. Set {on}, or start one"
        return
    sharding = {
        "parallel_config.model_parallel": parallel.model_parallel > 1,
        "parallel_config.pipeline_stage": parallel.pipeline_stage > 1,
        "parallel_config.optimizer_shard": bool(parallel.optimizer_shard),
        "parallel.enable_parallel_optimizer": parallel.optimizer_shard is None and shards_optimizer(config),
    }
    if more := [key for key, wanted in sharding.items() if wanted]:
        who = "on CPU several processes" if target == "CPU" else f"with parallel_mode {mode} several processes"
        instead = (
            "; tools/dry_run.py checks a layout for Ascend anywhere"
            if target == "CPU"
            else ". To shard the model over the cards, set parallel.parallel_mode: 1 (semi_auto_parallel)"
        )
        yield (
            f"{who} can only be data parallel, and the configuration asks for {', '.join(more)}. Set model_parallel "
            f"and pipeline_stage to 1, and the others to False{instead}"
        )
        return
    takes_all = mode == "data_parallel" and parallel.data_parallel == 1  # the default
    if not takes_all and parallel.data_parallel != processes:
        yield (
            f"parallel_config: {grid_of(config)} = {parallel.data_parallel} cards, but there are {processes} "
            f"processes. Set data_parallel to {processes}, or start {parallel.data_parallel}"
        )


def _division_problems(config: RunConfig, grid: DeviceGrid) -> Iterator[str]:
    """The sizes of the network that the grid does not divide."""
    network, section = config.model.config, config.parallel_config
    sizes = {
        "num_heads": network.num_heads,
        "hidden_size": network.hidden_size,
        "ffn_hidden_size": network.ffn_hidden_size,
    }
    for name, size in sizes.items():
        if size % grid.model_parallel:
            yield f"model_parallel {grid.model_parallel} does not divide {name} {size}"
    if section.use_seq_parallel and network.seq_length % grid.model_parallel:
        yield f"use_seq_parallel: model_parallel {grid.model_parallel} does not divide seq_length {network.seq_length}"
    if grid.pipeline_stage > network.num_layers:
        yield f"pipeline_stage {grid.pipeline_stage} is more than the {network.num_layers} layers there are"


def divides_layers(config: RunConfig, devices: int) -> bool:
    """Whether heads and widths of the network can be sharded over so many devices."""
    return not list(_division_problems(config, DeviceGrid(1, devices, 1)))


def tensor_parallel_problems(config: RunConfig, devices: int) -> Iterator[str]:
    """What about the layout does not fit tensor parallelism on `devices` devices."""
    grid, wanted = grid_of(config), DeviceGrid(1, devices, 1)
    if wrong := list(_division_problems(config, wanted)):
        fewer = [n for n in _divisors(config.model.config.num_heads) if n < devices]
        works = [str(n) for n in fewer if divides_layers(config, n)]
        yield (
            f"parallel_config: {grid}; to evaluate or predict on {devices} cards takes model_parallel {devices}, and "
            f"{'; '.join(wrong)}. Numbers of cards that work: {', '.join(works)}"
        )
    elif grid != wanted:
        yield (
            f"parallel_config: {grid}; to evaluate or predict on {devices} cards, set model_parallel to {devices}, "
            "and data_parallel and pipeline_stage to 1. Shards of another layout are merged as they are read"
        )


def _pipeline_problems(config: RunConfig, grid: DeviceGrid) -> Iterator[str]:
    section, runner = config.parallel_config, config.runner_config
    if grid.pipeline_stage == 1:
        return
    if section.micro_batch_num < grid.pipeline_stage:
        yield (
            f"parallel_config.micro_batch_num: {section.micro_batch_num} micro-batches cannot keep "
            f"{grid.pipeline_stage} pipeline stages busy; it must be at least {grid.pipeline_stage}"
        )
    if runner.gradient_accumulation_steps > 1:
        yield (
            "runner_config.gradient_accumulation_steps: with pipeline stages gradients are accumulated over the "
            f"micro-batches; set it to 1 and micro_batch_num to "
            f"{section.micro_batch_num * runner.gradient_accumulation_steps}"
        )


def _recompute_problems(config: RunConfig, grid: DeviceGrid) -> Iterator[str]:
    """Combinations that MindSpore 2.10 fails to compile."""
    section, interleaves = config.recompute_config, interleaved_batches(config) > 1
    if not any(recomputed_blocks(config, stage).full for stage in range(grid.pipeline_stage)):
        return
    if interleaves and grid.pipeline_stage > 1 and _has_dropout(config):
        yield (
            "recompute_config.recompute: with interleaved micro-batches in pipeline stages MindSpore 2.10 cannot keep "
            "dropout masks, without which gradients would be wrong. Set micro_batch_interleave_num to 1, the dropout "
            "rates to 0, or use select_recompute instead of recompute"
        )
    if grid.model_parallel == 1:
        return
    accumulates = grid.pipeline_stage == 1 and config.runner_config.gradient_accumulation_steps > 1
    shards = section.recompute_slice_activation and not config.parallel_config.use_seq_parallel
    if shards and (accumulates or interleaves):
        yield (
            "recompute_config.recompute_slice_activation: MindSpore 2.10 cannot shard what it keeps over "
            "model_parallel while gradients are accumulated or micro-batches interleaved. Set it to False, or "
            "gradient_accumulation_steps and micro_batch_interleave_num to 1, or use_seq_parallel to True, with which "
            "it is sharded anyway"
        )
    if not section.mp_comm_recompute and interleaves and grid.pipeline_stage > 1:
        yield (
            "recompute_config.mp_comm_recompute: with interleaved micro-batches in pipeline stages MindSpore 2.10 "
            "cannot keep results of collectives. Set it to True, or micro_batch_interleave_num to 1"
        )


def _has_dropout(config: RunConfig) -> bool:
    """Whether blocks have dropout in training."""
    network = config.model.config
    lora = network.pet_config.lora_dropout if network.pet_config else 0
    return max(network.hidden_dropout_rate, network.attention_dropout_rate, lora) > 0


def working_grids(config: RunConfig, devices: int) -> list[DeviceGrid]:
    """Every grid of `devices` devices that divides the network, those nearest to what is asked for first."""
    asked = grid_of(config)
    grids = [
        DeviceGrid(devices // (mp * pp), mp, pp)
        for mp in _divisors(devices)
        for pp in _divisors(devices // mp)
        if not list(_division_problems(config, DeviceGrid(devices // (mp * pp), mp, pp)))
    ]
    return sorted(grids, key=lambda grid: sum(abs(math.log2(a / b)) for a, b in zip(grid, asked, strict=True)))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _nearest(config: RunConfig, devices: int) -> str:
    grids = working_grids(config, devices)[:_SHOWN]
    return f"On {devices} cards these work: {'; or '.join(map(str, grids))}"
