"""What a training step costs, by formula: floating-point operations, activations in memory, time.

Symbols, as in Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models"): a heads, b
rows of a micro-batch on a data-parallel rank, h hidden size, L layers, s tokens of a row, t tensor-parallel ranks. The
dry run prints what a block keeps by formula beside what it keeps in the compiled graph.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import (
    grid_of,
    interleaved_batches,
    recomputed_blocks,
    rows_of_step,
    shards_optimizer,
    shards_rows_of_head,
    shards_vocabulary,
)
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import asks_for_semi_auto
from mindgpt.runtime.compiled_graph import Collective

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_VALUES_PER_MASK_BYTE = 8  # a bit for each value, where the paper has a byte

# Tensors of the feed-forward width that the activation keeps for its backward pass on Ascend: 1 of a fused kernel, as
# in the paper, else as gpt2_modules.Activation writes it out.
_KEPT_BY_ACTIVATION = {"gelu": 1, "gelu_erf": 3, "fast_gelu": 1, "silu": 2, "relu": 1}
_KEPT_BY_LAYER_NORM = {"standard": 1, "uer": 2}  # tensors of the hidden size: the input; centred and normalised values
_COMPRESSED_MASK = 2048**2  # bytes of the one causal mask with which flash attention takes rows of any length
_COUNTING_POSITIONS = 1 + 4  # bytes a pair of tokens: whether one sees the other, and the same as int32 to be summed
_FLASH_STATISTICS = 2 * 8 * 4  # bytes a head and token: maximum and sum of the softmax, 8 float32 each


def flops_of_step(config: RunConfig) -> float:
    """Floating-point operations of a training step on all devices together, without recomputation.

    6 N D (Kaplan et al. 2020, section 2.1: forward 2, backward 4) for N weights in matrix products, including the
    head, and D tokens; and 12 L h s a token for the products of attention, including the positions that the causal
    mask excludes. With LoRA the N frozen weights need no gradient: 4 N D.
    """
    network = config.model.config
    tokens = rows_of_step(config) * network.seq_length
    h, s = network.hidden_size, network.seq_length
    weights = network.num_layers * weights_of_block(network)
    if config.trainer.type == "CausalLanguageModelingTrainer":
        weights += network.vocab_size * h
    per_weight = 6 if network.pet_config is None else 4
    return tokens * (per_weight * weights + 12 * network.num_layers * h * s)


def weights_of_block(network: GPT2Section) -> int:
    """Weights in the matrix products of a block: query, key, value, projection; feed-forward up and down."""
    return 4 * network.hidden_size**2 + 2 * network.hidden_size * network.ffn_hidden_size


def kept_by_block(config: RunConfig) -> int:
    """Bytes that a block keeps on a device from the forward to the backward pass of a micro-batch, if nothing is
    recomputed.

    Equations 1, 2 and 4 of the paper, adapted to how this network is written: every term has its own dtype, the
    activation function counts what it keeps, flash attention replaces the scores. Products keep copies of their
    weights: cast, or plain if the update will overwrite them; but with a sharded optimizer the gathered weights, which
    are counted by themselves. With sequence parallelism the inputs of column-parallel products are kept gathered.
    """
    network, grid = config.model.config, grid_of(config)
    t, rows = grid.model_parallel, config.runner_config.batch_size * network.seq_length
    values = rows * network.hidden_size
    compute, norm = BYTES[network.compute_dtype], BYTES[network.layernorm_compute_type]
    norms = values * 2 * norm * _KEPT_BY_LAYER_NORM[network.layer_norm]
    if config.parallel_config.use_seq_parallel:
        norms //= t
    inputs_of_columns = values * 2 * compute  # of query, key and value together; of the feed-forward layer
    query_key_value_context = values * 4 * compute
    wide = rows * network.ffn_hidden_size * compute * (1 + _KEPT_BY_ACTIVATION[network.hidden_act])
    attention = _kept_by_attention_kernel(config)
    sharded = (query_key_value_context + wide + attention) // t + _copies_of_weights(config)
    return norms + inputs_of_columns + sharded + _dropout_masks_of_block(config)


def _copies_of_weights(config: RunConfig) -> int:
    """Bytes of a block's weights that its products keep copies of."""
    network = config.model.config
    is_overwritten = network.pet_config is None or network.param_init_type != network.compute_dtype
    if gathers_weights(config) or not is_overwritten:
        return 0
    return weights_of_block(network) * BYTES[network.compute_dtype] // grid_of(config).model_parallel


def gathers_weights(config: RunConfig) -> bool:
    """Whether weights are sharded by the optimizer, so that a step gathers them. MindSpore 2.10 does it once in a step,
    outside the blocks, and keeps them all to the end of the backward pass, under every kind of recomputation."""
    return asks_for_semi_auto(config) and shards_optimizer(config) and grid_of(config).devices > 1


