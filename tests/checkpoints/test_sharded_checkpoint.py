"""Strategy files and shards; the oracle is MindSpore, which shards the same tensors by the same strategy files."""

import tracemalloc
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.checkpoints.run_folder import Step, choose_files, rank_folders
from mindgpt.checkpoints.sharded_checkpoint import ShardedCheckpoint
from mindgpt.checkpoints.strategy_format import read_strategy
from mindgpt.checkpoints.tensor_source import BFLOAT16_BITS, TensorInfo
from mindgpt.checkpoints.transform import transform
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError

RNG = np.random.default_rng(0)

# Eight ranks. Name -> device matrix, tensor map (axes from the right, -1: not sharded), optimizer shard step and size.
LAYOUTS = {
    "whole": ([8], [-1, -1], 0, 0),
    "rows": ([2, 4], [0, -1], 0, 0),
    "columns": ([4, 2], [-1, 0], 0, 0),
    "both": ([2, 2, 2], [2, 0], 0, 0),
    "crossed": ([2, 4], [0, 1], 0, 0),
    "all.of.them": ([2, 4], [1, 0], 0, 0),
    "sharded": ([8], [-1, -1], 1, -1),
    "rows.sharded": ([4, 2], [0, -1], 2, -1),
    "columns.sharded": ([4, 2], [-1, 0], 2, -1),
    "outer.rows.sharded": ([2, 4], [1, -1], 1, -1),
    "vector": ([2, 4], [0], 0, 0),
    "vector.sharded": ([2, 4], [0], 4, -1),
}


def write_strategy(path: Path, layouts, stage: int = 0) -> None:
    """A strategy file, as MindSpore writes it for a rank of a stage."""
    message = ParallelStrategyMap(current_stage=1)
    operator = message.parallel_strategy_item.add(node_name="MatMul")
    operator.parallel_strategys.stage = stage
    operator.parallel_strategys.parallel_strategy.add().dim.append(1)
    for name, (matrix, tensor_map, step, size) in layouts.items():
        stored = message.parallel_layout_item.add(param_name=name).parallel_layouts
        stored.field, stored.opt_weight_shard_step, stored.opt_weight_shard_size = 0, step, size
        stored.dev_matrix.add().dim.extend(matrix)
        stored.tensor_map.add().dim.extend(tensor_map)
        stored.param_split_shape.add()
        stored.indices_offset.add()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(message.SerializeToString())


def tensors(layouts=LAYOUTS):
    return {name: RNG.standard_normal((16, 24)[: len(cut[1])]).astype(np.float32) for name, cut in layouts.items()}


def cut_by_mindspore(folder: Path, held, strategy: Path) -> Path:
    """`rank_<r>/x<r>.ckpt`, sharded by MindSpore from whole tensors."""
    (folder / "whole" / "rank_0").mkdir(parents=True)
    ms.save_checkpoint(
        [{"name": name, "data": Tensor(array)} for name, array in held.items()], str(folder / "whole/rank_0/w.ckpt")
    )
    (folder / "checkpoint").mkdir()
    ms.transform_checkpoints(str(folder / "whole"), str(folder / "checkpoint"), "x", None, str(strategy))
    return folder / "checkpoint"


def test_shards_of_mindspore_are_merged_and_ours_are_equal(tmp_path):
    strategy, held = tmp_path / "strategy.ckpt", tensors()
    write_strategy(strategy, LAYOUTS)
    folder = cut_by_mindspore(tmp_path, held, strategy)
    sliced = ShardedCheckpoint(folder, strategy)
    assert sliced.entries == {name: TensorInfo(array.shape, "float32") for name, array in held.items()}
    for name, array in held.items():
        assert np.array_equal(sliced.read(name), array), name
    files = transform(tmp_path / "whole", tmp_path / "ours", "x", target_strategy=strategy)
    assert len(files) == 8
    for rank, file in enumerate(files):
        ours, theirs = CheckpointFile(file), CheckpointFile(folder / f"rank_{rank}/x{rank}.ckpt")
        for name in LAYOUTS:
            assert np.array_equal(ours.read(name), theirs.read(name)), (rank, name)


