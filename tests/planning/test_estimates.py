"""Formulas of the dry run against the papers they come from, and against numbers worked out by hand."""

import pytest

from mindgpt.config.hardware import Hardware
from mindgpt.config.run_config import RunConfig
from mindgpt.planning import estimates
from mindgpt.runtime.compiled_graph import Collective

S, H, A, B, LAYERS, V = 512, 1024, 16, 4, 12, 5000


def config(network=None, sections=None, **layout) -> RunConfig:
    sizes = {"seq_length": S, "hidden_size": H, "num_heads": A, "num_layers": LAYERS, "vocab_size": V}
    return RunConfig.model_validate(
        {
            "model": {"model_config": sizes | (network or {})},
            "runner_config": {"batch_size": B},
            "lr_schedule": {"learning_rate": 1e-4},
            "parallel": {"parallel_mode": 1},
            "parallel_config": layout,
            **(sections or {}),
        }
    )


ALL_HALF = dict.fromkeys(
    ("param_init_type", "compute_dtype", "layernorm_compute_type", "softmax_compute_type"), "float16"
)


COPIES = 2 * 12 * H * H  # of a block's weights, which the paper does without
BIT = 1 / 8  # of a dropout mask for each value, where the paper has a byte


@pytest.mark.parametrize("t", [1, 8])
def test_a_block_in_half_precision_keeps_what_korthikanti_says(t):
    """Equation 2, of which equation 1 is the case t = 1: 10 + 24 / t + 5 a s / (h t) with masks of bytes."""
    expected = S * B * H * (8 + 2 * BIT + 24 / t + (4 + BIT) * A * S / (H * t)) + COPIES / t
    assert estimates.kept_by_block(config(ALL_HALF, model_parallel=t)) == expected


def test_sequence_parallel_is_equation_4_but_for_the_gathered_inputs():
    t, gathered = 8, 2 * 2  # two inputs of products, which the paper gathers again, of 2 bytes
    expected = S * B * H / t * (32 + 2 * BIT + (4 + BIT) * A * S / H) + S * B * H * gathered * (1 - 1 / t) + COPIES / t
    assert estimates.kept_by_block(config(ALL_HALF, model_parallel=t, use_seq_parallel=True)) == expected


def test_flash_attention_keeps_no_scores():
    plain = estimates.kept_by_block(config(ALL_HALF))
    flash = estimates.kept_by_block(config(ALL_HALF | {"use_flash_attention": True}))
    assert plain - flash == 4 * A * S * S * B - (S * B * H * 2 + A * S * B * 64)  # the masks are the same


def test_full_recomputation_keeps_inputs_and_masks_of_blocks_and_one_block():
    full = {"recompute_config": {"recompute": True}}
    block = estimates.kept_by_block(config(ALL_HALF))
    masks = (2 * B * S * H + A * B * S * S) // 8  # are not recomputed
    causal = S * S + B * S * S * 2  # the constant, and a float16 mask of each row
    kept = estimates.activations_of_stage(config(ALL_HALF, full), 0, LAYERS)
    of_embedding = B * S * H // 8
    head = B * S * (H * 4 + V * 12)
    assert kept == (LAYERS * 2 * S * B * H, LAYERS * masks + of_embedding, block - masks, head, causal)
    none = estimates.activations_of_stage(config(ALL_HALF), 0, LAYERS)
    assert none == (LAYERS * (block - masks), LAYERS * masks + of_embedding, 0, head, causal)
    assert none.total == LAYERS * block + of_embedding + head + causal


def test_early_stages_hold_more_micro_batches():
    """Each with activations of its own; of the plain weights, which products keep, there is one copy."""
    no_dropout = dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), 0.0)
    run = config(ALL_HALF | no_dropout, pipeline_stage=4, micro_batch_num=8)
    block = estimates.kept_by_block(run)
    held = [estimates.activations_of_stage(run, stage, 3).kept for stage in range(3)]
    assert held == [3 * (n * (block - COPIES) + COPIES) for n in (4, 3, 2)]
    few = config(ALL_HALF | no_dropout, pipeline_stage=4, micro_batch_num=2)
    assert estimates.activations_of_stage(few, 0, 3).kept == 3 * (2 * (block - COPIES) + COPIES)
    cast = config(ALL_HALF | no_dropout | {"param_init_type": "float32"}, pipeline_stage=4, micro_batch_num=8)
    assert estimates.activations_of_stage(cast, 0, 3).kept == 4 * 3 * block


def test_gathered_weights_are_not_kept_by_blocks_as_well():
    """With a sharded optimizer; frozen weights that nothing casts are not copied at all."""
    whole = estimates.kept_by_block(config(ALL_HALF, data_parallel=2))
    sharded = config(ALL_HALF, {"use_parallel": True}, data_parallel=2, optimizer_shard=True)
    assert whole - estimates.kept_by_block(sharded) == COPIES
    pet = {"pet_config": {"pet_type": "lora", "lora_rank": 8, "lora_alpha": 16, "target_modules": ".*dense1"}}
    assert whole - estimates.kept_by_block(config(ALL_HALF | pet, data_parallel=2)) == COPIES


