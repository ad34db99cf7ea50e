"""Runs that end badly: numbers that are not finite, and `kill -9` while a checkpoint is being written."""

import contextlib
import importlib.util
import json
import random
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.weights import save_checkpoint
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from tests import programs
from tests.last_checkpoint import last_checkpoint


@pytest.fixture
def poisoned(trained, tmp_path):
    """The trained weights with one NaN in the last layer norm: every loss is NaN."""
    whole = CheckpointFile(trained.last_checkpoint)
    weights = {name: whole.read(name).copy() for name in whole.entries if name.startswith("backbone.")}
    weights["backbone.layernorm.gamma"][3] = np.nan
    save_checkpoint(tmp_path / "poisoned.ckpt", weights)
    return tmp_path / "poisoned.ckpt"


def test_a_run_without_a_finite_loss_stops_and_changes_nothing(program, toy, trained, poisoned, tmp_path, checksums):
    """The callbacks lack a loss monitor: stopping is not its business."""
    shutil.copytree(trained.output, tmp_path / "output")
    before = checksums(tmp_path / "output")
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "finetune", "--train_dataset_dir", toy.train,
        "--load_checkpoint", poisoned, "--options", "runner_wrapper.max_skipped_steps=3",
        "callbacks=[{type: CheckpointMonitor, prefix: bad, save_checkpoint_steps: 1}]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: training stopped at step 3 (epoch 1, batch 3 of 10): loss or gradients were")
    assert "not finite in 3 steps in a row, last the loss, with loss nan at loss scale 1." in done.stderr
    assert "Lower the learning rate" in done.stderr
    after = checksums(tmp_path / "output")
    assert {name for name in before if after[name] != before[name]} == {  # which tell the newest
        "checkpoint/rank_0/meta.json", "checkpoint_network/rank_0/meta.json"
    }  # fmt: skip
    start = CheckpointFile(poisoned)
    saved = CheckpointFile(tmp_path / "output" / "checkpoint" / "rank_0" / "bad_rank_0-1_2.ckpt")
    assert all(np.array_equal(saved.read(name), start.read(name), equal_nan=True) for name in start.entries)
    moments = [name for name in saved.entries if name.startswith("adam_")]
    assert len(moments) == 2 * len(start.entries)
    assert not any(saved.read(name).any() for name in moments)


def test_a_run_in_which_no_step_counted_does_not_end_like_one_that_trained(program, toy, poisoned, tmp_path):
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--load_checkpoint", poisoned,
        "--num_samples", 40, "--epochs", 1, cwd=tmp_path,
    )  # fmt: skip
    console = done.stdout
    assert done.returncode == 2
    assert done.stderr.startswith("error: no step changed the weights: loss not finite in each of 5 steps, the last at")
    assert done.stderr.count("\n") == 1
    assert "training ended, and the weights are those it began with:" in console
    records = [json.loads(line) for line in (tmp_path / "output" / "log" / "train.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss"], record["grad_norm"], record["skipped"]) for record in records] == [
        (step, None, None, True) for step in range(1, 6)
    ]
    assert console.count("loss not finite, step skipped, lr ") == 5
    assert re.search(r"^  skipped +5 steps were not finite and changed nothing \(last: loss\)$", console, re.MULTILINE)
    assert re.search(r"^  loss +nan \(step 5\)$", console, re.MULTILINE)
    assert (tmp_path / "output" / "plot.png").exists() is (importlib.util.find_spec("matplotlib") is not None)


# ---- kill -9 ---------------------------------------------------------------------------------------------------------


def wait_for(folder, pattern, since, process):
    """Wait for a file that is written after `since`, looking without rest: a temporary one lives for milliseconds."""
    end = time.monotonic() + 60
    while True:
        for file in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime > since:
                    return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end


@pytest.mark.usefixtures("cpu")
def test_killed_while_it_writes_checkpoints(toy, repo, tmp_path):
    """Every step writes files of megabytes. Killed once as a temporary file is seen, and then at random instants."""
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    command = [sys.executable, str(repo / "run_mindformer.py"), "--config", str(toy.yaml), "--epochs", "100"]
    command += ["--train_dataset_dir", str(toy.train), "--options", "model.model_config.hidden_size=256"]
    command += ["callbacks.1.save_checkpoint_steps=1"]
    draw = random.Random(0)
    for attempt in range(3):
        started = time.time()
        process = programs.start(command, tmp_path)
        try:
            wait_for(folder, "toy*.ckpt", started, process)
            if attempt == 0:
                wait_for(folder, ".toy*.ckpt.tmp-*", started, process)
            else:
                time.sleep(draw.uniform(0, 0.3))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        network = tmp_path / "output" / "checkpoint_network" / "rank_0"
        checkpoints = [*folder.glob("toy*.ckpt"), *network.glob("toy*.ckpt")]
        assert last_checkpoint(folder) in checkpoints
        for file in checkpoints:  # opens, fits, and holds the weights of a step
            model = GPT2LMHeadModel.from_pretrained(file)
            assert all(np.isfinite(parameter.asnumpy()).all() for parameter in model.get_parameters())
