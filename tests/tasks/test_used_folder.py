"""Several runs and one output folder, folders of other kinds, and machines without what a run takes for granted."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mindgpt.checkpoints.run_folder import checkpoints_in
from mindgpt.config.loader import load_config
from mindgpt.io.locks import try_lock
from mindgpt.tasks.weights_files import weights_path


def steps_in(log):
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


def test_a_shorter_run_into_a_used_folder_replaces_nothing(toy, trained, succeed, tmp_path, checksums):
    shutil.copytree(trained.output, tmp_path / "output")
    before = checksums(tmp_path / "output")
    console = succeed(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--epochs", 1, "--seed", 5,
        cwd=tmp_path,
    )  # fmt: skip
    old = sorted(name for name in before if name.startswith("checkpoint/") and name.endswith(".ckpt"))
    assert f"note: output holds an earlier run ({len(old)} checkpoints), which stays: its logs are renamed" in console
    after = checksums(tmp_path / "output")
    renamed = {
        "log/train.jsonl": "log/train-1.jsonl", "log/eval.jsonl": "log/eval-1.jsonl",
        "train_config.yaml": "train_config-1.yaml",
    }  # fmt: skip
    replaced = {"plot.png"} | {name for name in before if name.endswith((".json", "meta.json"))}
    for name, checksum in before.items():
        if name not in replaced:
            assert after[renamed.get(name, name)] == checksum, name
    assert steps_in(tmp_path / "output" / "log" / "train.jsonl") == list(range(1, 11))
    assert steps_in(tmp_path / "output" / "log" / "train-1.jsonl") == list(range(1, 21))
    new = sorted(set(after) - set(before))
    assert [name for name in new if name.startswith("checkpoint/")] == [
        "checkpoint/rank_0/toy_rank_0_1-1_10.ckpt", "checkpoint/rank_0/toy_rank_0_1-1_8.ckpt"
    ]  # fmt: skip
    for folder in ("checkpoint", "checkpoint_network"):
        values = {"run_mode": "eval", "load_checkpoint": str(tmp_path / "output" / folder)}
        newest = weights_path(load_config(toy.yaml, values)[0])
        assert newest.name.startswith("toy_rank_0_1-1_10"), newest


def test_checkpoints_in_the_working_directory_stay_there(toy, succeed, tmp_path):
    """`directory: ./` makes ./rank_0, where MindSpore leaves its dumps too (field report R4)."""
    for seed in (0, 1):
        succeed(
            "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--epochs", 1, "--seed", seed,
            "--options", "callbacks.1.directory=./", "train_dataset.num_samples=16", "lr_schedule.warmup_steps=0",
            cwd=tmp_path,
        )  # fmt: skip
    names = ["toy_rank_0-1_2.ckpt", "toy_rank_0_1-1_2.ckpt"]
    assert [file.name for file in checkpoints_in(tmp_path / "rank_0")] == names
    assert sorted(os.listdir(tmp_path)) == ["checkpoint_network", "output", "rank_0"]
    assert {"checkpoint", "rank_0"}.isdisjoint(os.listdir(tmp_path / "output"))


@pytest.mark.parametrize(("mode", "kind"), [("train", "training"), ("eval", "evaluation"), ("predict", "prediction")])
def test_a_second_run_of_a_kind_is_refused_at_once(toy, program, tmp_path, mode, kind):
    (tmp_path / "output").mkdir()
    lock = try_lock(tmp_path / "output" / f".{kind}.lock")
    done = program("run_mindformer.py", "--config", toy.yaml, "--run_mode", mode, cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: output_dir: another {kind} is writing into output (process {os.getpid()} on " in done.stderr
    assert "Name another folder with --output_dir" in done.stderr
    lock.release()
    assert os.listdir(tmp_path / "output") == []


def test_a_second_training_into_the_same_checkpoint_folder_is_refused(toy, program, tmp_path):
    """Each has an output folder of its own, and both the folder of the CheckpointMonitor."""
    (tmp_path / "shared").mkdir()
    lock = try_lock(tmp_path / "shared" / ".training.lock")
    options = ("--options", "callbacks.1.directory=shared")
    command = ("run_mindformer.py", "--config", toy.yaml, "--run_mode", "train", "--output_dir", "b", *options)
    done = program(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "CheckpointMonitor.directory: another training is writing into shared (process" in done.stderr
    lock.release()
    assert sorted(os.listdir(tmp_path)) == ["shared"]


def test_a_run_that_is_refused_leaves_no_folder(toy, program, tmp_path):
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "train", "--output_dir", "a/b", cwd=tmp_path
    )
    assert done.returncode == 2 and "no data set is named" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_rank_left_over_from_another_shell_is_refused(toy, program, tmp_path):
    done = program("run_mindformer.py", "--config", toy.yaml, cwd=tmp_path, env={"RANK_ID": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: the environment variable RANK_ID is 1, but there is 1 process (MS_WORKER_NUM)"
    )
    assert done.stderr.count("\n") == 1


def test_a_user_without_a_home_or_a_name_gets_texts(toy, trained, repo, tmp_path):
    """A random uid, as OpenShift gives to containers (field report R13)."""
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if shutil.which("unshare") is None or subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let its users become others")
    environment = {
        key: value for key, value in os.environ.items()
        if key not in ("HOME", "XDG_CACHE_HOME", "MINDGPT_CACHE") and not key.startswith("MS_")
    }  # fmt: skip
    command = [
        *as_nobody, sys.executable, repo / "run_mindformer.py", "--config", toy.yaml, "--run_mode", "predict",
        "--load_checkpoint", trained.last_checkpoint, "--tokenizer", toy.tokenizer, "--max_new_tokens", "3",
        "--predict_data", "the quick",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "compiled graphs are not cached for the next run: this user has no home folder" in done.stdout
    assert (tmp_path / "output" / "predictions.jsonl").read_text().startswith('{"prompt": "the quick"')
