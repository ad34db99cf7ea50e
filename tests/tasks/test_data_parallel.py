"""Several processes as one: what two give together is what one gives with the double batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.config import load_config
from mindgpt.config.layout import layout_problems
from mindgpt.config.strategy import strategy_of
from mindgpt.data.mindrecord import MindRecordWriter
from tests.last_checkpoint import last_checkpoint

CLEAN = ("MS_", "RANK_ID", "AKG_", "OMP_", "PYTHONPATH")


@pytest.fixture(scope="module")
def launch(repo):
    """Start the launcher with two processes: `launch("script", "--flag", ..., cwd=...)` -> Popen."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(CLEAN)}
    environment["PYTHON"] = sys.executable

    def start(*words, cwd):
        command = " ".join(f"'{word}'" for word in words)
        launcher = ["bash", str(repo / "scripts" / "msrun_launcher.sh"), command, "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(launcher, cwd=cwd, env=environment, **pipes)

    return start


@pytest.fixture(scope="module")
def together(launch):
    """Run the program in two processes to its end: what it printed."""

    def run(*words, cwd):
        process = launch("run_mindformer.py", *words, "--use_parallel", "True", cwd=cwd)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
        assert err == ""
        return out

    return run


def log_of(folder, name="train"):
    return [json.loads(line) for line in (folder / "output" / "log" / f"{name}.jsonl").read_text().splitlines()]


def column(folder, name, log="train"):
    return np.array([record[name] for record in log_of(folder, log)])


def same_curves(one, two):
    np.testing.assert_allclose(column(two, "loss"), column(one, "loss"), rtol=1e-5)
    np.testing.assert_allclose(column(two, "grad_norm"), column(one, "grad_norm"), rtol=1e-4)
    assert column(one, "loss")[-1] < 0.95 * column(one, "loss")[0], "the curve must have somewhere to go"


# ---- training --------------------------------------------------------------------------------------------------------


def test_two_processes_equal_one_with_the_double_batch(toy, trained, together, tmp_path):
    console = together(
        "--config", toy.yaml, "--train_dataset_dir", toy.train, "--do_eval", "True", "--eval_dataset_dir", toy.valid,
        "--batch_size", 4, "--options", "eval_step_interval=5", cwd=tmp_path,
    )  # fmt: skip
    same_curves(trained.cwd, tmp_path)
    np.testing.assert_allclose(column(tmp_path, "loss", "eval"), column(trained.cwd, "loss", "eval"), rtol=1e-5)
    one, two = (CheckpointFile(folder / "output/checkpoint/rank_0/toy_rank_0-2_10.ckpt")
                for folder in (trained.cwd, tmp_path))  # fmt: skip
    assert set(one.entries) == set(two.entries)
    for name in one.entries:
        if ".dense2.bias" in name:
            continue  # a bias of the keys changes no score: its gradient is rounding, which AdamW makes large
        np.testing.assert_allclose(two.read(name), one.read(name), rtol=2e-3, atol=2e-5, err_msg=name)
    # Everything once: the files are those of one process, and no line of the console comes twice.
    files = [
        {file.relative_to(folder).as_posix() for file in (folder / "output").rglob("*") if file.is_file()}
        for folder in (trained.cwd, tmp_path)
    ]
    logs = {f"output/msrun_log/{name}.log" for name in ("worker_0", "worker_1", "scheduler")}
    assert {name for name in files[1] if "/compile/" not in name} == {
        name for name in files[0] if "/compile/" not in name
    } | logs
    assert os.listdir(tmp_path) == ["output"]
    lines = [line for line in console.splitlines() if line]
    assert len(lines) == len(set(lines))
    assert "data parallel: 2 processes, each with the whole model and its share of the data" in lines
    assert any("batch 4 x 1 x 2 rows of 32 tokens" in line for line in lines)


def labelled_rows(path, rows=61, length=33, seed=0):
    """Rows of which between 2 and all tokens count, so that no two processes count as many in a step."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, 40, (rows, length)).astype(np.int32)
    mask, labels = np.ones_like(ids), ids.copy()
    for row in range(rows):
        if row % 2:
            labels[row, : draw.integers(1, length - 2)] = -100
        else:
            mask[row, draw.integers(3, length) :] = 0
    with MindRecordWriter(path, ["input_ids", "attention_mask", "labels"]) as writer:
        writer.write({"input_ids": list(ids), "attention_mask": list(mask), "labels": list(labels)})


def test_uneven_rows_with_accumulation_and_shuffling(toy, succeed, together, tmp_path):
    """The mean is over all counted tokens, though one process has many more of them than the other."""
    data = tmp_path / "rows.mindrecord"
    labelled_rows(data)
    folders = tmp_path / "one", tmp_path / "two"
    arguments = ["--config", toy.yaml, "--train_dataset_dir", data, "--gradient_accumulation_steps", 2]
    options = ["--options", "train_dataset.data_loader.shuffle=True", "train_dataset.num_samples=null"]
    for folder in folders:
        folder.mkdir()
    succeed("run_mindformer.py", *arguments, "--batch_size", 4, *options, cwd=folders[0])
    together(*arguments, "--batch_size", 2, "--use_parallel", "True", *options, cwd=folders[1])
    assert len(log_of(folders[0])) == 14  # 61 rows, 8 a step, twice
    same_curves(*folders)


CLASSIFIER = """\
run_mode: finetune
use_parallel: True
context: {enable_graph_kernel: False}
trainer: {type: TextClassificationTrainer, class_weights: [1.0, 3.0]}
runner_config: {epochs: 4, batch_size: 8}
lr_schedule: {type: constant, learning_rate: 0.01}
train_dataset: {drop_remainder: False, num_buckets: 2, data_loader: {shuffle: True}}
eval_dataset: {num_buckets: 2}
do_eval: True
eval_step_interval: 4
model:
  arch: {type: GPT2ForSequenceClassification}
  model_config: {num_labels: 2, seq_length: 32, hidden_size: 32, num_layers: 1, num_heads: 2, vocab_size: 300,
                 hidden_dropout_rate: 0.0, attention_dropout_rate: 0.0}
"""


def test_a_classifier_with_class_weights_and_a_last_batch_that_is_not_full(trained, succeed, together, tmp_path):
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, 43)
    rows = [np.concatenate([draw.integers(5, 40, draw.integers(2, 20)), [50 + label]]) for label in labels]
    path = tmp_path / "rows.mindrecord"
    with MindRecordWriter(path, ["input_ids", "attention_mask", "labels"]) as writer:
        ids = [row.astype(np.int32) for row in rows]
        writer.write({"input_ids": ids, "attention_mask": [np.ones_like(row) for row in ids],
                      "labels": [np.array([label], np.int32) for label in labels]})  # fmt: skip
    (tmp_path / "toy.yaml").write_text(CLASSIFIER)
    folders = tmp_path / "one", tmp_path / "two"
    arguments = ["--config", tmp_path / "toy.yaml", "--train_dataset_dir", path, "--eval_dataset_dir", path,
                 "--load_checkpoint", trained.last_checkpoint]  # fmt: skip
    for folder in folders:
        folder.mkdir()
    succeed("run_mindformer.py", *arguments, cwd=folders[0])
    together(*arguments, "--batch_size", 4, cwd=folders[1])
    assert len(log_of(folders[0])) == 24  # 43 rows, 8 a step: 5 steps and one of 3 rows, 4 times
    same_curves(*folders)
    for name in ("ACC", "F1", "MCC"):
        np.testing.assert_allclose(column(folders[1], name, "eval"), column(folders[0], name, "eval"), rtol=1e-9)
    np.testing.assert_allclose(column(folders[1], "loss", "eval"), column(folders[0], "loss", "eval"), rtol=1e-5)


def test_a_run_that_loses_a_process_ends_at_once_and_is_resumed_exactly(toy, launch, together, tmp_path):
    """With dropout, whose masks differ between the processes and follow from one checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [
        "--config", toy.yaml, "--train_dataset_dir", toy.train, "--batch_size", 4, "--use_parallel", "True",
        "--options", "model.model_config.hidden_dropout_rate=0.2", "train_dataset.data_loader.shuffle=True",
    ]  # fmt: skip
    whole.mkdir()
    broken.mkdir()
    together(*arguments, cwd=whole)
    process = launch("run_mindformer.py", *arguments, cwd=broken)
    log = broken / "output" / "log" / "train.jsonl"
    end = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    [worker] = [child for child in children(process.pid) if environment(child).get("MS_NODE_ID") == "1"]
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 137
    assert "error: worker_1 was killed by SIGKILL" in err
    steps = len(log_of(broken))
    assert 6 <= steps < 20
    resume = [*arguments[:6], "--resume_training", "True", *arguments[6:]]
    assert "resuming from output/checkpoint/rank_0/toy_rank_0-" in together(*resume, cwd=broken)
    assert column(broken, "loss").tolist() == column(whole, "loss").tolist()
    one, two = (CheckpointFile(last_checkpoint(folder / "output/checkpoint/rank_0")) for folder in (whole, broken))
    assert one.texts == two.texts
    for name in one.entries:
        np.testing.assert_array_equal(one.read(name), two.read(name), err_msg=name)


def children(pid):
    tasks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in tasks.stdout.split()]


