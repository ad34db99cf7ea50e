"""What a layout costs, by formula alone: what the dry run reads from compiled graphs, predicted in microseconds.

Bytes of weights, gradients and optimizer state on the cards of a pipeline stage, products, and collectives. The terms
are those of the compiled graph of MindSpore 2.10, which `tests/planning/test_formula.py` compares them with;
activations and time are the dry run's own (`mindgpt/planning/estimates.py`).
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import (
    blocks_of_stages,
    grid_of,
    interleaved_batches,
    recomputed_blocks,
    shards_optimizer,
    shards_rows_of_head,
    shards_vocabulary,
)
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import asks_for_semi_auto
from mindgpt.planning import estimates
from mindgpt.planning.estimates import BYTES, Activations, StepTime, memory_terms, weights_of_block
from mindgpt.runtime.compiled_graph import Collective

_LEAST_SHARDED = 2**16  # bytes of a whole weight, from which on MindSpore shards it for its optimizer


class Weight(NamedTuple):
    """Equal weights of a stage.

    Attributes:
        count: of them.
        rows, columns: the shape of one; a vector has 1 column.
        shards: over model_parallel, of `rows` if `by_rows` else of `columns`.
        by_rows: see `shards`.
        dtype: as stored.
        trained: whether it has a gradient.
        gathered_as: dtype in which its optimizer shards are gathered.
        updated: whether this stage updates it; the last stage's copy of a tied table is updated by the first.
    """

    count: int
    rows: int
    columns: int
    shards: int
    by_rows: bool
    dtype: str
    trained: bool
    gathered_as: str
    updated: bool = True


@dataclass(frozen=True)
class StageCost:
    """What a card of a pipeline stage holds and does in a step, by formula; bytes and floating-point operations."""

    stage: int
    blocks: int
    parameters: int
    gradients: int
    optimizer: int
    gathered_weights: int
    activations: Activations
    flops: int
    time: StepTime

    @property
    def terms(self) -> dict[str, int]:
        """What a device's memory holds: bytes by name."""
        return memory_terms(self.parameters, self.gradients, self.optimizer, self.gathered_weights, self.activations)

    @property
    def memory(self) -> int:
        """All of it."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class _WeightCost:
    """Bytes of a stage's weights on a card, and the collectives of a step for them."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    collectives: Counter[Collective]


def stage_kinds(config: RunConfig) -> list[int]:
    """The stages that stand for all: the first, the last, and a middle one; the fullest is among them.

    Earlier stages hold more micro-batches, so the fullest of the middle ones is, where all blocks keep the same, the
    first with the most blocks. Where recomputation names a number of blocks for each stage, every stage is one.
    """
    of_stages = blocks_of_stages(config)
    last = len(of_stages) - 1
    if config.recompute_config.differs_by_stage:
        return list(range(last + 1))
    middle = range(1, last) or range(1)
    return sorted({0, max(middle, key=lambda stage: (of_stages[stage], -stage)), last})


def blocks_of_stage(config: RunConfig, stage: int) -> int:
    """The number of blocks of a stage."""
    return blocks_of_stages(config)[stage]


def stage_cost(config: RunConfig, hardware: Hardware, stage: int) -> StageCost:
    """The cost of a legal layout on the first card of a stage."""
    blocks, weights = blocks_of_stage(config, stage), _cost_of_weights(config, stage)
    flops = flops_of_stage(config, stage)
    collectives = weights.collectives + _collectives_of_activations(config, stage)
    grid = grid_of(config)
    rank = stage * grid.data_parallel * grid.model_parallel
    return StageCost(
        stage,
        blocks,
        weights.parameters,
        weights.gradients,
        weights.optimizer,
        weights.gathered,
        estimates.activations_of_stage(config, stage, blocks),
        flops,
        estimates.step_time(config, hardware, flops, collectives, rank),
    )


def collectives_of_stage(config: RunConfig, stage: int) -> Counter[Collective]:
    """How often each collective runs in a step on the first card of a stage, but for those of a few bytes."""
    return _cost_of_weights(config, stage).collectives + _collectives_of_activations(config, stage)


def batches_of_step(config: RunConfig) -> int:
    """How often a card computes `batch_size` rows in a step."""
    section = config.parallel_config
    micro_batches = section.micro_batch_num if section.pipeline_stage > 1 else 1
    return micro_batches * interleaved_batches(config) * config.runner_config.gradient_accumulation_steps


