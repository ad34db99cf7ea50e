"""Evaluation during training: its steps, the best score and weights, early stopping."""

import json
import math
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.config.callback_sections import CheckpointMonitorSection, EvalCallBackSection
from mindgpt.config.errors import UserError
from mindgpt.train.best import BestCheckpoint, deciding_metric
from mindgpt.train.checkpoint_monitor import CheckpointMonitor
from mindgpt.train.evaluation_callback import EvaluationCallback
from mindgpt.train.progress import RunProgress
from tests.last_checkpoint import last_checkpoint

CONFIG = GPT2Config(num_layers=1, hidden_size=8, num_heads=1, vocab_size=10, seq_length=4)


class Run:
    """A loop of `Model`: calls the callback after every step, and stops when it is asked to."""

    def __init__(self, callback, progress, step=0):
        self.callback = callback
        self.progress = progress
        self.state = SimpleNamespace(cur_step_num=step)
        self.stop = False
        self.context = SimpleNamespace(original_args=lambda: self.state, request_stop=self._request)

    def _request(self):
        self.stop = True

    def to_the_end(self, on_step=lambda step: None):
        self.callback.on_train_begin(self.context)
        while self.state.cur_step_num < self.progress.total_steps and not self.stop:
            self.state.cur_step_num += 1
            on_step(self.state.cur_step_num)
            self.callback.on_train_step_end(self.context)
        self.callback.on_train_end(self.context)
        self.callback.close()
        return self.state.cur_step_num


@pytest.fixture
def scripted(tmp_path):
    """A callback that evaluates every step, from 0 on, to the given scores; and a run of as many steps."""

    def make(scores, log="eval.jsonl", keep=None, **section):
        progress = RunProgress(1, len(scores) - 1)
        script = iter(scores)
        section = EvalCallBackSection(eval_steps=1, **section)
        callback = EvaluationCallback(
            lambda: {"loss": 0.0, "PPL": next(script)}, section, progress, tmp_path / log, keep
        )
        return callback, Run(callback, progress)

    return make


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_steps", "every_epochs", "steps"),
    [(-1, 1, [0, 3, 6]), (2, -1, [0, 2, 4, 6]), (4, -1, [0, 4, 6]), (2, 1, [0, 2, 3, 4, 6]), (-1, 5, [0, 6])],
)
def test_evaluation_steps(tmp_path, capsys, every_steps, every_epochs, steps):
    (tmp_path / "eval.jsonl").write_text("of an earlier run\n")
    section = EvalCallBackSection(eval_steps=every_steps, eval_epochs=every_epochs)
    callback = EvaluationCallback(
        lambda: {"loss": run.state.cur_step_num + 0.5}, section, RunProgress(2, 3), tmp_path / "eval.jsonl"
    )
    run = Run(callback, callback.progress)
    run.to_the_end()
    records = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert records == [{"step": step, "loss": step + 0.5} for step in steps]
    assert (tmp_path / "eval-1.jsonl").read_text() == "of an earlier run\n"
    kept, *lines = capsys.readouterr().out.splitlines()
    assert kept == f"the log of an earlier run is kept as {tmp_path}/eval-1.jsonl"
    assert lines[0] == "evaluation before training: loss 0.5000"
    assert lines[-1] == "evaluation after step 6: loss 6.5000"
    assert len(lines) == len(steps)


def test_an_uncreatable_folder_is_reported_before_training(scripted, tmp_path):
    (tmp_path / "log").write_text("a file")
    _, run = scripted([1.0, 1.0], log="log/eval.jsonl")
    with pytest.raises(UserError, match="log: a file of that name is in the way"):
        run.to_the_end()


# ---- the best, and early stop ----------------------------------------------------------------------------------------

NAN = math.nan


