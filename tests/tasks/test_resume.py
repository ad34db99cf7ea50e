"""Exact resume: a run that is killed again and again gives, number for number, what an unbroken one gives."""

import json
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile, write_checkpoint
from mindgpt.config.loader import load_config
from tests import programs
from tests.last_checkpoint import last_checkpoint

STEPS = 30
OPTIONS = (
    "lr_schedule.type=cosine", "lr_schedule.warmup_steps=5", "runner_wrapper.scale_sense.type=dynamic",
    "runner_wrapper.scale_sense.scale_window=4",
    "callbacks=[{type: MFLossMonitor}, {type: CheckpointMonitor, prefix: toy, save_checkpoint_steps: 4, "
    "keep_checkpoint_max: 2}, {type: EvalCallBack, eval_steps: 4}]",
)  # fmt: skip


def command(repo, toy, *more):
    """Three epochs with everything that has a state: dropout, shuffling, moments, schedule, loss scale, best score."""
    return [
        sys.executable, str(repo / "run_mindformer.py"), "--config", str(toy.yaml), "--epochs", "3",
        "--train_dataset_dir", str(toy.train), "--eval_dataset_dir", str(toy.valid), "--options", *OPTIONS,
        "model.model_config.hidden_dropout_rate=0.2", "model.model_config.attention_dropout_rate=0.2", *more,
    ]  # fmt: skip