def environment(pid):
    with open(f"/proc/{pid}/environ") as file:
        return dict(word.split("=", 1) for word in file.read().split("\0") if "=" in word)


# ---- evaluation and prediction ---------------------------------------------------------------------------------------


def test_evaluation_and_prediction_equal_those_of_one_process_exactly(toy, trained, succeed, together, tmp_path):
    """17 rows in batches of 4: 5 batches, of which the last has one row, on 2 processes."""
    results = []
    for name, run in (("one", lambda *words, cwd: succeed("run_mindformer.py", *words, cwd=cwd)), ("two", together)):
        folder = tmp_path / name
        folder.mkdir()
        weights = ["--config", toy.yaml, "--load_checkpoint", trained.last_checkpoint]
        shown = run(*weights, "--run_mode", "eval", "--eval_dataset_dir", toy.valid, "--batch_size", 4, cwd=folder)
        texts = run(
            *weights, "--run_mode", "predict", "--tokenizer", toy.tokenizer, "--do_sample", "True",
            "--predict_data", "the quick brown", "seven old ships sail", "new land", cwd=folder,
        )  # fmt: skip
        files = [(folder / "output" / file).read_text() for file in ("eval_result.json", "predictions.jsonl")]
        lines = [line for line in shown.splitlines() if line.startswith("PerplexityMetric: ")]
        results.append((*files, lines, texts[texts.index("\n>>> ") :]))
    assert results[0] == results[1]
    assert len(results[0][2]) == 1


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "target", "message"),
    [
        ({}, "CPU", None),
        ({"parallel.parallel_mode": 1, "parallel_config.data_parallel": 4}, "CPU", None),
        ({"use_parallel": False}, "CPU", "there are 4 processes, but use_parallel is False"),
        ({"parallel.parallel_mode": "stand_alone"}, "CPU", "parallel.parallel_mode is stand_alone"),
        (
            {"parallel_config.data_parallel": 8},
            "CPU",
            "data_parallel 8 x model_parallel 1 x pipeline_stage 1 = 8 cards, but there are 4 processes",
        ),
        ({"parallel.parallel_mode": 1}, "CPU", "data_parallel 1 x .* = 1 cards, but there are 4 processes"),
        (
            {"parallel_config.model_parallel": 2, "parallel_config.pipeline_stage": 2},
            "CPU",
            "on CPU .* only be data parallel.* parallel_config.model_parallel, parallel_config.pipeline_stage.*dry_run",
        ),
        ({"parallel.enable_parallel_optimizer": True}, "CPU", "asks for parallel.enable_parallel_optimizer"),
    ],
    ids=str,
)
def test_layouts_and_processes(tmp_path, overrides, target, message):
    path = tmp_path / "run.yaml"
    path.write_text("lr_schedule: {learning_rate: 0.001}\nuse_parallel: True\n")
    config, _ = load_config(path, overrides)
    problems = list(layout_problems(config, target, strategy_of(config, target, 4), 4))
    assert len(problems) == (message is not None)
    if message:
        assert re.search(message, problems[0])


