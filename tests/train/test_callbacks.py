"""Callbacks, driven step by step without a network."""

import json
from types import SimpleNamespace

import mindspore as ms
import pytest

from mindgpt.config.errors import UserError
from mindgpt.train import callbacks
from mindgpt.train.callbacks import LossMonitor, SkippedSteps, StepMeter
from mindgpt.train.progress import RunProgress

PROGRESS = RunProgress(epochs=2, steps_per_epoch=3)


class Drive:
    """A training loop that reports what it is told to; the clock stands still but in `step`."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.state = SimpleNamespace(cur_step_num=0, net_outputs=None)
        self.context = SimpleNamespace(original_args=lambda: self.state)
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)

    def step(self, *chain, loss=2.0, skipped=False, scale=1.0, rate=0.001, norm=0.5, seconds=0.5, advance=1):
        self.state.cur_step_num += advance
        for callback in chain:
            callback.on_train_step_begin(self.context)
        self.now += seconds
        values = (loss, skipped, scale, rate, norm)
        self.state.net_outputs = [ms.Tensor(value, ms.bool_ if value is skipped else ms.float32) for value in values]
        for callback in chain:
            callback.on_train_step_end(self.context)


@pytest.fixture
def drive(monkeypatch):
    return Drive(monkeypatch)


# ---- the loss monitor ------------------------------------------------------------------------------------------------


def test_lines_and_log(drive, tmp_path, capsys):
    meter = StepMeter(PROGRESS, tokens_per_step=1000)
    monitor = LossMonitor(meter, tmp_path / "log" / "train.jsonl", every=2)
    monitor.on_train_begin(drive.context)
    drive.step(meter, monitor, loss=7.25, seconds=50)
    drive.step(meter, monitor, loss=6.5, seconds=2)
    drive.step(meter, monitor, loss=float("inf"), norm=float("nan"), skipped=True, scale=65536, seconds=2)
    drive.step(meter, monitor, loss=5.0, scale=32768, rate=0.5, norm=12.0, seconds=10)
    drive.step(meter, monitor, loss=5.0, norm=float("inf"), skipped=True, scale=32768, seconds=2)
    monitor.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2, step 1/6: loss 7.2500, lr 1.000e-03, grad norm 0.500, 20 tokens/s (compiling included)",
        "epoch 1/2, step 2/6: loss 6.5000, lr 1.000e-03, grad norm 0.500, 500 tokens/s, 8s left",
        "epoch 1/2, step 3/6: loss not finite, step skipped, lr 1.000e-03, grad norm not finite, scale 65536, "
        "500 tokens/s, 6s left",
        "epoch 2/2, step 4/6: loss 5.0000, lr 5.000e-01, grad norm 12.000, scale 32768, 100 tokens/s, 9s left",
        "epoch 2/2, step 5/6: loss 5.0000 (gradients not finite, step skipped), lr 1.000e-03, grad norm not finite, "
        "scale 32768, 500 tokens/s, 4s left",
    ]
    records = [json.loads(line) for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records] == [7.25, 6.5, None, 5.0, 5.0]
    assert [record["grad_norm"] for record in records] == [0.5, 0.5, None, 12.0, None]
    assert [record["skipped"] for record in records] == [False, False, True, False, True]
    assert [record["loss_scale"] for record in records] == [1, 1, 65536, 32768, 32768]
    assert [record["epoch"] for record in records] == [1, 1, 1, 2, 2]
    assert [record["tokens_per_second"] for record in records] == [20, 500, 500, 100, 500]


def test_an_earlier_log_stays_until_the_first_step_is_done(drive, tmp_path):
    (tmp_path / "train.jsonl").write_text("of an earlier run\n")
    meter = StepMeter(PROGRESS, tokens_per_step=1)
    monitor = LossMonitor(meter, tmp_path / "train.jsonl")
    monitor.on_train_begin(drive.context)
    monitor.close()
    assert (tmp_path / "train.jsonl").read_text() == "of an earlier run\n"
    drive.step(meter, monitor)
    assert json.loads((tmp_path / "train.jsonl").read_text())["step"] == 1  # there at once, for whoever watches
    assert (tmp_path / "train-1.jsonl").read_text() == "of an earlier run\n"


def test_a_resumed_run_continues_the_log(drive, tmp_path):
    """Steps 3 and 4 were done by the run that was killed, but are not in the checkpoint of step 2."""
    lines = [json.dumps({"step": step, "loss": 9.0}) for step in (1, 2, 3, 4)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    drive.state.cur_step_num = 2
    meter = StepMeter(PROGRESS, tokens_per_step=10)
    monitor = LossMonitor(meter, tmp_path / "train.jsonl")
    for callback in (meter, monitor):
        callback.on_train_begin(drive.context)
    drive.step(meter, monitor, loss=1.5)
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(1, 9.0), (2, 9.0), (3, 1.5)]
    assert (meter.steps, records[-1]["tokens_per_second"]) == (1, 20)


def test_an_uncreatable_folder_is_reported_before_training(drive, tmp_path):
    (tmp_path / "log").write_text("a file")
    with pytest.raises(UserError, match="log: a file of that name is in the way"):
        LossMonitor(StepMeter(PROGRESS, 1), tmp_path / "log" / "train.jsonl").on_train_begin(drive.context)


def test_speed_is_that_of_the_steps_after_the_first(drive):
    meter = StepMeter(PROGRESS, tokens_per_step=100)
    drive.step(meter, seconds=30)
    assert (meter.tokens_per_second, meter.first_seconds) == (None, 30)
    drive.now += 1000  # an evaluation, a checkpoint
    drive.step(meter, seconds=2)
    drive.step(meter, seconds=3, loss=float("nan"), skipped=True)
    assert meter.tokens_per_second == 200 / 5
    assert (meter.steps, meter.tokens, meter.skipped) == (3, 300, 1)
    drive.step(meter, seconds=5, advance=3)  # a device that answers once for three steps
    assert (meter.record["step"], meter.record["tokens_per_second"]) == (6, 60)
    assert (meter.steps, meter.tokens_per_second) == (6, 500 / 10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (3599, "59m 59s"), (90061, "25h 01m")]
)
def test_durations(seconds, text):
    assert callbacks.duration(seconds) == text


# ---- steps that were not finite --------------------------------------------------------------------------------------


def test_only_consecutive_skipped_steps_stop_a_run(drive):
    meter = StepMeter(PROGRESS, 1)
    guard = SkippedSteps(meter, most_in_a_row=2)
    for skipped in (True, False, True, False, True):
        drive.step(meter, guard, skipped=skipped)
    assert meter.skipped == 3 and not meter.all_skipped
    with pytest.raises(UserError) as error:
        drive.step(meter, guard, loss=float("nan"), skipped=True, scale=4.0)
    assert "training stopped at step 6 (epoch 2, batch 3 of 3)" in str(error.value)
    assert "2 steps in a row, last the loss, with loss nan at loss scale 4." in str(error.value)
    assert "runner_wrapper.max_skipped_steps" in str(error.value)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_log_that_this_run_does_not_write_is_renamed_with_the_older_run(drive, tmp_path, resumed):
    """Else the plot would show the evaluations of one run with the steps of another."""
    log, outdated = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    log.write_text('{"step": 1}\n')
    outdated.write_text('{"step": 1}\n')
    meter = StepMeter(PROGRESS, tokens_per_step=1000)
    monitor = LossMonitor(meter, log, outdated=outdated)
    drive.state.cur_step_num = int(resumed)
    monitor.on_train_begin(drive.context)
    assert outdated.exists()  # until there is a step
    drive.step(meter, monitor)
    monitor.close()
    assert outdated.exists() is resumed
    assert (tmp_path / "eval-1.jsonl").exists() is not resumed
