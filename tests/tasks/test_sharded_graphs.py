"""The graphs of sharded models, compiled for simulated Ascend: collectives, shards of weights, updates."""

from collections import Counter

import pytest

from tests.tasks.toy_layouts import compile_as_rank

HIDDEN, VOCAB, LAYERS = 64, 256, 2
BLOCKS = "blocks-CellList"

pytestmark = pytest.mark.needs_ascend


@pytest.fixture
def compiled(tmp_path):
    """Compile as a rank: `compiled(rank, ranks, {yaml keys})` -> the facts that `compile_step.py` prints."""

    def run(rank, ranks, variant="gpt2", **layout):
        network = {
            "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 8, "vocab_size": VOCAB, "seq_length": 32,
            "compute_dtype": "float16", "variant": variant,
        }  # fmt: skip
        settings = {
            "context": {"device_target": "Ascend"},
            "lr_schedule": {"learning_rate": 1e-4},
            "use_parallel": True,
            "parallel": {"parallel_mode": 1},
            "parallel_config": layout,
            "model": {"model_config": network},
        }
        return compile_as_rank(tmp_path, settings, rank, ranks)

    return run


def collectives_in(facts, wanted):
    """Collectives of the computation in a scope, by direction and kind, without those that reduce gradients."""
    return Counter(
        ("backward" if scope.startswith("(Gradients") else "forward", kind)
        for kind, scope in facts["collectives"]
        if wanted in scope and "Mirror" not in scope and "update-Update" not in scope
    )


def test_tensor_parallel_costs_what_megatron_costs(compiled):
    facts = compiled(0, 2, model_parallel=2)
    assert collectives_in(facts, "network-GPT2LMHeadModel") == {
        ("forward", "AllReduce"): 2 * LAYERS + 2,  # the sums of losses and of weights
        ("backward", "AllReduce"): 2 * LAYERS + 1,  # the gradient of the first
    }
    assert collectives_in(facts, BLOCKS)["forward", "AllReduce"] == 2 * LAYERS
    prefix = "backbone.blocks.0."
    assert facts["shapes"][prefix + "attention.dense1.weight"] == [HIDDEN // 2, HIDDEN]  # [out, in], by columns
    assert facts["shapes"][prefix + "attention.projection.weight"] == [HIDDEN // 2, HIDDEN]  # [in, out], by rows
    assert facts["shapes"][prefix + "output.mapping.weight"] == [HIDDEN, 2 * HIDDEN]
    assert facts["shapes"][prefix + "output.mapping.bias"] == [2 * HIDDEN]
    assert facts["shapes"][prefix + "output.projection.weight"] == [2 * HIDDEN, HIDDEN]
    assert facts["shapes"][prefix + "output.projection.bias"] == [HIDDEN]
    assert facts["shapes"]["backbone.embedding.word_embedding.embedding_table"] == [VOCAB, HIDDEN]


@pytest.mark.parametrize("variant", ["gpt2", "gpt2_ml"])
def test_sequence_parallel_gathers_and_scatters_in_pairs(compiled, variant):
    """Counted over the whole network: the head, whose rows are sharded as the last layer norm's, gathers nothing.

    The first attention of gpt2_ml takes the embeddings as they are, which every rank has; that of GPT-2 their layer
    norm, of which every rank has some rows.
    """
    facts = compiled(0, 2, variant, model_parallel=2, use_seq_parallel=True)
    inputs = 2 * LAYERS - (variant == "gpt2_ml")
    assert collectives_in(facts, "network-GPT2LMHeadModel") == {
        ("forward", "AllGather"): inputs,
        ("forward", "AllReduce"): 2,  # the sums of losses and of weights
        ("backward", "AllReduce"): 1,  # the gradient of the first
        ("forward", "ReduceScatter"): 2 * LAYERS,
        ("backward", "AllGather"): 2 * LAYERS,
        ("backward", "ReduceScatter"): inputs,
    }
    forward = Counter({key: count for key, count in collectives_in(facts, BLOCKS).items() if key[0] == "forward"})
    assert forward == {("forward", "AllGather"): inputs, ("forward", "ReduceScatter"): 2 * LAYERS}


def test_data_parallel_has_no_collective_in_its_blocks(compiled):
    facts = compiled(1, 2, data_parallel=2)
    assert not collectives_in(facts, BLOCKS)
    mirrored = [kind for kind, scope in facts["collectives"] if "Mirror" in scope]
    assert len(mirrored) >= len(facts["shapes"])  # every gradient; the tied table's comes twice


def test_holders_are_the_ranks_with_the_same_shard(compiled):
    facts = compiled(0, 4, data_parallel=2, model_parallel=2)
    whole = {"layernorm", "projection.bias", "embedding_table"}
    for name, holders in facts["holders"].items():
        assert holders == (4 if any(part in name for part in whole) else 2), name


@pytest.mark.parametrize("rank", [0, 2])
def test_pipeline_stages_update_what_they_hold_and_nothing_else(compiled, rank):
    """MindSpore silently drops an update that depends on another stage, so the graph is checked."""
    facts = compiled(rank, 4, model_parallel=2, pipeline_stage=2, micro_batch_num=4)
    names = set(facts["shapes"])
    assert facts["updates"] == len(names)
    block = "backbone.blocks.0." if rank == 0 else "backbone.blocks.1."
    tables = {f"backbone.embedding.{kind}_embedding.embedding_table" for kind in ("word", "position")}
    last = {"backbone.layernorm.gamma", "backbone.layernorm.beta"}
    assert {name for name in names if "blocks" not in name} == (tables if rank == 0 else last)
    assert all(name.startswith(block) for name in names if "blocks" in name)
    assert len([name for name in names if "blocks" in name]) == 16
    assert facts["holders"][f"{block}layernorm1.gamma"] == 2
    assert facts["holders"][f"{block}attention.dense1.weight"] == 1
    # The token embedding is sent to the last stage, and its gradient back: two more messages than the four
    # micro-batches have.
    kinds = Counter(kind for kind, _ in facts["collectives"])
    assert kinds["Send"] == kinds["Receive"] == 5
    assert any("GlobalNorm" in scope for _, scope in facts["collectives"])