def test_a_layout_that_does_not_fit_ends_the_run_before_it_waits_for_others(program, toy, tmp_path):
    arguments = ["--config", toy.yaml, "--train_dataset_dir", toy.train]
    done = program("run_mindformer.py", *arguments, cwd=tmp_path, env={"MS_WORKER_NUM": "2", "RANK_ID": "0"})
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: there are 2 processes, but use_parallel is False")
    assert not (tmp_path / "output").exists()


def test_an_environment_that_makes_no_sense_is_refused(program, toy, tmp_path):
    done = program("run_mindformer.py", "--config", toy.yaml, cwd=tmp_path, env={"MS_WORKER_NUM": "two"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: the environment variable MS_WORKER_NUM is 'two'")


# ---- the parts -------------------------------------------------------------------------------------------------------

PARTS = """
import os
import re
import sys
import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindgpt.config.execution_sections import ContextSection
from mindgpt.config.errors import UserError
from mindgpt.config.optimizer_sections import OptimizerSection
from mindgpt.config.training_sections import ScaleSenseSection
from mindgpt.models.dropout import HashedDropout
from mindgpt.config.strategy import Strategy
from mindgpt.runtime.collectives import gather_objects, gather_shares, join, share
from mindgpt.runtime.device import prepare_device
from mindgpt.runtime.ranks import rank
from mindgpt.tasks.train import _check_equal_beginnings
from mindgpt.train.optimizers import build_optimizer
from mindgpt.train.schedules import LearningRateTable
from mindgpt.train.step import AccumulatingTrainStep, TrainStep

prepare_device(ContextSection(device_target="CPU", enable_graph_kernel=False), "output", seed=0)
join(Strategy.DATA_PARALLEL)

numbers = [0.1 + rank(), float("inf"), 2**60 + rank(), "\\u00e9" * (300 * rank())]
assert gather_objects(numbers) == [[0.1, float("inf"), 2**60, ""], [1.1, float("inf"), 2**60 + 1, "\\u00e9" * 300]]
assert gather_objects([]) == [[], []]
assert gather_shares([10 * number for number in share(5)]) == [0, 10, 20, 30, 40]
assert gather_shares([number for number in share(1)]) == [0]


class Quadratic(nn.Cell):
    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([[1.0, -2.0]], ms.float32), name="w")

    def summed_loss(self, x):
        return (self.w * self.w).sum() * x.sum(), Tensor(1.0, ms.float32) * x.size


def state(step):
    return {name: p.asnumpy().copy() for name, p in step.parameters_dict().items()}


for batches in (1, 2):
    model = Quadratic().set_train()
    optimizer = build_optimizer(OptimizerSection(), model.trainable_params(), LearningRateTable(np.full(9, 0.1, "f4")))
    scale = ScaleSenseSection(type="dynamic", loss_scale_value=4.0)
    step = TrainStep(model, optimizer, scale, None)
    if batches == 2:
        step = AccumulatingTrainStep(model, optimizer, scale, None, batches)
    _check_equal_beginnings(step)
    # Rank 0 counts 2 numbers and rank 1 counts 6: the mean is over all 8.
    mine = Tensor(np.full(2 if rank() == 0 else 6, 1.0 if rank() == 0 else 3.0, np.float32))
    loss, skipped, _, _, norm = (value.asnumpy().item() for value in step(mine))
    assert not skipped
    np.testing.assert_allclose(loss, 5.0 * (2 * 1.0 + 6 * 3.0) / 8, rtol=1e-6)
    np.testing.assert_allclose(norm, 2 * np.sqrt(5.0) * (2 * 1.0 + 6 * 3.0) / 8, rtol=1e-6)
    before = state(step)
    bad = Tensor(np.full(2, np.nan if rank() == 1 else 1.0, np.float32))
    results = [value.asnumpy().item() for value in step(bad)]
    assert results[1], "a number of the other process that is not finite must make this one skip, too"
    after = state(step)
    assert after["loss_scale"] == before["loss_scale"] / 2
    assert (after["w"] == before["w"]).all()
    assert gather_objects(after["w"].tolist())[0] == after["w"].tolist()

masks = gather_objects((HashedDropout(0.5).set_train()(Tensor(np.ones((8, 16), np.float32))).asnumpy() > 0).tolist())
assert masks[0] != masks[1]
assert 0.2 < np.mean(np.array(masks[0]) == np.array(masks[1])) < 0.8

model.w.set_data(Tensor([[1.0, rank()]], ms.float32))
try:
    _check_equal_beginnings(model)
except UserError as error:
    assert "w of rank(s) 1 differs from that of rank 0" in str(error), error
else:
    raise AssertionError("different weights must be refused")
print(f"rank {rank()} is content")
"""


def test_the_parts_of_which_it_is_made(launch, tmp_path):
    """In two processes: exchange, a step over unequal counts, a step that is not finite in one, masks, the check."""
    (tmp_path / "parts.py").write_text(PARTS)
    process = launch("parts.py", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "rank 0 is content" in out
    assert "rank 1 is content" in (tmp_path / "output" / "msrun_log" / "worker_1.log").read_text()
