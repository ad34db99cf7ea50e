"""What a training shows of itself: the best weights, early stop, the closing table, TensorBoard, plots, Ctrl-C."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from tests.last_checkpoint import last_checkpoint

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
CALLBACKS = """\
callbacks:
  - {type: MFLossMonitor, per_print_times: 50}
  - {type: CheckpointMonitor, prefix: toy, save_checkpoint_steps: 5, keep_checkpoint_max: 0}
  - {type: EvalCallBack, eval_steps: 5, early_stop_patience: 2, min_delta: 0.01}
"""
TENSORBOARD = "  - {type: SummaryMonitor}\n"
TOKENS_PER_STEP = 8 * 32


def records(output, name):
    return [json.loads(line) for line in (output / "log" / name).read_text().splitlines()]


def table(console):
    """Name -> value of the closing table."""
    rows = console[console.index("\ntraining ") :].splitlines()[2:]
    return dict(re.fullmatch(r"  (\S+(?: \S+)*)  +(.+)", row).groups() for row in rows)


@pytest.fixture(scope="module")
def stopped(toy, succeed, tmp_path_factory):
    """A run of up to 400 steps that learns fast and then overfits: (what it printed, its output folder)."""
    cwd = tmp_path_factory.mktemp("stopped")
    yaml = toy.yaml.read_text()
    yaml = yaml[: yaml.index("callbacks:")] + CALLBACKS + TENSORBOARD * HAS_TENSORBOARD
    (cwd / "run.yaml").write_text(yaml.replace("learning_rate: 0.01", "learning_rate: 0.03"))
    console = succeed(
        "run_mindformer.py", "--config", "run.yaml", "--train_dataset_dir", toy.train, "--eval_dataset_dir", toy.valid,
        "--epochs", 40, cwd=cwd,
    )  # fmt: skip
    return console, cwd / "output"


def test_early_stop_at_the_step_that_the_scores_say(stopped):
    console, output = stopped
    results = records(output, "eval.jsonl")
    reference, waited, expected = results[0]["PPL"], 0, None
    for result in results[1:]:
        if result["PPL"] < reference - 0.01:
            reference, waited = result["PPL"], 0
        else:
            waited += 1
        if waited == 2:
            expected = result["step"]
            break
    assert expected is not None, "this run was to overfit"
    assert [result["step"] for result in results] == list(range(0, expected + 1, 5))
    assert [record["step"] for record in records(output, "train.jsonl")] == list(range(1, expected + 1))
    assert f"\nstopped early after step {expected}: PPL was not better by more than 0.01 in 2 evaluations" in console
    last = CheckpointFile(last_checkpoint(output / "checkpoint" / "rank_0"))
    assert last.read("step_num") == expected


def test_the_best_checkpoint_is_that_step_s_bit_for_bit_and_reaches_its_score(stopped, toy, succeed):
    _, output = stopped
    best = min(records(output, "eval.jsonl"), key=lambda result: result["PPL"])
    number = f"{(best['step'] - 1) // 10 + 1}_{(best['step'] - 1) % 10 + 1}"
    folder = output / "checkpoint_best" / "rank_0"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "meta.json", f"toy_rank_0-{number}.ckpt"]
    kept = CheckpointFile(folder / f"toy_rank_0-{number}.ckpt")
    network = output / "checkpoint_network" / "rank_0"
    same_step = CheckpointFile(network / f"toy_rank_0-{number}-network.ckpt")
    other = CheckpointFile(last_checkpoint(network))
    assert set(kept.entries) - set(same_step.entries) == {"epoch_num", "step_num"}
    assert all(np.array_equal(kept.read(name), same_step.read(name)) for name in same_step.entries)
    assert not all(np.array_equal(kept.read(name), other.read(name)) for name in other.entries)
    printed = succeed(
        "run_mindformer.py", "--config", "run.yaml", "--run_mode", "eval", "--eval_dataset_dir", toy.valid,
        "--load_checkpoint", "output/checkpoint_best", "--output_dir", "evaluated", cwd=output.parent,
    )  # fmt: skip
    assert float(re.search(r"'PPL': ([\d.]+)", printed)[1]) == pytest.approx(best["PPL"], rel=1e-6)


@pytest.mark.usefixtures("cpu")
def test_the_best_checkpoint_opens_from_python(stopped):
    from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel

    file = last_checkpoint(stopped[1] / "checkpoint_best" / "rank_0")
    model = GPT2LMHeadModel.from_pretrained(file)
    whole = CheckpointFile(file)
    assert all(np.array_equal(p.asnumpy(), whole.read(name)) for name, p in model.parameters_dict().items())


def test_the_guide_names_all_that_a_training_leaves(stopped, repo):
    text = (repo / "docs/guide.md").read_text(encoding="utf-8")
    rows = text.split("A run leaves in `output/`")[1].split("\n## ")[0].splitlines()
    named = {
        name.split("/")[0] for row in rows if row.startswith("|") for name in re.findall("`([^`]+)`", row.split("|")[1])
    }
    left = {path.name for path in stopped[1].iterdir() if not path.name.startswith(".")}
    kinds = {re.sub("^(train|finetune|eval|predict)_config", "<run_mode>_config", name) for name in left}
    assert kinds - {"compile"} <= named, "compile is MindSpore's own"
    assert {"checkpoint", "checkpoint_network", "checkpoint_best", "log"} <= kinds
    assert {"eval_result.json", "predictions.jsonl", "predictions.txt", "checkpoint_trainable"} <= named


def test_the_closing_table_says_what_the_logs_say(stopped):
    console, output = stopped
    rows, steps, results = table(console), records(output, "train.jsonl"), records(output, "eval.jsonl")
    best = min(results, key=lambda result: result["PPL"])
    assert rows["steps"] == f"{len(steps)} of 400, stopped early"
    assert rows["tokens"] == f"{len(steps) * TOKENS_PER_STEP:,}"
    seconds = sum(TOKENS_PER_STEP / record["tokens_per_second"] for record in steps[1:])
    shown = float(rows["tokens/s"].removesuffix(" (without the first step)").replace(",", ""))
    assert shown == pytest.approx((len(steps) - 1) * TOKENS_PER_STEP / seconds, rel=1e-3, abs=1)
    assert rows["loss"] == f"{steps[-1]['loss']:.4f} (step {len(steps)})"
    assert rows["best PPL"] == f"{best['PPL']:.4f} (after step {best['step']})"
    first = re.fullmatch(r"\d+s \((\d+)s for the first step, which compiles\)", rows["time"])
    assert int(first[1]) == round(TOKENS_PER_STEP / steps[0]["tokens_per_second"])
    assert "skipped" not in rows
    files = {name: value for name, value in rows.items() if value.startswith("output/")}
    assert set(files) == {"checkpoint", "best checkpoint", "evaluations", "log", "configuration"} | (
        {"plot"} if HAS_MATPLOTLIB else set()
    ) | ({"TensorBoard"} if HAS_TENSORBOARD else set())  # fmt: skip
    assert all((output.parent / value.split()[0]).exists() for value in files.values())
    assert files["checkpoint"].endswith(last_checkpoint(output / "checkpoint" / "rank_0").name)


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboard (the tensorboard extra) is not installed")
def test_tensorboard_shows_what_the_logs_say(stopped):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, output = stopped
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    read = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    steps, results = records(output, "train.jsonl"), records(output, "eval.jsonl")
    names = ("loss", "learning_rate", "grad_norm", "loss_scale", "tokens_per_second")
    expected = {f"train/{name}": [(record["step"], record[name]) for record in steps] for name in names}
    expected |= {f"eval/{name}": [(result["step"], result[name]) for result in results] for name in ("loss", "PPL")}
    as_float32 = {tag: [(step, float(np.float32(value))) for step, value in line] for tag, line in expected.items()}
    assert read == as_float32


def test_summaries_without_tensorboard_are_refused_at_once(program, toy, tmp_path):
    """The package is hidden by a finder that knows nothing of it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'tensorboard' else found(name, *rest)\n"
    )
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--options",
        "callbacks=[{type: SummaryMonitor}]", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'SummaryMonitor needs the package tensorboard, which is not installed: pip install "mindgpt[' in done.stderr
    assert "weights:" not in done.stdout