def flops_of_stage(config: RunConfig, stage: int) -> int:
    """Floating-point operations of the matrix products of a step on a card of a stage, recomputed ones too."""
    network, grid = config.model.config, grid_of(config)
    t, s, h = grid.model_parallel, network.seq_length, network.hidden_size
    rows = config.runner_config.batch_size * s
    products = 2 * rows * weights_of_block(network) // t
    attention = 4 * rows * s * h // t
    lora = network.pet_config is not None
    last = 0 if _needs_last_product(network) else 2 * rows * network.ffn_hidden_size * h // t
    again = attention if network.use_flash_attention else attention // 2  # not the product with the values
    blocks, full, selective = recomputed_blocks(config, stage)
    total = blocks * ((2 if lora else 3) * products + 3 * attention) + _lora_flops(config, stage)
    total += full * (products - last + attention) + selective * again
    if lora and stage == 0:
        total -= 3 * 2 * rows * h * h // t  # nothing before the first block is trained
    if stage == grid.pipeline_stage - 1 and config.trainer.type == "CausalLanguageModelingTrainer":
        shards = t if shards_vocabulary(config) or shards_rows_of_head(config) else 1
        total += (2 if lora else 3) * 2 * rows * h * network.vocab_size // shards
    return total * batches_of_step(config)


def _needs_last_product(network: GPT2Section) -> bool:
    """Whether the backward pass of a block needs the result of its last product: GPT2_ML's is normalised."""
    return network.variant == "gpt2_ml"


_LINEARS = {  # of a block: from and to hidden or feed-forward width, and whether sharded by columns
    "attention.dense1": ("hidden_size", "hidden_size", True),
    "attention.dense2": ("hidden_size", "hidden_size", True),
    "attention.dense3": ("hidden_size", "hidden_size", True),
    "attention.projection": ("hidden_size", "hidden_size", False),
    "output.mapping": ("hidden_size", "ffn_hidden_size", True),
    "output.projection": ("ffn_hidden_size", "hidden_size", False),
}


@functools.lru_cache
def _targets_of_lora(pattern: str, num_layers: int) -> tuple[tuple[str, ...], ...]:
    """For each block the linear layers that LoRA adds factors to; see `mindgpt.pet.lora.find_targets`."""
    regex = re.compile(pattern)
    paths = [[f"backbone.blocks.{layer}.{name}" for name in _LINEARS] for layer in range(num_layers)]
    found = [[path for path in block if regex.fullmatch(path)] for block in paths]
    if not any(found):
        found = [[path for path in block if regex.match(path.rpartition(".")[2])] for block in paths]
    return tuple(tuple(path.split(".", 3)[3] for path in block) for block in found)


def _targets_of_stage(config: RunConfig, stage: int) -> Counter[str]:
    """The linear layers of a stage that LoRA adds factors to, by their name in a block."""
    network = config.model.config
    first = sum(blocks_of_stage(config, before) for before in range(stage))
    targets = _targets_of_lora(network.pet_config.target_modules, network.num_layers)
    return Counter(name for block in targets[first : first + blocks_of_stage(config, stage)] for name in block)


def _lora_flops(config: RunConfig, stage: int) -> int:
    """Of the products of LoRA's factors on a card of a stage."""
    network, t = config.model.config, grid_of(config).model_parallel
    if network.pet_config is None:
        return 0
    values = 0
    for name, count in _targets_of_stage(config, stage).items():
        from_width, to_width, by_column = _LINEARS[name]
        wide = getattr(network, to_width if by_column else from_width) // t  # the factor that is sharded
        values += count * (wide + getattr(network, from_width if by_column else to_width))
    forward = 2 * config.runner_config.batch_size * network.seq_length * network.pet_config.lora_rank * values
    blocks, full, _ = recomputed_blocks(config, stage)
    return forward * 3 + forward * full // blocks


