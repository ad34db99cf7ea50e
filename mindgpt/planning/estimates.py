"""What a training step costs, by formula: floating-point operations, activations in memory, time.

Symbols, as in Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models"): a heads, b
rows of a micro-batch on a data-parallel card, h hidden size, L layers, s tokens of a row, t tensor-parallel cards. The
dry run prints what a block keeps by formula beside what it keeps in the compiled graph.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mindgpt.config.execution_sections import RecomputeSection
from mindgpt.config.hardware import Hardware
from mindgpt.config.layout import cuts_vocabulary, grid_of, interleaved_parts, rows_of_step
from mindgpt.config.model_sections import GPT2Section
from mindgpt.config.run_config import RunConfig
from mindgpt.runtime.compiled_graph import Collective

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_VALUES_PER_MASK_BYTE = 8  # a bit for each value, where the paper has a byte

# Tensors of the feed-forward width that the activation keeps for its backward pass as gpt2_modules.Activation writes it
# out; a fused kernel, as the paper has it, keeps 1.
_KEPT_BY_ACTIVATION = {"gelu": 6, "gelu_erf": 3, "fast_gelu": 2, "silu": 2, "relu": 1}
_FLASH_STATISTICS = 2 * 8 * 4  # bytes a head and token: maximum and sum of the softmax, 8 float32 each


def flops_of_step(config: RunConfig) -> float:
    """Floating-point operations of a training step on all cards together, recomputation apart.

    6 N D (Kaplan et al. 2020, section 2.1: forward 2, backward 4) for N weights in matrix products, the head among
    them, and D tokens; and 12 L h s a token for the scores of attention and their use, all of which are computed,
    those behind the causal mask too. With LoRA the N frozen weights need no gradient: 4 N D.
    """
    network = config.model.config
    tokens = rows_of_step(config) * network.seq_length
    h, s = network.hidden_size, network.seq_length
    weights = network.num_layers * _weights_of_block(network)
    if config.trainer.type == "CausalLanguageModelingTrainer":
        weights += network.vocab_size * h
    per_weight = 6 if network.pet_config is None else 4
    return tokens * (per_weight * weights + 12 * network.num_layers * h * s)


def _weights_of_block(network: GPT2Section) -> int:
    """Weights in the matrix products of a block: query, key, value, projection; feed-forward up and down."""
    return 4 * network.hidden_size**2 + 2 * network.hidden_size * network.ffn_hidden_size


def kept_by_block(config: RunConfig) -> int:
    """Bytes that a block keeps on a card from the forward to the backward pass of a micro-batch, without recomputation.

    Equations 1, 2 and 4 of the paper, adapted to how this network is written: every term by its own dtype, the
    activation by what it keeps, flash attention in place of the scores. Products keep copies of their weights, cast or,
    as the update will overwrite them, plain. With sequence parallelism the inputs of the products that are cut by
    columns are kept as gathered.
    """
    network, grid = config.model.config, grid_of(config)
    t, rows = grid.model_parallel, config.runner_config.batch_size * network.seq_length
    values = rows * network.hidden_size
    compute, norm = BYTES[network.compute_dtype], BYTES[network.layernorm_compute_type]
    norms = values * 2 * norm
    if config.parallel_config.use_seq_parallel:
        norms //= t
    inputs_of_columns = values * 2 * compute  # of query, key and value together; of the feed-forward layer
    query_key_value_context = values * 4 * compute
    wide = rows * network.ffn_hidden_size * compute * (1 + _KEPT_BY_ACTIVATION[network.hidden_act])
    attention = _kept_by_attention_kernel(config)
    weights = _weights_of_block(network) * compute
    in_shards = (query_key_value_context + wide + attention + weights) // t
    return norms + inputs_of_columns + in_shards + _masks_of_block(config)


def _masks_of_block(config: RunConfig) -> int:
    """Bytes of a block's dropout masks on a card. They are kept under every kind of recomputation."""
    network, t = config.model.config, grid_of(config).model_parallel
    b, s, a = config.runner_config.batch_size, network.seq_length, network.num_heads
    residual = 2 * b * s * network.hidden_size // (t if config.parallel_config.use_seq_parallel else 1)
    values = residual if network.hidden_dropout_rate else 0
    values += a * b * s * s // t if network.attention_dropout_rate else 0
    return values // _VALUES_PER_MASK_BYTE


def _kept_by_attention_kernel(config: RunConfig) -> int:
    """What attention keeps apart from query, key, value, context and dropout mask, on all t cards together."""
    network = config.model.config
    b, s, a = config.runner_config.batch_size, network.seq_length, network.num_heads
    compute, dropout = BYTES[network.compute_dtype], network.attention_dropout_rate > 0
    if network.use_flash_attention:
        return b * s * network.hidden_size * compute + a * b * s * _FLASH_STATISTICS
    softmax = 4 if network.reorder_and_upcast_attn else BYTES[network.softmax_compute_type]
    cast = compute if dropout or network.compute_dtype != network.softmax_compute_type else 0
    return a * b * s * s * (softmax + cast)