def _dropout_masks_of_block(config: RunConfig) -> int:
    """Bytes of a block's dropout masks on a device. They are kept under every kind of recomputation."""
    network, t = config.model.config, grid_of(config).model_parallel
    b, s, a = config.runner_config.batch_size, network.seq_length, network.num_heads
    residual = 2 * b * s * network.hidden_size // (t if config.parallel_config.use_seq_parallel else 1)
    values = residual if network.hidden_dropout_rate else 0
    values += a * b * s * s // t if network.attention_dropout_rate else 0
    return values // _VALUES_PER_MASK_BYTE


def _kept_by_attention_kernel(config: RunConfig) -> int:
    """Bytes that attention keeps besides query, key, value, context and dropout mask, on all t ranks together."""
    network = config.model.config
    b, s, a = config.runner_config.batch_size, network.seq_length, network.num_heads
    compute, dropout = BYTES[network.compute_dtype], network.attention_dropout_rate > 0
    if network.use_flash_attention:
        return b * s * network.hidden_size * compute + a * b * s * _FLASH_STATISTICS
    softmax = 4 if network.reorder_and_upcast_attn else BYTES[network.softmax_compute_type]
    cast = compute if dropout or network.compute_dtype != network.softmax_compute_type else 0
    return a * b * s * s * (softmax + cast)


class Activations(NamedTuple):
    """Peak bytes of activations on a device of a pipeline stage, by what they are.

    Attributes:
        kept: by the blocks for the backward pass, and by the layer norm after the embeddings.
        dropout_masks: of all blocks and of the embeddings.
        working_set: what one block needs while it is recomputed.
        logits: the head's: its input, logits, their exponentials and gradient, the token table as it is multiplied.
        attention_mask: which keys a query sees: T x T, for each row if rows are padded or packed, and the constant it
            is made of; or the one small causal mask of flash attention.
    """

    kept: int
    dropout_masks: int
    working_set: int
    logits: int
    attention_mask: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def memory_terms(
    parameters: int, gradients: int, optimizer: int, gathered_weights: int, activations: Activations
) -> dict[str, int]:
    """What the memory of a device holds: bytes by name, in the order of a report. Terms that are 0 are among them."""
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer state": optimizer,
        "gathered weights": gathered_weights,
        "kept by blocks": activations.kept,
        "dropout masks": activations.dropout_masks,
        "working set": activations.working_set,
        "logits and loss": activations.logits,
        "attention mask": activations.attention_mask,
    }


def activations_of_stage(config: RunConfig, stage: int, blocks: int) -> Activations:
    """What activations take on a device of a pipeline stage.

    In a pipeline with the schedule one forward, one backward, stage i of p holds p - i micro-batches (Narayanan et al.
    2021, section 2.2.1).

    Args:
        config: the run's.
        stage: from 0.
        blocks: of the stage.
    """
    network, grid = config.model.config, grid_of(config)
    interleaved = interleaved_batches(config)
    micro_batches = min(grid.pipeline_stage - stage, config.parallel_config.micro_batch_num) * interleaved
    values = config.runner_config.batch_size * network.seq_length * network.hidden_size  # of one interleaved batch
    kept_by_blocks, working = _with_recompute(config, stage)
    kept, masks = micro_batches * kept_by_blocks, micro_batches * blocks * _dropout_masks_of_block(config)
    if network.param_init_type == network.compute_dtype:
        keeping = blocks - recomputed_blocks(config, stage).full
        kept -= (micro_batches - 1) * keeping * _copies_of_weights(config)  # one serves all; casts are each one's own
    if stage == 0 and network.embedding_norm:
        kept += micro_batches * values * _bytes_of_norm(network)
    if stage == 0 and network.embedding_dropout_rate:
        masks += micro_batches * values // _VALUES_PER_MASK_BYTE
    logits = interleaved * _kept_by_head(config) if stage == grid.pipeline_stage - 1 else 0
    return Activations(kept, masks, working, logits, _attention_masks(config, micro_batches))


def _bytes_of_norm(network: GPT2Section) -> int:
    """That a layer norm keeps of each value."""
    return _KEPT_BY_LAYER_NORM[network.layer_norm] * BYTES[network.layernorm_compute_type]


def _kept_by_head(config: RunConfig) -> int:
    """Bytes of an interleaved batch in the last layer norm, the head and the loss."""
    network, t = config.model.config, grid_of(config).model_parallel
    rows, compute = config.runner_config.batch_size * network.seq_length, BYTES[network.compute_dtype]
    total = rows * network.hidden_size * (compute + (_bytes_of_norm(network) if network.final_norm else 0))
    if config.trainer.type != "CausalLanguageModelingTrainer":
        return total
    by_classes, by_rows = shards_vocabulary(config), shards_rows_of_head(config)
    logits = rows * network.vocab_size // (t if by_classes or by_rows else 1)
    total += 3 * 4 * logits  # float32: logits, their exponentials, and the gradient
    if network.param_init_type != network.compute_dtype:
        total += network.vocab_size * network.hidden_size * compute // (t if by_classes else 1)  # the cast table
    return total