@pytest.mark.parametrize(
    ("scores", "settings", "stopped_at", "best"),
    [  # scores of steps 0, 1, 2, ...; worked out by hand
        ([9, 8, 7, 7, 7, 6], {"early_stop_patience": 2}, 4, (7, 2)),  # equal is not better
        ([9, 8, 7, 7, 7, 6], {"early_stop_patience": 3}, 5, (6, 5)),  # the end comes first
        ([9, 8, 9, 8, 9, 7, 9, 9], {"early_stop_patience": 3}, 4, (8, 1)),
        ([5, 6, 7, 8], {"early_stop_patience": 1}, 1, (5, 0)),  # the weights it began with were the best
        ([5, 6, 7, 8], {}, 3, (5, 0)),  # no patience, no stop
        # 9 -> 8.6 -> 8.2: no gain by more than 0.5 over the last, but 8.2 is over 9, where patience last began
        ([9, 8.6, 8.2, 8.0, 7.9, 1], {"early_stop_patience": 2, "min_delta": 0.5}, 4, (7.9, 4)),
        ([9, 8.5, 8.5, 1], {"early_stop_patience": 2, "min_delta": 0.5}, 2, (8.5, 1)),  # by exactly min_delta: no gain
        ([NAN, 9, NAN, NAN, 8], {"early_stop_patience": 2}, 3, (9, 1)),
        ([math.inf, NAN, 7], {"early_stop_patience": 2}, 1, (None, None)),
        ([0.5, 0.6, 0.6, 0.4, 1], {"early_stop_patience": 2, "metric": "PPL", "greater_is_better": True}, 3, (0.6, 1)),
    ],
)
def test_early_stopping_and_best_score(scripted, capsys, scores, settings, stopped_at, best):
    callback, run = scripted(scores, **settings)
    assert run.to_the_end() == stopped_at
    assert (callback.best.score, callback.best.step) == best
    early = stopped_at < len(scores) - 1
    assert callback.stopped_early is early
    assert f"stopped early after step {stopped_at}: PPL was not better" in capsys.readouterr().out or not early


def test_early_stopping_message(scripted, capsys):
    _, run = scripted([9, 8, 8.5, 8.5, 7], early_stop_patience=2, min_delta=0.25)
    run.to_the_end()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "stopped early after step 3: PPL was not better by more than 0.25 in 2 evaluations in a row; the best was "
        "8.0000, after step 1"
    )


def test_a_score_that_is_not_finite_is_null_in_the_log(scripted, tmp_path):
    _, run = scripted([NAN, 2.0])
    run.to_the_end()
    assert [json.loads(line)["PPL"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()] == [None, 2.0]


def test_which_metric_decides():
    assert deciding_metric({"loss": 1.0, "PPL": 2.0}) == ("PPL", False)
    assert deciding_metric({"loss": 1.0, "ACC": 0.5, "F1": 0.5}) == ("ACC", True)
    assert deciding_metric({"loss": 1.0, "ACC": 0.5}, "loss") == ("loss", False)
    assert deciding_metric({"bleu": 1.0}, "bleu", True) == ("bleu", True)
    with pytest.raises(UserError, match="metric: 'ACC' is not evaluated here; there are: loss, PPL"):
        deciding_metric({"loss": 1.0, "PPL": 2.0}, "ACC")
    with pytest.raises(UserError, match="greater_is_better: say True or False, and metric: bleu"):
        deciding_metric({"bleu": 1.0})


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_after", range(1, 6))
@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluated", "killed before its evaluation"])
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(scripted, tmp_path, killed_after, evaluated):
    """Interrupted after each step, with the state as it was before or after the evaluation of that step."""
    scores = [9, 8, 8.1, 7, 7.5, 7.2, 6.9, 7, 7, 7, 5]
    settings = {"early_stop_patience": 3, "min_delta": 0.2}
    unbroken, run = scripted(scores, "unbroken.jsonl", **settings)
    assert run.to_the_end() == 6
    first, run = scripted(scores, **settings)
    first.on_train_begin(run.context)
    state = {}
    for step in range(1, killed_after + 1):
        run.state.cur_step_num = step
        state = first.state()
        first.on_train_step_end(run.context)
    if evaluated:
        state = first.state()
    assert all(type(number) in (int, float) for number in state.values())
    first.close()
    second, again = scripted(scores, **settings)
    second.evaluate = lambda: {"loss": 0.0, "PPL": scores[again.state.cur_step_num]}
    second.restore(json.loads(json.dumps(state)))
    again.state.cur_step_num = step
    assert again.to_the_end() == 6
    assert second.best == unbroken.best
    assert second.state() == unbroken.state()
    assert (tmp_path / "eval.jsonl").read_text() == (tmp_path / "unbroken.jsonl").read_text()


def test_resuming_a_run_whose_patience_is_over_is_refused_unless_there_is_more(scripted):
    first, run = scripted([5, 6, 7, 8, 9], early_stop_patience=2)
    assert run.to_the_end() == 2
    second, again = scripted([8, 9], early_stop_patience=2)
    second.restore(first.state())
    again.state.cur_step_num = 2
    with pytest.raises(UserError, match="was ended early at step 2, after 2 evaluations .* raise early_stop_patience"):
        again.to_the_end()
    third, again = scripted([0, 0, 0, 8, 9], early_stop_patience=4)
    third.evaluate = lambda: {"loss": 0.0, "PPL": 8.0}
    third.restore(first.state())
    again.state.cur_step_num = 2
    assert again.to_the_end() == 4
    assert (third.best.score, third.best.step, third.best.waited) == (5, 0, 4)


# ---- the best weights ------------------------------------------------------------------------------------------------


class Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([0.0, 0.5], ms.float32), name="weight")