def _weights_of_stage(config: RunConfig, stage: int) -> Iterator[Weight]:
    """Every weight of a stage, whole."""
    network, grid = config.model.config, grid_of(config)
    t, h, wide = grid.model_parallel, network.hidden_size, network.ffn_hidden_size
    blocks, last = blocks_of_stage(config, stage), stage == grid.pipeline_stage - 1
    trained = network.pet_config is None
    dtype, norm, compute = network.param_init_type, network.layernorm_compute_type, network.compute_dtype

    def of(count: int, rows: int, columns: int, shards: int, by_rows: bool, gathered_as: str = compute) -> Weight:
        return Weight(count, rows, columns, shards, by_rows, dtype, trained, gathered_as)

    yield of(3 * blocks, h, h, t, True)  # query, key, value: [out, in]
    yield of(blocks, h, h, t, True)  # projection: [in, out], and by its inputs
    yield of(blocks, h, wide, t, False)
    yield of(blocks, wide, h, t, True)
    yield of(3 * blocks, h, 1, t, True)
    yield of(blocks, wide, 1, t, True)
    yield of(2 * blocks, h, 1, 1, True)
    norms = 4 * blocks + (2 if last and network.final_norm else 0) + (2 if stage == 0 and network.embedding_norm else 0)
    yield Weight(norms, h, 1, 1, True, norm, trained, norm)
    table = "float32" if _stores_table_in_float32(config) else dtype
    of_tokens = Weight(1, network.vocab_size, h, t if shards_vocabulary(config) else 1, True, table, trained, table)
    is_language_model = config.trainer.type == "CausalLanguageModelingTrainer"
    if stage == 0:
        yield of_tokens
        yield Weight(1, network.max_position_embeddings, h, 1, True, dtype, trained, dtype)
    if last and is_language_model and (stage > 0 or not network.tie_word_embeddings):
        yield of_tokens._replace(updated=not network.tie_word_embeddings)
    if last and not is_language_model:
        yield Weight(1, network.num_labels, h, 1, True, dtype, True, dtype)
    if network.pet_config is not None:
        rank = network.pet_config.lora_rank
        for name, count in _targets_of_stage(config, stage).items():
            from_width, to_width, by_column = _LINEARS[name]
            of_a, of_b = (1, t) if by_column else (t, 1)
            yield Weight(count, rank, getattr(network, from_width), of_a, False, "float32", True, compute)
            yield Weight(count, getattr(network, to_width), rank, of_b, True, "float32", True, compute)


def _stores_table_in_float32(config: RunConfig) -> bool:
    """Whether a tied table in half precision is stored in float32 (`tasks/training_step.py`)."""
    network = config.model.config
    tied = network.tie_word_embeddings and config.trainer.type == "CausalLanguageModelingTrainer"
    return tied and grid_of(config).pipeline_stage > 1 and network.pet_config is None


def _cost_of_weights(config: RunConfig, stage: int) -> _WeightCost:
    grid, sharded = grid_of(config), shards_optimizer(config) and asks_for_semi_auto(config)
    ranks = grid.data_parallel * grid.model_parallel
    first = stage * ranks
    all_of_stage = range(first, first + ranks)
    same_shard = range(first, first + ranks, grid.model_parallel)  # cards that hold equal shards over model_parallel
    sums = config.runner_config.gradient_accumulation_steps > 1 or grid.pipeline_stage > 1
    state = _bytes_of_state(config.optimizer)
    parameters = gradients = optimizer = gathered = 0
    collectives: Counter[Collective] = Counter()
    for weight in _weights_of_stage(config, stage):
        values = weight.rows * weight.columns // weight.shards  # of one, on a card
        group = all_of_stage if weight.shards == 1 else same_shard
        size, held = BYTES[weight.dtype], values
        rows = weight.rows // weight.shards if weight.by_rows else weight.rows
        divides = rows % len(group) == 0 and weight.rows * weight.columns * size >= _LEAST_SHARDED
        # MindSpore sends a frozen table to the last stage in shards and gathers none, so it is kept whole.
        sent_whole = not weight.trained and weight.rows == config.model.config.vocab_size and grid.pipeline_stage > 1
        over_optimizer = sharded and divides and len(group) > 1 and not sent_whole
        if over_optimizer:
            held = values // len(group)
            each = values * BYTES[weight.gathered_as]
            gathered += weight.count * each
            collectives[Collective("AllGather", "weights", group, each)] += weight.count
        parameters += weight.count * held * size
        if not weight.trained:
            continue
        # Sums of micro-batches are float32 and, in MindSpore 2.10, not sharded by the optimizer.
        gradients += weight.count * (values * 4 if sums else held * size)
        if weight.updated:
            master = 4 * held if weight.dtype != "float32" else 0
            optimizer += weight.count * (master + state(held, weight))
        if len(group) > 1 and (weight.updated or over_optimizer):  # else the first stage sums it over its cards
            kind = "ReduceScatter" if over_optimizer else "AllReduce"
            each = values * (4 if sums or not asks_for_semi_auto(config) else size)
            collectives[Collective(kind, "gradients", group, each)] += weight.count
    return _WeightCost(parameters, gradients, optimizer, gathered, collectives)