def _attention_masks(config: RunConfig, micro_batches: int) -> int:
    """Bytes of the masks of T x T that micro-batches keep, in the form of the attention kernel, and of the constant
    that they are made of. A language model with flash attention, whose data is taken to be padded on the right, has
    one compressed mask instead. Positions of packed documents are counted once, from a mask of each row."""
    network, columns = config.model.config, config.train_dataset.input_columns
    of_documents, flash = network.reset_attention_mask, network.use_flash_attention
    needs_no_padding_mask = flash and config.trainer.type == "CausalLanguageModelingTrainer"
    square, rows = network.seq_length**2, config.runner_config.batch_size
    counted = rows * square * _COUNTING_POSITIONS if network.reset_position_ids else 0
    if needs_no_padding_mask and not of_documents:
        return _COMPRESSED_MASK + (square + counted if network.reset_position_ids else 0)
    padded = (not columns or "attention_mask" in columns) and not needs_no_padding_mask
    of_value = 1 if flash else BYTES[network.softmax_compute_type]
    masks = micro_batches * rows if padded or of_documents else 1
    return square + masks * square * of_value + counted


def _with_recompute(config: RunConfig, stage: int) -> tuple[int, int]:
    """Bytes that the blocks of a stage keep, and bytes that are needed besides while one block is recomputed, both
    without dropout masks, which are never recomputed."""
    network, t = config.model.config, grid_of(config).model_parallel
    block = kept_by_block(config) - _dropout_masks_of_block(config)
    attention = _kept_by_attention_kernel(config) // t
    blocks, full, selective = recomputed_blocks(config, stage)
    inputs = config.runner_config.batch_size * network.seq_length * network.hidden_size * BYTES[network.compute_dtype]
    sharded = config.parallel_config.use_seq_parallel or config.recompute_config.recompute_slice_activation
    kept = (
        full * (inputs // (t if sharded else 1)) + selective * (block - attention) + (blocks - full - selective) * block
    )
    return kept, block if full else attention if selective else 0


class StepTime(NamedTuple):
    """Estimated seconds of a step: computing, waiting for messages, and idle stages of a pipeline."""

    compute: float
    messages: float
    idle: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.messages + self.idle


def step_time(
    config: RunConfig, hardware: Hardware, flops_of_rank: float, collectives: Mapping[Collective, int], rank: int
) -> StepTime:
    """The estimated time of a step on a rank.

    Assumptions: products run at `efficiency` of the peak, which includes all other operators; collectives are rings at
    the bandwidth of their slowest link; those of weight gradients overlap with the backward pass, two thirds of the
    computation, all others are waited for; a pipeline of p stages and m micro-batches is idle for (p - 1) / m of its
    work (Narayanan et al. 2021, section 2.2.1).
    """
    half = config.model.config.compute_dtype != "float32"
    peak = (hardware.fp16_tflops if half else hardware.fp32_tflops) * 1e12
    compute = flops_of_rank / (peak * hardware.efficiency)
    overlapped = waited_for = 0.0
    devices = grid_of(config).devices
    for collective, count in collectives.items():
        seconds = count * _seconds(collective, hardware, devices, rank)
        if collective.purpose == "gradients":
            overlapped += seconds
        else:
            waited_for += seconds
    messages = waited_for + max(0.0, overlapped - compute * 2 / 3)
    stages = grid_of(config).pipeline_stage
    idle = (compute + messages) * (stages - 1) / config.parallel_config.micro_batch_num if stages > 1 else 0.0
    return StepTime(compute, messages, idle)


def _seconds(collective: Collective, hardware: Hardware, devices: int, rank: int) -> float:
    ranks = collective.cards or range(devices)
    servers = {number // hardware.cards_per_server for number in (*ranks, rank)}
    bandwidth = hardware.server_gb_per_second if len(servers) == 1 else hardware.network_gb_per_second
    return sent_bytes(collective, len(ranks)) / (bandwidth * 1e9)


def sent_bytes(collective: Collective, ranks: int) -> float:
    """Bytes that each rank sends: a ring of n sends (n - 1) / n of the tensor, twice for an AllReduce."""
    if collective.kind in ("Send", "Receive"):
        return float(collective.bytes)
    once = collective.bytes * (ranks - 1) / ranks
    return 2 * once if collective.kind == "AllReduce" else once


def tokens_per_second(config: RunConfig, time: StepTime) -> float:
    """Estimated tokens per second and device."""
    return rows_of_step(config) * config.model.config.seq_length / time.total / grid_of(config).devices