def activations_of_stage(config: RunConfig, stage: int, blocks: int) -> int:
    """Bytes of activations on a card of a pipeline stage at their highest.

    Of a pipeline with the schedule one forward, one backward, stage i of p holds p - i micro-batches (Narayanan et al.
    2021, section 2.2.1).

    Args:
        config: the run's.
        stage: from 0.
        blocks: that the stage has.
    """
    network, grid, recompute = config.model.config, grid_of(config), config.recompute_config
    last = stage == grid.pipeline_stage - 1
    parts = interleaved_parts(config)
    micro_batches = min(grid.pipeline_stage - stage, config.parallel_config.micro_batch_num) * parts
    rows = config.runner_config.batch_size * network.seq_length  # of one interleaved part
    kept, working = _with_recompute(config, recompute, kept_by_block(config))
    total = micro_batches * blocks * kept + working
    if stage == 0 and network.embedding_dropout_rate:
        total += micro_batches * rows * network.hidden_size // _VALUES_PER_MASK_BYTE
    if last:
        norm_bytes = BYTES[network.layernorm_compute_type] + BYTES[network.compute_dtype]
        total += parts * rows * network.hidden_size * norm_bytes
        if config.trainer.type == "CausalLanguageModelingTrainer":
            classes = network.vocab_size // (grid.model_parallel if cuts_vocabulary(config) else 1)
            total += parts * 3 * 4 * rows * classes  # float32: logits, their exponentials, and the gradient
    return total


def _with_recompute(config: RunConfig, recompute: RecomputeSection, block_bytes: int) -> tuple[int, int]:
    """What a block keeps, and what is there besides while one block is computed again."""
    network, t = config.model.config, grid_of(config).model_parallel
    if recompute.recompute:
        kept = config.runner_config.batch_size * network.seq_length * network.hidden_size * BYTES[network.compute_dtype]
        cut = config.parallel_config.use_seq_parallel or recompute.recompute_slice_activation
        masks = _masks_of_block(config)
        return kept // (t if cut else 1) + masks, block_bytes - masks
    if recompute.select_recompute:
        again = _kept_by_attention_kernel(config) // t
        return block_bytes - again, again
    return block_bytes, 0


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
    config: RunConfig, hardware: Hardware, flops_of_card: float, collectives: Mapping[Collective, int], rank: int
) -> StepTime:
    """The estimated time of a step on the card that has most to do.

    Assumptions: products at `efficiency` of the peak, the rest within that; collectives as rings, at the bandwidth of
    their slowest link; messages about gradients of weights hidden behind the backward pass, two thirds of the
    computation, as far as they fit, all others waited for; a pipeline of p stages and m micro-batches idle for
    (p - 1) / m of its work (Narayanan et al. 2021, section 2.2.1).
    """
    half = config.model.config.compute_dtype != "float32"
    peak = (hardware.fp16_tflops if half else hardware.fp32_tflops) * 1e12
    compute = flops_of_card / (peak * hardware.efficiency)
    hidden = waited_for = 0.0
    cards = grid_of(config).cards
    for collective, count in collectives.items():
        seconds = count * _seconds(collective, hardware, cards, rank)
        if collective.purpose == "gradients":
            hidden += seconds
        else:
            waited_for += seconds
    messages = waited_for + max(0.0, hidden - compute * 2 / 3)
    stages = grid_of(config).pipeline_stage
    idle = (compute + messages) * (stages - 1) / config.parallel_config.micro_batch_num if stages > 1 else 0.0
    return StepTime(compute, messages, idle)


def _seconds(collective: Collective, hardware: Hardware, all_cards: int, rank: int) -> float:
    cards = collective.cards or range(all_cards)
    servers = {card // hardware.cards_per_server for card in (*cards, rank)}
    bandwidth = hardware.server_gb_per_second if len(servers) == 1 else hardware.network_gb_per_second
    return sent_bytes(collective, len(cards)) / (bandwidth * 1e9)


def sent_bytes(collective: Collective, cards: int) -> float:
    """Bytes that each card sends: a ring of n sends (n - 1) / n of the tensor, twice for a sum that all have."""
    if collective.kind in ("Send", "Receive"):
        return float(collective.bytes)
    once = collective.bytes * (cards - 1) / cards
    return 2 * once if collective.kind == "AllReduce" else once


def tokens_per_second(config: RunConfig, time: StepTime) -> float:
    """Estimated tokens a second and card."""
    return rows_of_step(config) * config.model.config.seq_length / time.total / grid_of(config).cards