def test_shards_in_safetensors_are_merged_like_ckpt(tmp_path):
    """As MindFormers with checkpoint_format: safetensors leaves them; MindSpore turns the files into each other."""
    strategy, held = tmp_path / "strategy" / "ckpt_strategy_rank_0.ckpt", tensors()
    write_strategy(strategy, LAYOUTS)
    folder = cut_by_mindspore(tmp_path, held, strategy)
    for rank, ranks in rank_folders(folder).items():
        (file,) = ranks.glob("*.ckpt")
        ms.ckpt_to_safetensors(str(file), str(tmp_path / "turned"))
        next((tmp_path / "turned").rglob("*.safetensors")).rename(ranks / f"gpt2_rank_{rank}-1_2.safetensors")
        file.unlink()
    sliced = ShardedCheckpoint(folder)
    assert sliced.step == Step(1, 2)
    for name, array in held.items():
        assert np.array_equal(sliced.read(name), array), name
    with pytest.raises(UserError, match="is the shard of rank 3, one of 8, and no model by itself"):
        open_weights(folder / "rank_3" / "gpt2_rank_3-1_2.safetensors")


@pytest.mark.parametrize("merged", [False, True], ids=["a file a rank", "merged file"])
def test_pipeline_stages_hold_what_their_strategy_says(tmp_path, merged):
    """A rank's file holds other stages' parameters too, which are ignored."""
    by_stage = [{"a": ([2], [0, -1], 0, 0), "tied": ([2], [0, -1], 0, 0)}, {"b": ([2], [-1, 0], 0, 0)}]
    by_stage[1]["tied"] = ([2], [-1, -1], 0, 0)
    held = tensors(by_stage[0] | by_stage[1])
    strategies = tmp_path / "strategy"
    for rank in range(4):
        stage, part = divmod(rank, 2)
        write_strategy(strategies / f"ckpt_strategy_rank_{rank}.ckpt", by_stage[stage], stage)
        rows, columns = np.split(held["a"], 2)[part], np.split(held["b"], 2, axis=1)[part]
        tied = np.split(held["tied"], 2)[part] if stage == 0 else held["tied"]
        own = {"a": rows, "b": held["b"] * 0} if stage == 0 else {"a": held["a"] * 0, "b": columns}
        counters = {"step_num": np.array(7), "training_state": "{}", "norm_shares": np.ones(rank + 1, np.float32)}
        items = {**own, "tied": tied, **counters}
        write_checkpoint(tmp_path / f"checkpoint/rank_{rank}/x_rank_{rank}-2_5.ckpt", items.items())
    strategy = strategies
    if merged:
        strategy = tmp_path / "merged.ckpt"
        ms.merge_pipeline_strategys(str(strategies), str(strategy))
    sliced = ShardedCheckpoint(tmp_path / "checkpoint", strategy)
    assert sliced.strategy.ranks == 4
    assert sliced.step == Step(2, 5)
    assert sorted(sliced.entries) == ["a", "b", "step_num", "tied"]
    assert all(np.array_equal(sliced.read(name), array) for name, array in held.items())
    assert sliced.texts == {"training_state": "{}"}
    assert sliced.differences_between_stages() == {}


def test_bfloat16_is_preserved(tmp_path):
    strategy = tmp_path / "strategy.ckpt"
    layouts = {"rows": LAYOUTS["rows"], "columns.sharded": LAYOUTS["columns.sharded"]}
    write_strategy(strategy, layouts)
    bits = {name: RNG.integers(0, 0x7F00, (16, 24), np.uint16).view(BFLOAT16_BITS) for name in layouts}
    write_checkpoint(tmp_path / "whole.ckpt", bits.items())
    assert str(ms.load_checkpoint(str(tmp_path / "whole.ckpt"))["rows"].dtype) == "BFloat16"
    transform(tmp_path / "whole.ckpt", tmp_path / "sliced", "x", target_strategy=strategy)
    (merged,) = transform(tmp_path / "sliced", tmp_path / "merged", "x", strategy)
    file = CheckpointFile(merged)
    assert {info.dtype for info in file.entries.values()} == {"bfloat16"}
    assert all(file.read_box(name).tobytes() == array.tobytes() for name, array in bits.items())