def attention_mask(network, sections=None, **layout):
    return estimates.activations_of_stage(config(network, sections, **layout), 0, 1).attention_mask


def test_the_attention_mask_is_of_each_row_if_rows_are_padded():
    columns = {"train_dataset": {"input_columns": ["input_ids"]}}
    assert attention_mask({}, columns) == (1 + 4) * S * S
    assert attention_mask({}) == (1 + 4 * B) * S * S
    network = {"seq_length": S, "use_flash_attention": True, "num_labels": 2}
    classifier = {"arch": {"type": "GPT2ForSequenceClassification"}, "model_config": network}
    sections = {"trainer": {"type": "TextClassificationTrainer"}, "model": classifier}
    assert attention_mask({}, sections) == (1 + B) * S * S


@pytest.mark.parametrize("length", [S, 64 * S])
def test_flash_attention_of_a_language_model_has_one_mask_for_rows_of_any_length(length):
    flash = {"use_flash_attention": True, "seq_length": length, "eos_token_id": 0}
    stages = {"pipeline_stage": 2, "micro_batch_num": 4}
    assert attention_mask(flash) == attention_mask(flash, **stages) == 2048 * 2048
    packed = flash | {"reset_attention_mask": True}
    assert attention_mask(packed) == (1 + B) * length**2
    assert attention_mask(packed, **stages) == (1 + 2 * B) * length**2  # of two micro-batches
    assert attention_mask(flash | {"reset_position_ids": True}) == 2048 * 2048 + (1 + 5 * B) * length**2
    assert attention_mask(packed | {"reset_position_ids": True}) == (1 + B + 5 * B) * length**2


def test_gpt2_ml_has_a_layer_norm_after_the_embeddings_and_none_before_the_head(monkeypatch):
    monkeypatch.setattr(estimates, "_KEPT_BY_ACTIVATION", {"gelu": 1, "gelu_erf": 1})
    both = [config(ALL_HALF | {"variant": name}, pipeline_stage=2, micro_batch_num=4) for name in ("gpt2", "gpt2_ml")]
    of_gpt2, of_ml = ([estimates.activations_of_stage(run, stage, 3).total for stage in (0, 1)] for run in both)
    norm = 2 * B * S * H  # its input in half precision, which the first stage keeps of two micro-batches
    assert (of_ml[0] - of_gpt2[0], of_ml[1] - of_gpt2[1]) == (2 * norm, -norm)


def test_operations_of_gpt3_13b():
    """Brown et al. 2020, table D.1: 2.31e22 operations for the 13B model and 300e9 tokens, scores apart."""
    run = config({"seq_length": 2048, "hidden_size": 5140, "num_heads": 20, "num_layers": 40, "vocab_size": 50257})
    scores = 12 * 40 * 5140 * 2048
    per_token = estimates.flops_of_step(run) / (B * 2048) - scores
    assert per_token * 300e9 == pytest.approx(2.31e22, rel=0.02)


def test_lora_needs_no_gradients_of_frozen_weights():
    pet = {"pet_config": {"pet_type": "lora", "lora_rank": 8, "lora_alpha": 16, "target_modules": ".*dense1"}}
    scores = B * S * 12 * LAYERS * H * S
    full, lora = (estimates.flops_of_step(config(network)) - scores for network in ({}, pet))
    assert lora / full == pytest.approx(4 / 6)


HARDWARE = Hardware(
    name="x",
    memory_gib=64,
    fp16_tflops=100,
    fp32_tflops=10,
    cards_per_server=8,
    server_gb_per_second=100,
    network_gb_per_second=10,
    efficiency=0.5,
)


def test_time_of_a_step_by_hand():
    inside = Collective("AllReduce", "activations", (0, 1, 2, 3), 10**9)  # 2 x 3/4 x 1 GB at 100 GB/s = 0.015 s
    across = Collective("AllGather", "weights", (0, 8), 10**9)  # 1/2 x 1 GB at 10 GB/s = 0.05 s
    small = Collective("ReduceScatter", "gradients", (0, 8), 10**9)  # 0.05 s, overlapped with 2/3 of 1 s
    run = config({"compute_dtype": "float16"}, data_parallel=4, model_parallel=4)
    time = estimates.step_time(run, HARDWARE, 50e12, {inside: 2, across: 1, small: 1}, rank=0)
    assert (time.compute, time.messages, time.idle) == pytest.approx((1.0, 0.08, 0.0))
    time = estimates.step_time(run, HARDWARE, 50e12, {small: 20}, rank=0)
    assert time.messages == pytest.approx(20 * 0.05 - 2 / 3)
    assert estimates.tokens_per_second(run, time) == pytest.approx(4 * B * S / 16 / time.total)
    slow = estimates.step_time(config(), HARDWARE, 50e12, {}, rank=0)
    assert slow.compute == pytest.approx(10.0)  # float32


def test_a_pipeline_idles_for_its_bubble():
    run = config({"compute_dtype": "float16"}, pipeline_stage=4, micro_batch_num=8)
    message = Collective("Send", "stages", (1,), 10**10)  # 0.1 s
    time = estimates.step_time(run, HARDWARE, 50e12, {message: 1}, rank=0)
    assert time.idle == pytest.approx((1.0 + 0.1) * 3 / 8)