def test_a_metric_that_is_not_evaluated_is_refused_before_training(program, toy, tmp_path):
    done = program(
        "run_mindformer.py", "--config", toy.yaml, "--train_dataset_dir", toy.train, "--eval_dataset_dir", toy.valid,
        "--options", "callbacks=[{type: EvalCallBack, metric: ACC}]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: EvalCallBack.metric: 'ACC' is not evaluated here; there are: loss, PPL\n"


# ---- plots on demand -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib (the plot extra) is not installed")
def test_the_plot_tool_draws_one_run_or_several(stopped, trained, succeed, program, tmp_path):
    printed = succeed("tools/plot_run.py", trained.output, "--output", "one.png", cwd=tmp_path)
    assert printed == "one.png\n"
    succeed("tools/plot_run.py", trained.output, stopped[1], "--output", "two.png", cwd=tmp_path)
    for name in ("one.png", "two.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
    for arguments, message in (
        (
            (trained.output, stopped[1]),
            "error: several runs are drawn over one another: name the picture with --output",
        ),
        ((tmp_path,), f"error: {tmp_path}: has no log/train.jsonl; name the output folder of a training run"),
        (("nowhere",), "error: nowhere: there is no such folder"),
    ):
        done = program("tools/plot_run.py", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["loading MindSpore", "compiling", "training"])
def test_ctrl_c_ends_a_run_with_a_line(toy, repo, tmp_path, moment):
    command = [sys.executable, str(repo / "run_mindformer.py"), "--config", str(toy.yaml), "--epochs", "1000"]
    command += ["--train_dataset_dir", str(toy.train)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wanted = {"compiling": "compiling first", "training": "step 14/"}.get(moment)
    try:
        shown = ""
        while wanted and wanted not in shown:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            shown += line
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert errors == "interrupted; no file was left half written\n"
    last = rest.splitlines()[-1] if rest else None
    if moment == "compiling":
        assert last == "interrupted before the first step was done"
    elif moment == "training":
        step, name = re.fullmatch(r"interrupted after step (\d+) of 10000; last checkpoint: (\S+)", last).groups()
        assert (tmp_path / name).exists()
        steps = [record["step"] for record in records(tmp_path / "output", "train.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert abs(len(steps) - int(step)) <= 1
