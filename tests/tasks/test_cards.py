"""Layouts over several cards, compiled for simulated Ascend: that they are legal, and what their graphs hold."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mindgpt.runtime.simulated_ascend import cann_is_there, run_simulated

PROGRAM = Path(__file__).with_name("compile_cards.py")
HIDDEN, VOCAB, LAYERS = 64, 256, 2

pytestmark = pytest.mark.skipif(
    not cann_is_there() and not all(shutil.which(tool) for tool in ("gcc", "g++", "nm")),
    reason="simulated Ascend needs gcc, g++ and nm, or CANN",
)


@pytest.fixture
def compiled(tmp_path, repo, monkeypatch):
    """Compile as a card: `compiled(rank, cards, {yaml keys})` -> what `compile_cards.py` tells."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repo), os.environ.get("PYTHONPATH", "")]))

    def run(rank, cards, sections=None, **layout):
        sections = dict(sections or {})
        network = {
            "num_layers": LAYERS, "hidden_size": HIDDEN, "num_heads": 8, "vocab_size": VOCAB, "seq_length": 32,
            "compute_dtype": "float16", **sections.pop("network", {}),
        }  # fmt: skip
        settings = {
            "lr_schedule": {"learning_rate": 1e-4},
            "use_parallel": True,
            "parallel": {"parallel_mode": 1, **sections.pop("parallel", {})},
            "parallel_config": layout,
            "model": {"model_config": network, **sections.pop("model", {})},
            **sections,
        }
        file = tmp_path / f"card_{rank}.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, PROGRAM, file, tmp_path / f"card_{rank}"]
        done = run_simulated(command, rank, cards, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def inside_blocks(told):
    """Collectives of the blocks' own computation, by direction and kind; equalising gradients is not among them."""
    return Counter(
        ("backward" if scope.startswith("(Gradients") else "forward", kind)
        for kind, scope in told["collectives"]
        if "blocks-CellList" in scope and "Mirror" not in scope and "update-Update" not in scope
    )


def test_tensor_parallel_costs_what_megatron_costs(compiled):
    told = compiled(0, 2, model_parallel=2)
    assert inside_blocks(told) == {("forward", "AllReduce"): 2 * LAYERS, ("backward", "AllReduce"): 2 * LAYERS}
    prefix = "backbone.blocks.0."
    assert told["shapes"][prefix + "attention.dense1.weight"] == [HIDDEN // 2, HIDDEN]  # [out, in], by columns
    assert told["shapes"][prefix + "attention.projection.weight"] == [HIDDEN // 2, HIDDEN]  # [in, out], by rows
    assert told["shapes"][prefix + "output.mapping.weight"] == [HIDDEN, 2 * HIDDEN]
    assert told["shapes"][prefix + "output.mapping.bias"] == [2 * HIDDEN]
    assert told["shapes"][prefix + "output.projection.weight"] == [2 * HIDDEN, HIDDEN]
    assert told["shapes"][prefix + "output.projection.bias"] == [HIDDEN]
    assert told["shapes"]["backbone.embedding.word_embedding.embedding_table"] == [VOCAB, HIDDEN]


def test_sequence_parallel_gathers_and_scatters_in_pairs(compiled):
    """The head gathers once too, so one ReduceScatter of the backward pass may stand in the last block's scope."""
    told = compiled(0, 2, model_parallel=2, use_seq_parallel=True)
    counts = inside_blocks(told)
    assert counts[("forward", "AllGather")] == counts[("forward", "ReduceScatter")] == 2 * LAYERS
    assert counts[("backward", "AllGather")] == 2 * LAYERS
    assert counts[("backward", "ReduceScatter")] in (2 * LAYERS, 2 * LAYERS + 1)
    assert not counts[("forward", "AllReduce")]
    assert not counts[("backward", "AllReduce")]


def test_data_parallel_has_no_collective_in_its_blocks(compiled):
    told = compiled(1, 2, data_parallel=2)
    assert not inside_blocks(told)
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


FLASH = {"use_flash_attention": True, "seq_length": 128}
LORA = {"pet_config": {"lora_rank": 8, "lora_dropout": 0.1, "target_modules": ".*(dense[123]|projection|mapping)"}}
CLASSIFIER = {
    "model": {"arch": {"type": "GPT2ForSequenceClassification"}},
    "trainer": {"type": "TextClassificationTrainer"},
}
ALL = {"data_parallel": 2, "model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4}
WIDE = {"hidden_size": 256}  # MindSpore leaves parameters of less than 64 kB whole
CASES = {
    "vocabulary": (0, 4, {"data_parallel": 2, "model_parallel": 2, "vocab_emb_dp": False}, {}, {}),
    "flash": (0, 4, {"data_parallel": 2, "model_parallel": 2}, FLASH, {}),
    "optimizer sharding": (0, 4, {"data_parallel": 4, "optimizer_shard": True}, WIDE, {}),
    "recompute": (0, 2, {"model_parallel": 2}, {}, {"recompute_config": {"recompute": True}}),
    "selective recompute": (0, 2, {"model_parallel": 2}, {}, {"recompute_config": {"select_recompute": True}}),
    "accumulation": (0, 2, {"model_parallel": 2}, {}, {"runner_config": {"gradient_accumulation_steps": 2}}),
    "everything": (
        7, 8, {**ALL, "use_seq_parallel": True, "vocab_emb_dp": False, "optimizer_shard": True}, {**FLASH, **WIDE},
        {"recompute_config": {"recompute": True, "recompute_slice_activation": True, "mp_comm_recompute": False}},
    ),
    "four stages": (2, 4, {"pipeline_stage": 4, "micro_batch_num": 8}, {"num_layers": 4}, {}),
    "LoRA": (0, 4, {"data_parallel": 2, "model_parallel": 2, "use_seq_parallel": True}, LORA, {}),
    "LoRA in stages": (7, 8, ALL, LORA, {}),
    "classification": (0, 4, {"data_parallel": 2, "model_parallel": 2}, {}, CLASSIFIER),
    "classification in stages": (7, 8, ALL, {}, CLASSIFIER),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layout_compiles_and_updates_all_it_trains(compiled, name):
    rank, cards, layout, network, sections = CASES[name]
    told = compiled(rank, cards, {"network": network, **sections}, **layout)
    assert told["updates"] == len(told["shapes"]) > 0
    if "optimizer_shard" in layout:
        table = told["shapes"]["backbone.blocks.1.output.mapping.weight"]
        parts = layout.get("model_parallel", 1) * layout["data_parallel"]
        assert table[0] * table[1] == 256 * 1024 // parts
    if name == "vocabulary":
        assert told["shapes"]["backbone.embedding.word_embedding.embedding_table"] == [VOCAB // 2, HIDDEN]
