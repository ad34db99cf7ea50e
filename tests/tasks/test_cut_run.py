"""A run whose model is cut over cards, from the user's command to its merged checkpoint, on simulated Ascend cards.

The cards compute nothing; what they hold and write is real.
"""

import json
import shutil
import sys

import numpy as np
import pytest

from mindgpt.models.checkpoint_file import CheckpointFile
from mindgpt.runtime.simulated_ascend import cann_is_there, run_simulated

pytestmark = pytest.mark.skipif(
    not cann_is_there() and not all(shutil.which(tool) for tool in ("gcc", "g++", "nm")),
    reason="simulated Ascend needs gcc, g++ and nm, or CANN",
)

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


def card(repo, toy, folder, rank, *arguments):
    command = [
        sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
        "--use_parallel", "True", *arguments, "--options", *LAYOUT,
    ]  # fmt: skip
    return run_simulated(command, rank, CARDS, cwd=folder, timeout=300)


def test_slices_of_a_run_merge_to_what_they_were_cut_from(repo, toy, two_layers, succeed, tmp_path):
    whole = next((two_layers / "output" / "checkpoint_network" / "rank_0").glob("*.ckpt"))
    for rank in range(CARDS):
        done = card(repo, toy, tmp_path, rank, "--run_mode", "finetune", "--load_checkpoint", str(whole))
        assert done.returncode == 0, done.stdout + done.stderr
        if rank == 0:
            assert "4 cards: data_parallel 1 x model_parallel 2 x pipeline_stage 2" in done.stdout
            assert "the cards are simulated, so nothing is trained" in done.stdout
    slices = CheckpointFile(next((tmp_path / "output" / "checkpoint" / "rank_3").glob("*.ckpt")))
    assert "backbone.blocks.0.attention.dense1.weight" not in slices.entries
    assert slices.entries["backbone.blocks.1.attention.dense1.weight"].shape == (16, 32)
    assert {"global_step", "loss_scale", "step_num"} <= set(slices.entries)

    succeed(
        "tools/transform_ckpt.py", "--src_ckpt_strategy", "output/strategy", "--src_ckpt_dir", "output/checkpoint",
        "--dst_ckpt_dir", "merged", "--prefix", "toy", cwd=tmp_path,
    )  # fmt: skip
    merged = CheckpointFile(next((tmp_path / "merged").rglob("*.ckpt")))
    original = CheckpointFile(whole)
    assert set(merged.entries) == set(original.entries)
    for name in original.entries:
        np.testing.assert_array_equal(merged.read(name), original.read(name), err_msg=name)

    # The folder of slices is as good as the file, for one process on another device.
    results = []
    for name, weights in (("of_slices", tmp_path / "output" / "checkpoint"), ("of_file", whole)):
        succeed(
            "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
            "--load_checkpoint", weights, "--output_dir", name, "--options", "model.model_config.num_layers=2",
            cwd=tmp_path,
        )  # fmt: skip
        results.append(json.loads((tmp_path / name / "eval_result.json").read_text())["PPL"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["parallel_config={model_parallel: 2}"], "= 2 cards, but there are 4. On 4 cards these work: "),
        (["parallel_config={model_parallel: 4}"], "model_parallel 4 does not divide num_heads 2"),
        (["parallel_config={data_parallel: 2, pipeline_stage: 2}"], "1 micro-batches cannot keep 2 pipeline stages"),
        (["optimizer.type=adafactor"], "the state of adafactor cannot be cut"),
        (
            ["do_eval=True", "eval_dataset.data_loader.dataset_dir=x"],
            "is trained only: put the slices of its checkpoint together with tools/transform_ckpt.py",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(repo, toy, tmp_path, options, words):
    command = [
        sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train,
        "--use_parallel", "True", "--options", *LAYOUT, *options,
    ]  # fmt: skip
    done = run_simulated(command, 0, CARDS, cwd=tmp_path, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