def test_the_weights_of_the_best_step_are_kept_beside_the_others(scripted, tmp_path):
    """Checkpoints every step, one of them kept: the best is none of their business, nor they its."""
    network, progress = Network(), RunProgress(1, 5)
    other = tmp_path / "checkpoint_best" / "rank_0" / "x_rank_0-7_9.ckpt"  # the best of an earlier run: not ours
    other.parent.mkdir(parents=True)
    other.write_text("old")
    (other.parent / "mine.ckpt").write_text("not a run's")
    keep = BestCheckpoint(tmp_path, "x", progress, network, CONFIG)
    callback, run = scripted([9, 8, 6, 7, 6.5, 7], keep=keep)
    section = CheckpointMonitorSection(prefix="x", save_checkpoint_steps=1, keep_checkpoint_max=1)
    monitor = CheckpointMonitor(section, progress, tmp_path, network, CONFIG)
    context = SimpleNamespace(original_args=lambda: SimpleNamespace(**vars(run.state), train_network=network))
    names = []

    def step(number):
        network.weight.set_data(Tensor([number, 0.5], ms.float32))
        monitor.on_train_step_end(context)
        names.append(sorted(file.name for file in other.parent.glob("x*.ckpt") if file != other))

    run.to_the_end(step)
    assert names == [["x_rank_0_1-0_0.ckpt"], ["x_rank_0_1-1_1.ckpt"], *[["x_rank_0_1-1_2.ckpt"]] * 3]
    assert sorted(file.name for file in other.parent.iterdir()) == [
        "config.json", "meta.json", "mine.ckpt", other.name, "x_rank_0_1-1_2.ckpt"
    ]  # fmt: skip
    assert other.read_text() == "old"
    assert last_checkpoint(other.parent) == keep.written  # though the other is of a later step
    best = CheckpointFile(keep.written)
    assert {name: best.read(name).tolist() for name in best.entries} == {
        "weight": [2, 0.5], "epoch_num": 1, "step_num": 2,
    }  # fmt: skip
    assert last_checkpoint(tmp_path / "checkpoint" / "rank_0").name == "x_rank_0-1_5.ckpt"
    assert GPT2Config.from_pretrained(other.parent) == CONFIG


def test_a_resumed_run_replaces_only_its_own_best(scripted, tmp_path):
    keep = BestCheckpoint(tmp_path, "x", RunProgress(1, 2), Network(), CONFIG)
    keep.save(1)
    other = keep.folder / "y_rank_0-1_1.ckpt"
    other.write_text("of another run")
    again = BestCheckpoint(tmp_path, "x", RunProgress(1, 2), Network(), CONFIG)
    callback, run = scripted([9, 8, 7], keep=again)
    callback.restore({"last_step": 1, "score": 8, "step": 1, "reference": 8, "waited": 0})
    run.state.cur_step_num = 1
    callback.evaluate = lambda: {"loss": 0.0, "PPL": 7.0}
    run.to_the_end()
    assert sorted(file.name for file in keep.folder.glob("*.ckpt")) == ["x_rank_0-1_2.ckpt", other.name]


def test_a_disk_that_is_full_leaves_the_last_best(tmp_path, monkeypatch):
    from mindgpt.train import best

    keep = BestCheckpoint(tmp_path, "x", RunProgress(1, 5), Network(), CONFIG)
    keep.save(1)

    def full(path, values):
        raise UserError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(best, "save_checkpoint", full)
    with pytest.raises(UserError, match="No space left"):
        keep.save(2)
    assert np.array_equal(CheckpointFile(last_checkpoint(keep.folder)).read("weight"), [0.0, 0.5])
    assert keep.written.name == "x_rank_0-1_1.ckpt"
