"""`tools/transform_ckpt.py` on shards that simulated Ascend ranks have written; the oracle is the values of the
parameters before sharding."""

import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.weights import load_weights, open_weights
from mindgpt.models import model_class
from mindgpt.tasks.merge_lora import merge
from tests.tasks.save_shards import whole
from tests.tasks.sharded_runs import assert_same_shards, assert_whole, make_run

TOOL = "tools/transform_ckpt.py"
LORA = {"pet_config": {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ".*(dense1|mapping)"}}

# parallel_config by name; hidden 256, since MindSpore leaves parameters of less than 64 kB whole
LAYOUTS = {
    "tensor, vocabulary, optimizer": {
        "data_parallel": 2, "model_parallel": 2, "vocab_emb_dp": False, "optimizer_shard": True,
    },
    "tensor, sequence, stages": {
        "model_parallel": 2, "use_seq_parallel": True, "pipeline_stage": 2, "micro_batch_num": 4,
    },
    "data, optimizer": {"data_parallel": 4, "optimizer_shard": True},
    "optimizer, stages": {"data_parallel": 2, "optimizer_shard": True, "pipeline_stage": 2, "micro_batch_num": 4},
    "everything": {
        "data_parallel": 2, "model_parallel": 2, "vocab_emb_dp": False, "optimizer_shard": True,
        "use_seq_parallel": True, "pipeline_stage": 2, "micro_batch_num": 4,
    },
    "data": {"data_parallel": 2},
    "tensor": {"model_parallel": 4},
    "four stages": {"pipeline_stage": 4, "micro_batch_num": 4},
}  # fmt: skip
ONE, OTHER = list(LAYOUTS)[:2]
HALF = {"param_init_type": "float16"}  # so there are master copies; layer norms are float32
SLOW = list(LAYOUTS)[2:]