def test_only_one_tensor_is_in_memory(tmp_path):
    strategy = tmp_path / "strategy.ckpt"
    layouts = {f"weight.{number}": LAYOUTS["both"] for number in range(20)}
    write_strategy(strategy, layouts)
    array = np.ones((512, 1024), np.float32)
    write_checkpoint(tmp_path / "whole.ckpt", ((name, array) for name in layouts))
    transform(tmp_path / "whole.ckpt", tmp_path / "sliced", "x", target_strategy=strategy)
    tracemalloc.start()
    transform(tmp_path / "sliced", tmp_path / "merged", "x", strategy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * array.nbytes  # of 20: a tensor, a shard, and what is always there


def test_mismatches_are_reported(tmp_path):
    strategy, held = tmp_path / "strategy.ckpt", tensors()
    write_strategy(strategy, LAYOUTS)
    folder = cut_by_mindspore(tmp_path, held, strategy)

    def refused(said, layouts=LAYOUTS, target=None):
        other = tmp_path / "other.ckpt"
        write_strategy(other, layouts)
        with pytest.raises(UserError, match=said):
            transform(folder, tmp_path / "result", "x", *((strategy, other) if target else (other,)))
        assert not (tmp_path / "result").exists()

    without = {name: cut for name, cut in LAYOUTS.items() if name != "rows"}
    refused("rows is in no strategy file and differs between rank 0 and 1", without)
    refused("more .* is in the strategy but not in the checkpoint", LAYOUTS | {"more": ([8], [-1], 0, 0)})
    refused("rows .* has 2 dimensions, and 1 in the strategy", LAYOUTS | {"rows": ([8], [0], 0, 0)})
    refused("vector should be the same on ranks 0 and 1", LAYOUTS | {"vector": ([4, 2], [1], 0, 0)})
    refused("contradicts itself: its stages are of 4 and 8 ranks", LAYOUTS | {"rows": ([4], [0, -1], 0, 0)})
    refused("holds the shards of 8 ranks, and .* describes a run of 4", {"rows": ([4], [0, -1], 0, 0)})
    refused(r"rows \[16, 24\] cannot be divided into \[1, 5\] shards",
            {name: ([5], [-1] * len(cut[1]), 0, 0) for name, cut in LAYOUTS.items()} | {"rows": ([5], [-1, 0], 0, 0)},
            target=True)  # fmt: skip
    refused("does not fit .*\n  rows is not in the strategy", without, target=True)
    square = {"backbone.blocks.0.attention.projection.weight": LAYOUTS["rows"]}
    write_strategy(tmp_path / "square.ckpt", square)
    write_checkpoint(tmp_path / "square.whole.ckpt", [(*square, np.ones((16, 16), np.float32))])
    cut = tmp_path / "square"
    transform(tmp_path / "square.whole.ckpt", cut, "x", target_strategy=tmp_path / "square.ckpt")
    write_strategy(tmp_path / "square.ckpt", dict.fromkeys(square, LAYOUTS["columns"]))
    with pytest.raises(UserError, match=r"would become \[4, 32\], and is square in every GPT-2"):
        ShardedCheckpoint(cut, tmp_path / "square.ckpt")


def test_strategy_files_that_contradict_each_other(tmp_path):
    write_strategy(tmp_path / "a_rank_0.ckpt", {"w": LAYOUTS["rows"]})
    write_strategy(tmp_path / "a_rank_1.ckpt", {"w": LAYOUTS["columns"]})
    with pytest.raises(UserError, match=r"a_rank_1.ckpt and .*a_rank_0.ckpt shard the same .* stage 0 in two ways"):
        read_strategy(tmp_path)
    write_strategy(tmp_path / "a_rank_1.ckpt", {"w": LAYOUTS["rows"]}, stage=2)
    with pytest.raises(UserError, match="the strategy files of pipeline stage 1 are missing"):
        read_strategy(tmp_path)
    write_strategy(tmp_path / "a_rank_1.ckpt", {"w": LAYOUTS["rows"]}, stage=1)
    with pytest.raises(UserError, match="rank 1 is in stage 0 of 8 ranks each"):
        read_strategy(tmp_path)


def test_the_step_is_the_newest_by_number_and_on_every_rank(tmp_path):
    def touch(rank, *steps):
        for step in steps:
            write_checkpoint(tmp_path / f"rank_{rank}/x_rank_{rank}-{step}.ckpt", [("a", np.ones(1))])

    touch(0, "9_5", "10_5")
    touch(1, "9_5", "10_5")
    folders = list(rank_folders(tmp_path).values())
    assert [file.name for file in choose_files(folders)] == ["x_rank_0-10_5.ckpt", "x_rank_1-10_5.ckpt"]
    assert choose_files(folders, Step(9, 5))[1].name == "x_rank_1-9_5.ckpt"
    (tmp_path / "rank_1/x_rank_1-10_5.ckpt").unlink()
    with pytest.raises(UserError, match="10_5 .* is missing in rank_1; rank_1 has 9_5.*all have: --step 9_5"):
        choose_files(folders)
    write_checkpoint(tmp_path / "rank_0/y_rank_0-9_5.ckpt", [("a", np.ones(1))])
    with pytest.raises(UserError, match="have the same step"):
        choose_files(folders, Step(9, 5))
