"""A run whose model is sharded, from the user's command to its merged checkpoint, on simulated Ascend cards.

The cards compute nothing, but their shards and files are real.
"""

import json
import shutil
import sys

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.weights import save_checkpoint
from tests.programs import run_simulated

pytestmark = pytest.mark.needs_ascend

CARDS = 4
LAYOUT = (
    "model.model_config.num_layers=2", "parallel.parallel_mode=1",
    "parallel_config={model_parallel: 2, pipeline_stage: 2, micro_batch_num: 2}",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_layers(toy, succeed, tmp_path_factory):
    """A toy model that one process has trained: the folder that holds its output."""
    folder = tmp_path_factory.mktemp("two_layers")
    succeed(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--epochs", "1",
        "--options", "model.model_config.num_layers=2", cwd=folder,
    )  # fmt: skip
    return folder


def card(repo, toy, folder, rank, *arguments, cards=CARDS, layout=LAYOUT):
    command = [
        sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
        "--use_parallel", "True", *arguments, "--options", *layout,
    ]  # fmt: skip
    return run_simulated(command, rank, cards, cwd=folder, timeout=300)


@pytest.fixture(scope="module")
def whole(two_layers):
    """Its weights, in one file."""
    return next((two_layers / "output" / "checkpoint_network" / "rank_0").glob("*.ckpt"))


@pytest.fixture(scope="module")
def sharded_run(repo, toy, whole, tmp_path_factory):
    """The output of four ranks that fine-tune these weights; tests only read it."""
    folder = tmp_path_factory.mktemp("sharded_run")
    for rank in range(CARDS):
        done = card(repo, toy, folder, rank, "--run_mode", "finetune", "--load_checkpoint", str(whole))
        assert done.returncode == 0, done.stdout + done.stderr
        if rank == 0:
            assert "4 cards: data_parallel 1 x model_parallel 2 x pipeline_stage 2" in done.stdout
            assert "the cards are simulated, so nothing is trained" in done.stdout
            checked, compiling, read = map(
                done.stdout.index, ("fits the model", "compiling", "; the shards of rank 0: ")
            )
            assert checked < compiling < read
    return folder / "output"


def test_shards_of_a_run_merge_to_the_weights_it_started_from(toy, whole, sharded_run, succeed, tmp_path):
    shards = CheckpointFile(next((sharded_run / "checkpoint" / "rank_3").glob("*.ckpt")))
    assert "backbone.blocks.0.attention.dense1.weight" not in shards.entries
    assert shards.entries["backbone.blocks.1.attention.dense1.weight"].shape == (16, 32)
    assert {"global_step", "loss_scale", "step_num"} <= set(shards.entries)

    succeed(
        "tools/transform_ckpt.py", "--src_ckpt_strategy", sharded_run / "strategy", "--src_ckpt_dir",
        sharded_run / "checkpoint", "--dst_ckpt_dir", "merged", "--prefix", "toy", cwd=tmp_path,
    )  # fmt: skip
    merged = CheckpointFile(next((tmp_path / "merged").rglob("*.ckpt")))
    original = CheckpointFile(whole)
    assert set(merged.entries) == set(original.entries)
    for name in original.entries:
        np.testing.assert_array_equal(merged.read(name), original.read(name), err_msg=name)

    # The folder of shards is as good as the file, for one process on another device.
    results = []
    for name, weights in (("of_shards", sharded_run / "checkpoint"), ("of_file", whole)):
        succeed(
            "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
            "--load_checkpoint", weights, "--output_dir", name, "--options", "model.model_config.num_layers=2",
            cwd=tmp_path,
        )  # fmt: skip
        results.append(json.loads((tmp_path / name / "eval_result.json").read_text())["PPL"])
    assert results[0] == results[1]


def test_every_rank_resumes_from_the_same_step_with_its_own_shards(repo, toy, sharded_run, tmp_path):
    """From checkpoints whose numbers are unlike those of any new run; one card has written one step more, and those of
    two others cannot be seen from here."""
    draw, kept = np.random.default_rng(0), {}
    for card_number in (0, 3):
        shutil.copytree(sharded_run / "checkpoint" / f"rank_{card_number}", tmp_path / f"checkpoint/rank_{card_number}")
        (path,) = (tmp_path / f"checkpoint/rank_{card_number}").glob("*.ckpt")
        file = CheckpointFile(path)
        changed = {
            name: draw.normal(size=entry.shape).astype(np.float32)
            for name, entry in file.entries.items()
            if np.prod(entry.shape) > 1  # neither counters nor the loss scale
        }
        rest = {name: file.read(name) for name in file.entries if name not in changed}
        state = json.loads(file.texts["training_state"]) | {"step": 4}
        path.unlink()
        stem = f"toy_rank_{card_number}"
        everything = {**changed, **rest, "training_state": json.dumps(state)}
        save_checkpoint(path.with_name(f"{stem}-1_4.ckpt"), everything)
        if card_number == 3:
            save_checkpoint(path.with_name(f"{stem}-1_5.ckpt"), {**rest, "training_state": json.dumps(state)})
        kept[card_number] = changed
    arguments = ("--load_checkpoint", str(tmp_path / "checkpoint"), "--resume_training", "toy_rank_0-1_4.ckpt")
    for card_number, changed in kept.items():
        output = f"output_{card_number}"  # as on machines without a common disk
        done = card(repo, toy, tmp_path, card_number, "--run_mode", "finetune", "--output_dir", output, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / output / "checkpoint" / f"rank_{card_number}").glob("*.ckpt")
        again = CheckpointFile(path)
        assert again.read("step_num") == 4
        for name, value in changed.items():
            np.testing.assert_array_equal(again.read(name), value, err_msg=name)

    refused = card(repo, toy, tmp_path, 0, "--run_mode", "finetune", "--output_dir", "other", *arguments[:3], "True")
    assert refused.returncode == 2
    assert "no checkpoint that all 4 cards have" in refused.stderr
    assert "rank_0: 1_4, rank_3: 1_4, 1_5. Machines without a shared disk" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_card_saves_and_resumes_adafactors_state_of_its_shards(repo, toy, tmp_path):
    adafactor = {"layout": (*LAYOUT, "optimizer.type=adafactor")}
    done = card(repo, toy, tmp_path, 3, **adafactor)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "output/checkpoint/rank_3").glob("*.ckpt")
    file, block = CheckpointFile(path), "backbone.blocks.1."
    shapes = {
        "exp_avg_sq_row_{}attention.dense1.weight": (16,),  # [out, in], sharded by out
        "exp_avg_sq_col_{}attention.dense1.weight": (32,),
        "exp_avg_sq_row_{}output.mapping.weight": (32,),  # [in, out], sharded by out
        "exp_avg_sq_col_{}output.mapping.weight": (64,),
        "exp_avg_sq_row_{}output.projection.weight": (64,),  # [in, out], sharded by in
        "adafactor_v.{}output.mapping.bias": (64,),
        "adafactor_v.{}output.projection.bias": (32,),
    }
    assert {name: file.entries[name.format(block)].shape for name in shapes} == shapes
    assert not [name for name in file.entries if name.startswith("norm_shares")]

    draw = np.random.default_rng(0)
    everything = {name: file.read(name) for name in file.entries}
    changed = {name.format(block): draw.random(shape, np.float32) for name, shape in shapes.items()}
    everything |= changed | {"training_state": json.dumps(json.loads(file.texts["training_state"]) | {"step": 4})}
    save_checkpoint(tmp_path / "checkpoint/rank_3/toy_rank_3-1_4.ckpt", everything)
    arguments = ("--load_checkpoint", str(tmp_path / "checkpoint"), "--resume_training", "toy_rank_3-1_4.ckpt")
    done = card(repo, toy, tmp_path, 3, "--run_mode", "finetune", "--output_dir", "resumed", *arguments, **adafactor)
    assert done.returncode == 0, done.stdout + done.stderr
    again = CheckpointFile(next((tmp_path / "resumed/checkpoint/rank_3").glob("*.ckpt")))
    for name, value in changed.items():
        np.testing.assert_array_equal(again.read(name), value, err_msg=name)