pytestmark = [
    pytest.mark.usefixtures("cpu"),
    pytest.mark.needs_ascend,
]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The output folder of a run: `run_of(name of a layout)`; each is made once and only read by the tests."""
    made = {}

    def run(name, **network):
        if name not in made:
            made[name] = _make(LAYOUTS.get(name, LAYOUTS[ONE]), network or HALF, tmp_path_factory.mktemp("run"))
        return made[name]

    return run


def _make(layout, network, folder):
    settings = {
        "lr_schedule": {"learning_rate": 1e-4},
        "use_parallel": True,
        "parallel": {"parallel_mode": 1},
        "parallel_config": layout,
        "model": {
            "model_config": {
                "num_layers": 4 if layout.get("pipeline_stage") == 4 else 2, "hidden_size": 256, "num_heads": 8,
                "vocab_size": 256, "seq_length": 32, "compute_dtype": "float16", **network,
            }
        },
    }  # fmt: skip
    return make_run(settings, folder, compile_all=True)


@pytest.mark.parametrize("name", [ONE, OTHER, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_shards_merge_to_the_weights_bit_for_bit(run_of, succeed, checksums, tmp_path, name):
    output = run_of(name)
    before = checksums(output)
    source = ("--src_ckpt_dir", output / "checkpoint", "--src_ckpt_strategy", output / "strategy")
    console = succeed(TOOL, *source, "--dst_ckpt_dir", "merged", "--prefix", "gpt2_", cwd=tmp_path)
    assert "step 1_4 (epoch_step) of" in console
    stages = LAYOUTS[name].get("pipeline_stage", 1)
    assert_whole(tmp_path / "merged/rank_0/gpt2_0.ckpt", state=False, stages=stages)
    succeed(TOOL, *source, "--dst_ckpt_dir", "all", "--training_state", cwd=tmp_path)
    assert_whole(tmp_path / "all/rank_0/checkpoint_0.ckpt", state=True, stages=stages)
    assert checksums(output) == before


@pytest.mark.parametrize(
    "pair", [(ONE, OTHER), *(pytest.param((ONE, name), marks=pytest.mark.slow) for name in SLOW[:3])]
)
def test_reshards_to_another_layout_and_back(run_of, succeed, tmp_path, pair):
    one, other = map(run_of, pair)
    to_other = ("--dst_ckpt_strategy", other / "strategy", "--dst_ckpt_dir", "other")
    succeed(TOOL, "--src_ckpt_dir", one / "checkpoint", *to_other, cwd=tmp_path)
    back = (
        "--src_ckpt_strategy",
        other / "strategy",
        "--dst_ckpt_strategy",
        one / "strategy",
        "--dst_ckpt_dir",
        "back",
    )
    succeed(TOOL, "--src_ckpt_dir", tmp_path / "other", *back, cwd=tmp_path)
    assert_same_shards(tmp_path / "other", other / "checkpoint", ranks=4)
    assert_same_shards(tmp_path / "back", one / "checkpoint", ranks=4)


@pytest.mark.parametrize("name", [ONE, OTHER, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_what_one_card_of_a_stage_derives_is_what_the_others_hold(run_of, name):
    """On which `test_sharded_layouts.py` rests."""
    output, stages = run_of(name), LAYOUTS[name].get("pipeline_stage", 1)
    cards = sorted((output / "checkpoint").iterdir(), key=lambda folder: int(folder.name[5:]))
    others = [folder for number, folder in enumerate(cards) if number % (len(cards) // stages)]
    assert sorted(folder.name for folder in others) == sorted(folder.name for folder in output.glob("derived/*"))
    for folder in others:
        one, other = (CheckpointFile(next(of.glob("*.ckpt"))) for of in (output / "derived" / folder.name, folder))
        assert one.entries == other.entries
        assert all(np.array_equal(one.read(entry), other.read(entry)) for entry in one.entries), folder
    strategies = [(output / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").read_bytes() for rank in range(len(cards))]
    assert len(set(strategies)) == stages


def test_a_whole_checkpoint_is_sharded_as_mindspore_shards_it(run_of, succeed, tmp_path):
    output = run_of(ONE)
    succeed(TOOL, "--src_ckpt_dir", output / "checkpoint", "--dst_ckpt_dir", "merged", cwd=tmp_path)
    merged = tmp_path / "merged/rank_0/checkpoint_0.ckpt"
    succeed(
        TOOL, "--src_ckpt_dir", merged, "--dst_ckpt_strategy", output / "strategy", "--dst_ckpt_dir", "sliced",
        cwd=tmp_path,
    )  # fmt: skip
    by_mindspore = tmp_path / "mindspore"
    by_mindspore.mkdir()
    strategy = str(tmp_path / "merged_strategy.ckpt")
    ms.merge_pipeline_strategys(str(output / "strategy"), strategy)
    ms.transform_checkpoints(str(tmp_path / "merged"), str(by_mindspore), "checkpoint_", None, strategy)
    for rank in range(4):
        ours, theirs = (CheckpointFile(folder / f"rank_{rank}/checkpoint_{rank}.ckpt")
                        for folder in (tmp_path / "sliced", by_mindspore))  # fmt: skip
        assert ours.entries == theirs.entries
        assert all(np.array_equal(ours.read(name), theirs.read(name)) for name in ours.entries)


def test_a_model_loads_from_the_shards(run_of):
    checkpoint = run_of(OTHER) / "checkpoint"
    weights = open_weights(checkpoint)
    model = model_class("GPT2LMHeadModel")(weights.config)
    report = load_weights(model, weights)
    assert len(report.loaded) == len(model.parameters_dict())
    assert set(report.skipped.values()) >= {"optimizer state", "loss scale", "training counter"}
    for name, parameter in model.parameters_dict().items():
        dtype = ms.dtype_to_nptype(parameter.dtype)
        assert np.array_equal(parameter.asnumpy(), whole(name, parameter.shape, dtype)), name


def test_lora_merges_from_shards_as_from_one_file(run_of, succeed, tmp_path):
    output = run_of("LoRA", **LORA)
    succeed(TOOL, "--src_ckpt_dir", output / "checkpoint", "--dst_ckpt_dir", "merged", cwd=tmp_path)
    from_file = merge(tmp_path / "merged/rank_0/checkpoint_0.ckpt", tmp_path / "from_file")
    succeed(
        "tools/transform_ckpt_lora.py", "--src_ckpt_path_or_dir", output / "checkpoint", "--src_ckpt_strategy",
        output / "strategy", "--dst_ckpt_dir", "from_shards", cwd=tmp_path,
    )  # fmt: skip
    one, other = CheckpointFile(from_file), CheckpointFile(tmp_path / "from_shards/rank_0/checkpoint_0.ckpt")
    assert one.entries == other.entries
    assert all(np.array_equal(one.read(name), other.read(name)) for name in one.entries)
    linear = "backbone.blocks.1.output.mapping"
    a, b = (whole(f"{linear}.mindpet_delta_lora_{x}", shape) for x, shape in (("a", (8, 256)), ("b", (1024, 8))))
    expected = whole(f"{linear}.weight", (256, 1024)) + 2 * (b @ a).T
    np.testing.assert_allclose(other.read(f"{linear}.weight"), expected, atol=1e-5)


@pytest.fixture
def broken(run_of, tmp_path):
    """A copy of the run ONE that a test may break."""
    return Path(shutil.copytree(run_of(ONE), tmp_path / "broken"))


def test_broken_runs_are_refused_in_one_message_and_nothing_is_written(run_of, broken, program, tmp_path):
    checkpoint = broken / "checkpoint"
    last = checkpoint / "rank_3"

    def refused(*arguments, source=checkpoint):
        done = program(TOOL, "--src_ckpt_dir", source, "--dst_ckpt_dir", "merged", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "merged").exists()
        return done.stderr

    last.rename(tmp_path / "rank_3")
    assert "rank_3 of 4 missing" in refused()
    (tmp_path / "rank_3").rename(last)
    slice_ = last / "toy_rank_3-1_4.ckpt"
    assert "is the shard of rank 3, one of 4, and no model by itself" in refused(source=slice_)
    slice_.rename(last / "toy_rank_3-1_2.ckpt")
    message = refused()
    assert "step 1_4 (epoch_step) is missing in rank_3; rank_3 has 1_2" in message
    assert "--step" not in message  # there is no step that all have
    assert "step 1_9 (epoch_step) is missing in rank_0" in refused("--step", "1_9")
    (last / "toy_rank_3-1_2.ckpt").rename(slice_)
    for name, network in ((OTHER, {}), ("LoRA", LORA)):  # another layout, and another model in the same layout
        assert "are not of the same run" in refused("--src_ckpt_strategy", run_of(name, **network) / "strategy")
    of_lora = refused("--dst_ckpt_strategy", run_of("LoRA", **LORA) / "strategy")
    assert "mindpet_delta_lora_a is in the strategy but not in the checkpoint" in of_lora
    assert "no such strategy file or folder" in refused("--src_ckpt_strategy", tmp_path / "nowhere")
    assert "not a strategy file" in refused("--src_ckpt_strategy", slice_)
    assert "which is an input" in refused("--dst_ckpt_dir", checkpoint / "merged")
    content = slice_.read_bytes()
    slice_.write_bytes(content[: len(content) // 2])
    assert "not a whole MindSpore checkpoint" in refused()
    shutil.copy(checkpoint / "rank_2/toy_rank_2-1_4.ckpt", slice_)  # rank 2's slice under rank 3's name
    assert "should be the same on ranks" in refused()
