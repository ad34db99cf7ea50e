"""Callbacks, driven step by step without a network."""

import json
from types import SimpleNamespace

import mindspore as ms
import pytest

from mindgpt.config.errors import UserError
from mindgpt.train import callbacks
from mindgpt.train.callbacks import EvaluationCallback, LossMonitor, SkippedSteps
from mindgpt.train.progress import Progress

PROGRESS = Progress(epochs=2, steps_per_epoch=3)


class Drive:
    """A training loop that reports what it is told to; the clock stands still but in `step`."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.state = SimpleNamespace(cur_step_num=0, net_outputs=None)
        self.context = SimpleNamespace(original_args=lambda: self.state)
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)

    def step(self, callback, loss=2.0, skipped=False, scale=1.0, rate=0.001, norm=0.5, seconds=0.5):
        self.state.cur_step_num += 1
        callback.on_train_step_begin(self.context)
        self.now += seconds
        values = (loss, skipped, scale, rate, norm)
        self.state.net_outputs = [ms.Tensor(value, ms.bool_ if value is skipped else ms.float32) for value in values]
        callback.on_train_step_end(self.context)


@pytest.fixture
def drive(monkeypatch):
    return Drive(monkeypatch)


# ---- the loss monitor ------------------------------------------------------------------------------------------------


def test_lines_and_log(drive, tmp_path, capsys):
    monitor = LossMonitor(PROGRESS, tmp_path / "log" / "train.jsonl", tokens_per_step=1000, every=2)
    monitor.on_train_begin(drive.context)
    drive.step(monitor, loss=7.25, seconds=50)
    drive.step(monitor, loss=6.5, seconds=2)
    drive.step(monitor, loss=float("inf"), norm=float("nan"), skipped=True, scale=65536, seconds=2)
    drive.step(monitor, loss=5.0, scale=32768, rate=0.5, norm=12.0, seconds=10)
    monitor.on_train_end(drive.context)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2, step 1/6: loss 7.2500, lr 1.000e-03, grad norm 0.500, 20 tokens/s (compiling included)",
        "epoch 1/2, step 2/6: loss 6.5000, lr 1.000e-03, grad norm 0.500, 500 tokens/s, 8s left",
        "epoch 1/2, step 3/6: loss not finite, step skipped, lr 1.000e-03, grad norm not finite, scale 65536, "
        "500 tokens/s, 6s left",
        "epoch 2/2, step 4/6: loss 5.0000, lr 5.000e-01, grad norm 12.000, scale 32768, 100 tokens/s, 9s left",
    ]
    records = [json.loads(line) for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records] == [7.25, 6.5, None, 5.0]
    assert [record["grad_norm"] for record in records] == [0.5, 0.5, None, 12.0]
    assert [record["skipped"] for record in records] == [False, False, True, False]
    assert [record["loss_scale"] for record in records] == [1, 1, 65536, 32768]
    assert [record["epoch"] for record in records] == [1, 1, 1, 2]
    assert [record["tokens_per_second"] for record in records] == [20, 500, 500, 100]


def test_an_earlier_log_stays_until_the_first_step_is_done(drive, tmp_path):
    (tmp_path / "train.jsonl").write_text("of an earlier run\n")
    monitor = LossMonitor(PROGRESS, tmp_path / "train.jsonl", tokens_per_step=1)
    monitor.on_train_begin(drive.context)
    monitor.close()
    assert (tmp_path / "train.jsonl").read_text() == "of an earlier run\n"
    drive.step(monitor)
    assert json.loads((tmp_path / "train.jsonl").read_text())["step"] == 1  # there at once, for whoever watches


def test_a_folder_that_cannot_be_made_is_found_out_before_training(drive, tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(UserError, match="log: a file of that name is in the way"):
        LossMonitor(PROGRESS, tmp_path / "log" / "train.jsonl", 1).on_train_begin(drive.context)
    callback = EvaluationCallback(dict, PROGRESS, 1, -1, tmp_path / "log" / "eval.jsonl")
    with pytest.raises(UserError, match="log: a file of that name is in the way"):
        callback.on_train_begin(drive.context)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (3599, "59m 59s"), (90061, "25h 01m")]
)
def test_durations(seconds, text):
    assert callbacks._duration(seconds) == text


# ---- steps that were not finite --------------------------------------------------------------------------------------


def test_only_skipped_steps_in_a_row_end_a_run(drive):
    guard = SkippedSteps(PROGRESS, most_in_a_row=2)
    for skipped in (True, False, True, False, True):
        drive.step(guard, skipped=skipped)
    assert guard.count == 3
    with pytest.raises(UserError) as error:
        drive.step(guard, loss=float("nan"), skipped=True, scale=4.0)
    assert "training stopped at step 6 (epoch 2, batch 3 of 3)" in str(error.value)
    assert "2 steps in a row, last with loss nan at loss scale 4." in str(error.value)
    assert "runner_wrapper.max_skipped_steps" in str(error.value)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "steps"),
    [(-1, 1, [0, 3, 6]), (2, -1, [0, 2, 4, 6]), (4, -1, [0, 4, 6]), (2, 1, [0, 2, 3, 4, 6]), (-1, 5, [0, 6])],
)
def test_when_it_is_evaluated(drive, tmp_path, capsys, every_steps, every_epochs, steps):
    (tmp_path / "eval.jsonl").write_text("of an earlier run\n")
    callback = EvaluationCallback(
        lambda: {"loss": drive.state.cur_step_num + 0.5}, PROGRESS, every_steps, every_epochs, tmp_path / "eval.jsonl"
    )
    callback.on_train_begin(drive.context)
    for _ in range(6):
        drive.step(callback)
    callback.on_train_end(drive.context)
    records = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert records == callback.results == [{"step": step, "loss": step + 0.5} for step in steps]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "evaluation before training: loss 0.5000"
    assert lines[-1] == "evaluation after step 6: loss 6.5000"
    assert len(lines) == len(steps)