def test_a_run_resumes_in_another_layout_from_transformed_shards(repo, toy, whole, sharded_run, succeed, tmp_path):
    """From four cards in two stages to two cards; a step has as many rows as before."""
    two = {"cards": 2, "layout": (*LAYOUT[:-1], "parallel_config={model_parallel: 2}", "runner_config.batch_size=16")}
    only_strategy = {**two, "layout": (*two["layout"], "only_save_strategy=True")}
    done = card(repo, toy, tmp_path, 0, "--output_dir", "other", **only_strategy)
    assert done.returncode == 0, done.stdout + done.stderr
    succeed(
        "tools/transform_ckpt.py", "--src_ckpt_dir", sharded_run / "checkpoint",
        "--dst_ckpt_strategy", "other/strategy", "--dst_ckpt_dir", "resharded", "--prefix", "toy_", cwd=tmp_path,
    )  # fmt: skip
    resume = ("--run_mode", "finetune", "--load_checkpoint", "resharded", "--resume_training", "True")
    done = card(repo, toy, tmp_path, 1, *resume, **two)
    assert done.returncode == 0, done.stdout + done.stderr
    transformed = CheckpointFile(tmp_path / "resharded" / "rank_1" / "toy_1-0_0.ckpt")
    resumed = CheckpointFile(next((tmp_path / "output" / "checkpoint" / "rank_1").glob("*.ckpt")))
    assert set(resumed.entries) - set(transformed.entries) == {"dropout_key"}  # of the step on a CPU
    for name in transformed.entries:
        np.testing.assert_array_equal(resumed.read(name), transformed.read(name), err_msg=name)
    weight = "backbone.blocks.1.attention.dense1.weight"
    np.testing.assert_array_equal(resumed.read(weight), CheckpointFile(whole).read(weight)[16:])


