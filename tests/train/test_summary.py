"""TensorBoard events, read back by TensorBoard."""

import importlib.util
from types import SimpleNamespace

import pytest

from mindgpt.config.errors import UserError
from mindgpt.train import summary
from mindgpt.train.callbacks import StepMeter
from mindgpt.train.progress import RunProgress
from mindgpt.train.summary import SummaryMonitor, check_tensorboard

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard (the tensorboard extra) is not installed"
)


def scalars(folder):
    """Tag -> the (step, value) that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run(folder, steps, first=0, every=1, **evaluations):
    meter = StepMeter(RunProgress(1, 10), 1)
    monitor = SummaryMonitor(meter, folder, every)
    monitor.on_train_begin(SimpleNamespace(original_args=lambda: SimpleNamespace(cur_step_num=first)))
    for step, values in steps.items():
        meter.record = {"step": step, **dict.fromkeys(summary.TRAIN_SCALARS, 1.0), **values}
        monitor.on_train_step_end(None)
        if name := evaluations.get(f"after_{step}"):
            monitor.on_evaluation_end(step, name)
    monitor.close()


@needs_tensorboard
def test_steps_and_evaluations(tmp_path):
    nan = float("nan")
    steps = {1: {"loss": 3.5}, 2: {"loss": nan, "grad_norm": nan}, 3: {"loss": 3.0}}
    run(tmp_path / "events", steps, after_2={"PPL": 9.5})
    read = scalars(tmp_path / "events")
    assert read.pop("eval/PPL") == [(2, 9.5)]
    assert read.pop("train/loss") == [(1, 3.5), (3, 3.0)]
    assert read.pop("train/grad_norm") == [(1, 1.0), (3, 1.0)]
    others = set(summary.TRAIN_SCALARS) - {"loss", "grad_norm"}
    assert read == {f"train/{name}": [(1, 1), (2, 1), (3, 1)] for name in others}


@needs_tensorboard
def test_summary_interval(tmp_path):
    run(tmp_path, {step: {"loss": step} for step in range(1, 8)}, every=3)
    assert scalars(tmp_path)["train/loss"] == [(3, 3), (6, 6)]


@needs_tensorboard
def test_a_resumed_run_takes_the_place_of_the_steps_it_repeats_and_a_new_one_of_all(tmp_path, monkeypatch):
    clock = iter(range(1_000, 2_000))  # event files are read in the order of their names, which hold the second
    monkeypatch.setattr(summary.time, "time", lambda: next(clock))
    monkeypatch.setattr(summary.time, "time", lambda: next(clock))
    run(tmp_path, {step: {"loss": 1} for step in (1, 2, 3, 4)})
    run(tmp_path, {step: {"loss": 2} for step in (3, 4)}, first=2)
    assert scalars(tmp_path)["train/loss"] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    run(tmp_path, {1: {"loss": 3}})
    assert scalars(tmp_path)["train/loss"] == [(1, 3)]


def test_missing_tensorboard_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(summary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'SummaryMonitor needs the package tensorboard.*pip install "mindgpt\[tensorb'):
        check_tensorboard()


@needs_tensorboard
def test_a_full_disk_ends_in_a_sentence(tmp_path, full_disk, capfd):
    with full_disk(300), pytest.raises(UserError, match=r"Cannot write .*/events.out.tfevents.* File too large"):
        run(tmp_path, {step: {"loss": 1.0} for step in range(1, 50)})
    assert capfd.readouterr().err == ""
    assert scalars(tmp_path)["train/loss"] == [(1, 1.0)]