def _bytes_of_state(section: OptimizerSection) -> Callable[[int, Weight], int]:
    """A function from the values of a weight on a card, and the weight, to bytes of the optimizer's state of it."""
    if section.type == "adamw":
        return lambda values, _: 8 * values
    if section.type == "lion" or (section.type == "sgd" and section.momentum):
        return lambda values, _: 4 * values
    if section.type == "sgd":
        return lambda values, _: 0
    moment = 4 if section.beta1 else 0

    def factored(values: int, weight: Weight) -> int:
        """AdaFactor's means of the rows and the columns of a card's shard; of a vector all squares."""
        of_rows, of_columns = (weight.shards, 1) if weight.by_rows else (1, weight.shards)
        means = values if weight.columns == 1 else weight.rows // of_rows + weight.columns // of_columns
        return moment * values + 4 * means

    return factored


def _collectives_of_activations(config: RunConfig, stage: int) -> Counter[Collective]:
    """Messages of hidden states, without the few bytes of the loss."""
    network, grid, section = config.model.config, grid_of(config), config.parallel_config
    found: Counter[Collective] = Counter()
    if grid.devices == grid.data_parallel:
        return found
    batches, blocks, t = batches_of_step(config), blocks_of_stage(config, stage), grid.model_parallel
    ranks = grid.data_parallel * t
    first = stage * ranks
    values = config.runner_config.batch_size * network.seq_length * network.hidden_size
    hidden, last = values * BYTES[network.compute_dtype], stage == grid.pipeline_stage - 1
    if t > 1:
        full = recomputed_blocks(config, stage).full if config.recompute_config.mp_comm_recompute else 0
        gathers_head = last and not shards_rows_of_head(config)
        needs_last = _needs_last_product(network)
        head_by_classes = last and shards_vocabulary(config)
        group = range(first, first + t)
        # Nothing before the first block is trained with LoRA, so its input has no gradient.
        without_gradient = stage == 0 and network.pet_config is not None
        if section.use_seq_parallel:
            # GPT2_ML's first block takes the normalised embeddings, which each card of the group holds whole.
            whole_input = stage == 0 and network.embedding_norm
            gathers = 4 * blocks + 2 * full + gathers_head - whole_input * (1 + (full > 0))
            scatters = 4 * blocks + (1 + needs_last) * full + gathers_head - (whole_input or without_gradient)
            found[Collective("AllGather", "activations", group, hidden)] = batches * gathers
            found[Collective("ReduceScatter", "activations", group, hidden)] = batches * scatters
        else:
            sums = 4 * blocks + (1 + needs_last) * full + head_by_classes - without_gradient
            found[Collective("AllReduce", "activations", group, hidden)] = batches * sums
        if network.pet_config is not None:  # between LoRA's two products, of which model_parallel shards one
            lowered = hidden // network.hidden_size * network.pet_config.lora_rank
            sums = _targets_of_stage(config, stage).total()
            found[Collective("AllReduce", "activations", group, lowered)] += batches * sums
        if stage == 0 and shards_vocabulary(config):
            embedded = values * BYTES["float32" if _stores_table_in_float32(config) else network.param_init_type]
            sums = 2 if section.use_seq_parallel else 1
            found[Collective("AllReduce", "activations", group, embedded)] += batches * sums
    sent = hidden // (t if section.use_seq_parallel else 1)
    for neighbour in (stage - 1, stage + 1):
        if 0 <= neighbour < grid.pipeline_stage:
            card = (neighbour * ranks,)
            found[Collective("Send", "stages", card, sent)] += batches
            found[Collective("Receive", "stages", card, sent)] += batches
    return found + _messages_of_tied_table(config, stage)


def _messages_of_tied_table(config: RunConfig, stage: int) -> Counter[Collective]:
    """The token table goes from the first stage to the last once a step, as a card holds it, and its gradient back."""
    grid, found = grid_of(config), Counter()
    ends = (0, grid.pipeline_stage - 1)
    tied = config.model.config.tie_word_embeddings and config.trainer.type == "CausalLanguageModelingTrainer"
    if not tied or stage not in ends or ends[1] == 0:
        return found
    ranks = grid.data_parallel * grid.model_parallel
    *_, table = (w for w in _weights_of_stage(config, stage) if w.rows == config.model.config.vocab_size)
    values = table.rows * table.columns // table.shards
    group = grid.data_parallel if table.shards > 1 else ranks
    if shards_optimizer(config) and table.trained and table.rows // table.shards % group == 0:
        values //= group
    other = (ends[1] - stage) * ranks
    for kind in ("Send", "Receive") if table.trained else ("Receive" if stage else "Send",):
        found[Collective(kind, "stages", (other,), values * BYTES[table.dtype])] = 1
    return found