def test_weights_that_do_not_fit_are_refused_before_compiling(repo, toy, whole, tmp_path):
    held = CheckpointFile(whole)
    wrong = {name: held.read(name) for name in held.entries if not name.endswith("1.layernorm2.gamma")}
    save_checkpoint(tmp_path / "x.ckpt", wrong)
    done = card(repo, toy, tmp_path, 0, "--run_mode", "finetune", "--load_checkpoint", str(tmp_path / "x.ckpt"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "missing in the file: backbone.blocks.1.layernorm2.gamma [32]" in done.stderr
    assert "compiling" not in done.stdout and "Traceback" not in done.stderr


def test_incomplete_shards_are_refused_and_nothing_is_written(toy, sharded_run, program, tmp_path):
    """As by tools/transform_ckpt.py, whose tests break them in more ways (test_transform_checkpoint.py)."""
    output = shutil.copytree(sharded_run, tmp_path / "broken")
    last = output / "checkpoint" / "rank_3"

    def refused():
        done = program(
            "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
            "--load_checkpoint", output / "checkpoint", "--options", "model.model_config.num_layers=2", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "output").exists()
        return done.stderr

    for rank in range(CARDS - 1):  # have a later step, and the last rank has not
        folder = output / "checkpoint" / f"rank_{rank}"
        (folder / f"toy_rank_{rank}-0_0.ckpt").rename(folder / f"toy_rank_{rank}-1_4.ckpt")
    assert "step 1_4 (epoch_step) is missing in rank_3; rank_3 has 0_0" in refused()
    last.rename(tmp_path / "rank_3")
    assert "rank_3 of 4 missing" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["parallel_config={model_parallel: 2}"], "= 2 cards, but there are 4. On 4 cards these work: "),
        (["parallel_config={model_parallel: 4}"], "model_parallel 4 does not divide num_heads 2"),
        (["parallel_config={data_parallel: 2, pipeline_stage: 2}"], "1 micro-batches cannot keep 2 pipeline stages"),
        (
            [
                "optimizer.type=adafactor",
                "parallel_config={data_parallel: 2, model_parallel: 2, optimizer_shard: True}",
            ],
            "adafactor does not take its row and column means over data-parallel ranks",
        ),
        (
            ["do_eval=True", "eval_dataset.data_loader.dataset_dir={train}"],
            "do_eval: a model that is sharded over cards is not evaluated while it is trained",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(repo, toy, tmp_path, options, words):
    command = [
        sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
        "--use_parallel", "True", "--options", *LAYOUT,
        *(option.replace("{train}", str(toy.train)) for option in options),
    ]  # fmt: skip
    done = run_simulated(command, 0, CARDS, cwd=tmp_path, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