def finish(command, cwd):
    done = programs.run(command, cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(folder, name="train"):
    lines = (folder / "output" / "log" / f"{name}.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "tokens_per_second"} for line in lines]


def same_contents(one, other):
    one, other = CheckpointFile(one), CheckpointFile(other)
    assert one.texts == other.texts
    assert set(one.entries) == set(other.entries)
    for name in one.entries:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


def kill_after(command, cwd, lines):
    """Kill a run once it has logged so many steps in all and there is a checkpoint to resume from, which may be written
    later than the step after it is logged (`async_save`)."""
    log, saved = cwd / "output" / "log" / "train.jsonl", cwd / "output" / "checkpoint" / "rank_0"
    process = programs.start(command, cwd)
    try:
        end = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) < lines or not any(saved.glob("*.ckpt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("accumulation", "fusion", "weights"), [(1, True, "float32"), (2, False, "float16")])
def test_killed_again_and_again_and_resumed(repo, toy, tmp_path, accumulation, fusion, weights):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run = command(
        repo, toy, f"runner_config.gradient_accumulation_steps={accumulation}",
        f"context.enable_graph_kernel={fusion}", f"model.model_config.param_init_type={weights}",
    )  # fmt: skip
    steps = STEPS // accumulation
    finish(run, whole)
    if accumulation > 1:
        run = [*run, "callbacks.1.async_save=True"]  # other checkpoints than those of the whole run would show
    expected = records(whole)
    assert [record["step"] for record in expected] == list(range(1, steps + 1))
    draw = random.Random(accumulation)
    kills = sorted(draw.sample(range(5, steps), 3))
    kill_after(run, broken, kills[0])
    for kill in kills[1:]:
        kill_after([*run, "--resume_training", "True"], broken, kill)
    console = finish([*run, "--resume_training", "True"], broken)
    assert "resuming from output/checkpoint/rank_0/toy_rank_0-" in console
    assert records(broken) == expected
    assert records(broken, "eval") == records(whole, "eval")
    folder = ("output", "checkpoint", "rank_0")
    same_contents(last_checkpoint(broken.joinpath(*folder)), last_checkpoint(whole.joinpath(*folder)))
    newest = [last_checkpoint(base.joinpath(*folder)).read_bytes() for base in (whole, broken)]
    assert newest[0] == newest[1]
    last = last_checkpoint(whole.joinpath(*folder))
    assert any(name.startswith("master.") for name in CheckpointFile(last).entries) == (weights == "float16")
    kept = [sorted(path.name for path in base.joinpath(*folder).glob("*.ckpt")) for base in (whole, broken)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2


def test_a_run_that_began_with_an_adapter_is_resumed(repo, toy, trained, tmp_path):
    """The checkpoint holds what the adapter has become: it is not put on top of it again."""
    draw = np.random.default_rng(0)
    factors = [
        (f"backbone.blocks.0.attention.dense1.mindpet_delta_lora_{factor}", draw.normal(0, 0.1, shape))
        for factor, shape in (("a", (4, 32)), ("b", (32, 4)))
    ]
    write_checkpoint(tmp_path / "adapter.ckpt", [(name, array.astype(np.float32)) for name, array in factors])
    run = [
        *command(repo, toy, "model.model_config.pet_config={lora_alpha: 6, lora_rank: 4, target_modules: .*dense1}"),
        "--run_mode", "finetune", "--load_checkpoint", str(trained.last_checkpoint),
        "--adapter", str(tmp_path / "adapter.ckpt"),
    ]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    finish(run, whole)
    kill_after(run, broken, 9)
    console = finish([*run, "--resume_training", "True"], broken)
    assert "resuming from output/checkpoint/rank_0/toy_rank_0-" in console
    assert records(broken) == records(whole)
    folder = ("output", "checkpoint", "rank_0")
    same_contents(last_checkpoint(broken.joinpath(*folder)), last_checkpoint(whole.joinpath(*folder)))
    newest = [last_checkpoint(base.joinpath(*folder)).read_bytes() for base in (whole, broken)]
    assert newest[0] == newest[1]
    kept = [
        load_config(base / "output" / "finetune_config.yaml")[0].model.config.pet_config for base in (whole, broken)
    ]
    assert kept[0] == kept[1]
    assert kept[0].adapter == str(tmp_path / "adapter.ckpt")


def resumed(program, toy, folder, *arguments):
    return program("run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, *arguments, cwd=folder)


@pytest.fixture
def copy(trained, tmp_path):
    """A folder with the output of the toy run, for the cases that change it."""
    shutil.copytree(trained.output, tmp_path / "output")
    return tmp_path


def test_resume_by_name_goes_back(program, toy, trained, copy):
    folder = copy / "output" / "checkpoint" / "rank_0"
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    before = records(copy)
    done = resumed(program, toy, copy, "--resume_training", names[0])
    assert done.returncode == 0, done.stderr
    assert f"resuming from output/checkpoint/rank_0/{names[0]}" in done.stdout
    assert records(copy) == before


def test_a_damaged_newest_checkpoint_is_passed_over(program, toy, copy):
    folder = copy / "output" / "checkpoint" / "rank_0"
    newest = last_checkpoint(folder)
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = records(copy)
    done = resumed(program, toy, copy, "--resume_training", "True")
    assert done.returncode == 0, done.stderr
    assert f"resume_training: skipped: output/checkpoint/rank_0/{newest.name}: not a whole" in done.stdout
    assert records(copy) == before


def test_a_run_that_is_done_says_so(program, toy, copy, checksums):
    before = checksums(copy / "output")
    done = resumed(program, toy, copy, "--resume_training", "True")
    assert done.returncode == 0
    assert "nothing to resume: output/checkpoint/rank_0/" in done.stdout
    assert checksums(copy / "output") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume_training", "nothing.ckpt"],
            "there is no checkpoint nothing.ckpt, neither by itself nor in",
        ),
        (["--resume_training", "True", "--output_dir", "elsewhere"], "there is no checkpoint in elsewhere/checkpoint"),
        (["--resume_training", "True", "--seed", "77"], "is of another run: seed was 0 and is 77."),
        (["--resume_training", "True", "--batch_size", "2"], "rows a step was 8 and is 2"),
        (
            ["--resume_training", "True", "--epochs", "9", "--options", "optimizer.type=lion"],
            "is of another run: optimizer.type was adamw and is lion; ",
        ),
        (
            ["--resume_training", "True", "--epochs", "9", "--options", "optimizer.beta2=0.99"],
            "is of another run: optimizer.beta2 was 0.95 and is 0.99.",
        ),
        (
            [
                "--resume_training",
                "True",
                "--epochs",
                "9",
                "--options",
                "lr_schedule.learning_rate=0.5",
                "train_dataset.data_loader.shuffle=False",
            ],
            "shuffle was True and is False; lr_schedule.learning_rate was 0.01 and is 0.5.",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(program, toy, copy, checksums, arguments, message):
    before = checksums(copy / "output")
    done = resumed(program, toy, copy, *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert checksums(copy / "output") == before


def test_other_data_of_the_same_size_are_refused(program, toy, copy, tmp_path):
    from mindgpt.data.dataset import inspect
    from mindgpt.data.mindrecord import MindRecordWriter

    rows = np.random.default_rng(0).integers(0, 300, (inspect(toy.train).num_rows, 33), np.int32)
    with MindRecordWriter(tmp_path / "other.mindrecord", ("input_ids", "attention_mask")) as writer:
        writer.write({"input_ids": rows, "attention_mask": np.ones_like(rows)})
    arguments = ("--resume_training", "True", "--epochs", 9, "--train_dataset_dir", tmp_path / "other.mindrecord")
    done = program("run_mindformer.py", "--config", toy.yaml, *arguments, cwd=copy)
    assert done.returncode == 2
    assert "is of another run: checksum of data was " in done.stderr


def test_what_is_missing_or_left_over_in_a_checkpoint_is_refused(tmp_path):
    from mindspore import Parameter, Tensor, nn

    from mindgpt.checkpoints.weights import save_checkpoint
    from mindgpt.config.errors import UserError
    from mindgpt.train.resume import open_resume_point, restore_parameters, state_entry

    class Step(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(Tensor(np.zeros(2, np.float32)), name="weight")

    def point(**values):
        values = {name: Parameter(Tensor(np.float32(value)), name=name) for name, value in values.items()}
        save_checkpoint(tmp_path / "x.ckpt", {**values, "epoch_num": 1, "step_num": 1, **state_entry(1, {}, {})})
        return open_resume_point(tmp_path / "x.ckpt")

    step = Step()
    restore_parameters(step, point(weight=[1, 2]))
    assert step.weight.asnumpy().tolist() == [1, 2]
    with pytest.raises(UserError, match=r"another training step: adam_m.weight is in the file alone\. Model"):
        restore_parameters(step, point(**{"weight": [3, 4], "adam_m.weight": [0, 0]}))
    with pytest.raises(UserError, match=r"weight \[2\] is missing in the file; other is in the file alone\. Model"):
        restore_parameters(step, point(other=[0]))
    assert step.weight.asnumpy().tolist() == [1, 2]
    step.insert_param_to_cell("row", Parameter(Tensor(np.zeros(2, np.float32)), name="exp_avg_sq_row_weight"))
    restore_parameters(
        step, point(**{"weight": [1, 2], "adafactor_row.weight": [5, 6]})
    )  # as earlier versions named it
    assert step.row.asnumpy().tolist() == [5, 6]


def test_master_copies_are_restored_or_start_from_the_weights(tmp_path, capsys):
    from mindspore import Parameter, Tensor, nn

    from mindgpt.checkpoints.weights import save_checkpoint
    from mindgpt.train.resume import open_resume_point, restore_parameters, state_entry

    class Step(nn.Cell):
        def __init__(self, weight, master=None):
            super().__init__()
            self.weight = Parameter(Tensor(weight), name="weight")
            if master is not None:
                self.master = Parameter(Tensor(master), name="master.weight")

    def point(**values):
        save_checkpoint(tmp_path / "x.ckpt", {**values, "epoch_num": 1, "step_num": 1, **state_entry(1, {}, {})})
        return open_resume_point(tmp_path / "x.ckpt")

    exact = np.array([1.0001, 2.0003], np.float32)
    rounded = exact.astype(np.float16)
    step = Step(np.zeros(2, np.float16), np.zeros(2, np.float32))
    restore_parameters(step, point(**{"weight": rounded, "master.weight": exact}))
    np.testing.assert_array_equal(step.master.asnumpy(), exact)
    np.testing.assert_array_equal(step.weight.asnumpy(), rounded)
    assert "note" not in capsys.readouterr().out
    restore_parameters(step, point(weight=rounded))  # of a run without masters
    np.testing.assert_array_equal(step.master.asnumpy(), rounded.astype(np.float32))
    assert "no float32 master copies of 1 weights: they start from these" in capsys.readouterr().out
    in_float32 = Step(np.zeros(2, np.float32))  # as bfloat16 weights are on CPU
    restore_parameters(in_float32, point(**{"weight": rounded, "master.weight": exact}))
    np.testing.assert_array_equal(in_float32.weight.asnumpy(), exact)


def test_checkpoints_from_before_there_were_master_copies_are_resumed_and_read(repo, toy, tmp_path, succeed):
    """Float16 weights with Adam's moments and the state of the run, and no masters."""
    run = command(repo, toy, "model.model_config.param_init_type=float16")
    finish(run, tmp_path)
    before = records(tmp_path)
    last = last_checkpoint(tmp_path / "output" / "checkpoint" / "rank_0")
    older, *newer = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    for path in newer:
        path.unlink()
    held = CheckpointFile(older)
    masters = [name for name in held.entries if name.startswith("master.")]
    kept = {name: held.read(name) for name in held.entries if name not in masters}
    assert kept["backbone.blocks.0.attention.dense1.weight"].dtype == np.float16
    write_checkpoint(older, (kept | held.texts).items())
    succeed("run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--load_checkpoint", older,
            "--eval_dataset_dir", toy.valid, "--output_dir", "evaluation", cwd=tmp_path)  # fmt: skip
    console = finish([*run, "--resume_training", "True"], tmp_path)
    assert f"no float32 master copies of {len(masters)} weights: they start from these" in console
    after = records(tmp_path)
    step = int(older.stem.split("_")[-1])
    assert len(after) == len(before) == STEPS > step
    assert after[: step + 1] == before[: step + 1]  # the next loss is that of these weights; then updates differ
    np.testing.assert_allclose([r["loss"] for r in after], [r["loss"] for r in before], rtol=0.01)
    assert set(CheckpointFile(last_checkpoint(last.parent)).entries) == set(held.entries)


def test_weights_alone_are_no_run_to_resume(program, toy, copy):
    network = next((copy / "output" / "checkpoint_network" / "rank_0").glob("*.ckpt"))
    done = resumed(program, toy, copy, "--resume_training", network)
    assert done.returncode == 2
    assert "holds no training_state" in done.stderr


def test_more_epochs_go_on_from_the_end(program, toy, copy):
    before = records(copy)
    done = resumed(program, toy, copy, "--resume_training", "True", "--epochs", before[-1]["epoch"] + 1)
    assert done.returncode == 0, done.stderr
    after = records(copy)
    assert after[: len(before)] == before
    assert [record["step"] for record in after] == list(range(1, len(after) + 1))
    assert after[-1]["epoch"] == before[-1]["epoch"] + 1
