"""What the graphs of cut models hold, compiled for simulated Ascend: collectives, parts of weights, updates."""

from collections import Counter

import pytest

from tests.tasks.toy_layouts import compile_as_rank

HIDDEN, VOCAB, LAYERS = 64, 256, 2
BLOCKS = "blocks-CellList"

pytestmark = pytest.mark.needs_ascend


@pytest.fixture
def compiled(tmp_path):
    """Compile as a card: `compiled(rank, cards, {yaml keys})` -> what `compile_step.py` tells."""

    def run(rank, cards, **layout):
        network = {
            "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 8, "vocab_size": VOCAB, "seq_length": 32,
            "compute_dtype": "float16",
        }  # fmt: skip
        settings = {
            "context": {"device_target": "Ascend"},
            "lr_schedule": {"learning_rate": 1e-4},
            "use_parallel": True,
            "parallel": {"parallel_mode": 1},
            "parallel_config": layout,
            "model": {"model_config": network},
        }
        return compile_as_rank(tmp_path, settings, rank, cards)

    return run


def collectives_in(told, scope_of_them):
    """Collectives of the computation in a scope, by direction and kind; equalising gradients is not among them."""
    return Counter(
        ("backward" if scope.startswith("(Gradients") else "forward", kind)
        for kind, scope in told["collectives"]
        if scope_of_them in scope and "Mirror" not in scope and "update-Update" not in scope
    )


def test_tensor_parallel_costs_what_megatron_costs(compiled):
    told = compiled(0, 2, model_parallel=2)
    assert collectives_in(told, BLOCKS) == {("forward", "AllReduce"): 2 * LAYERS, ("backward", "AllReduce"): 2 * LAYERS}
    prefix = "backbone.blocks.0."
    assert told["shapes"][prefix + "attention.dense1.weight"] == [HIDDEN // 2, HIDDEN]  # [out, in], by columns
    assert told["shapes"][prefix + "attention.projection.weight"] == [HIDDEN // 2, HIDDEN]  # [in, out], by rows
    assert told["shapes"][prefix + "output.mapping.weight"] == [HIDDEN, 2 * HIDDEN]
    assert told["shapes"][prefix + "output.mapping.bias"] == [2 * HIDDEN]
    assert told["shapes"][prefix + "output.projection.weight"] == [2 * HIDDEN, HIDDEN]
    assert told["shapes"][prefix + "output.projection.bias"] == [HIDDEN]
    assert told["shapes"]["backbone.embedding.word_embedding.embedding_table"] == [VOCAB, HIDDEN]


def test_sequence_parallel_gathers_and_scatters_in_pairs(compiled):
    """Counted over the whole network: the head gathers once too, and MindSpore names the ReduceScatter of its gradient
    sometimes as if it were the last block's."""
    told = compiled(0, 2, model_parallel=2, use_seq_parallel=True)
    assert collectives_in(told, "network-GPT2LMHeadModel") == {
        ("forward", "AllGather"): 2 * LAYERS + 1,
        ("forward", "ReduceScatter"): 2 * LAYERS,
        ("backward", "AllGather"): 2 * LAYERS,
        ("backward", "ReduceScatter"): 2 * LAYERS + 1,
    }
    forward = Counter({key: count for key, count in collectives_in(told, BLOCKS).items() if key[0] == "forward"})
    assert forward == {("forward", "AllGather"): 2 * LAYERS, ("forward", "ReduceScatter"): 2 * LAYERS}


def test_data_parallel_has_no_collective_in_its_blocks(compiled):
    told = compiled(1, 2, data_parallel=2)
    assert not collectives_in(told, BLOCKS)
    mirrored = [kind for kind, scope in told["collectives"] if "Mirror" in scope]
    assert len(mirrored) >= len(told["shapes"])  # every gradient; the tied table's comes twice


def test_holders_are_the_cards_with_the_same_part(compiled):
    told = compiled(0, 4, data_parallel=2, model_parallel=2)
    whole = {"layernorm", "projection.bias", "embedding_table"}
    for name, holders in told["holders"].items():
        assert holders == (4 if any(part in name for part in whole) else 2), name


@pytest.mark.parametrize("rank", [0, 2])
def test_pipeline_stages_update_what_they_hold_and_nothing_else(compiled, rank):
    """MindSpore cuts an update away without a word where it depends on another stage: the graph is asked."""
    told = compiled(rank, 4, model_parallel=2, pipeline_stage=2, micro_batch_num=4)
    names = set(told["shapes"])
    assert told["updates"] == len(names)
    block = "backbone.blocks.0." if rank == 0 else "backbone.blocks.1."
    tables = {f"backbone.embedding.{kind}_embedding.embedding_table" for kind in ("word", "position")}
    last = {"backbone.layernorm.gamma", "backbone.layernorm.beta"}
    assert {name for name in names if "blocks" not in name} == (tables if rank == 0 else last)
    assert all(name.startswith(block) for name in names if "blocks" in name)
    assert len([name for name in names if "blocks" in name]) == 16
    assert told["holders"][f"{block}layernorm1.gamma"] == 2
    assert told["holders"][f"{block}attention.dense1.weight"] == 1
    # The token embedding is sent to the last stage, and its gradient back: two more messages than the four
    # micro-batches have.
    kinds = Counter(kind for kind, _ in told["collectives"])
    assert kinds["Send"] == kinds["Receive"] == 5
    assert any("GlobalNorm" in scope for _, scope in told["collectives"])
