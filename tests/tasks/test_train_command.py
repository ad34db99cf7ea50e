"""`run_mindformer.py --run_mode train`, as a user types it, on toy data."""

import importlib.util
import json
import re

import numpy as np
import pytest

from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.config.loader import load_config


def log_of(output):
    return [json.loads(line) for line in (output / "log" / "train.jsonl").read_text().splitlines()]


def losses_of(output):
    return [record["loss"] for record in log_of(output)]


@pytest.fixture(scope="module")
def train(toy, succeed, tmp_path_factory):
    """Train with other flags than the shared run: (what it printed, its output folder)."""

    def run(*flags, config=toy.yaml):
        cwd = tmp_path_factory.mktemp("run")
        data = ["--train_dataset_dir", toy.train] if config == toy.yaml else []
        return succeed("run_mindformer.py", "--config", config, *data, *flags, cwd=cwd), cwd / "output"

    return run


def test_a_run_leaves_what_it_should_and_nothing_else(trained):
    assert [entry.name for entry in trained.cwd.iterdir()] == ["output"]
    files = {file.relative_to(trained.output).as_posix() for file in trained.output.rglob("*") if file.is_file()}
    kept = ("2_6", "2_10")  # steps 16 and 20, the last two of 4, 8, 12, 16, 20; the number counts within the epoch
    assert {name for name in files if not name.startswith("compile/")} == {
        "train_config.yaml",
        "log/train.jsonl",
        "log/eval.jsonl",
        *(["plot.png"] if importlib.util.find_spec("matplotlib") else []),
        "checkpoint_best/rank_0/config.json",
        "checkpoint_best/rank_0/meta.json",
        "checkpoint_best/rank_0/toy_rank_0-2_10.ckpt",
        "checkpoint/rank_0/config.json",
        "checkpoint/rank_0/meta.json",
        "checkpoint_network/rank_0/config.json",
        "checkpoint_network/rank_0/meta.json",
        *(f"checkpoint/rank_0/toy_rank_0-{step}.ckpt" for step in kept),
        *(f"checkpoint_network/rank_0/toy_rank_0-{step}-network.ckpt" for step in kept),
    }


def test_the_log_has_every_step_and_every_field(trained):
    records = log_of(trained.output)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["epoch"] for record in records] == [1] * 10 + [2] * 10
    fields = ["step", "epoch", "loss", "learning_rate", "grad_norm", "loss_scale", "skipped", "tokens_per_second"]
    assert all(list(record) == fields for record in records)
    rates = [0.01 * min(step / 4, 1) for step in range(20)]
    assert [record["learning_rate"] for record in records] == pytest.approx(rates, rel=1e-6)
    assert {(record["loss_scale"], record["skipped"]) for record in records} == {(1.0, False)}
    assert min(record["grad_norm"] for record in records) > 0
    assert min(record["tokens_per_second"] for record in records) > 0
    losses = losses_of(trained.output)
    assert losses[0] == pytest.approx(np.log(300), rel=0.05)  # an untrained model knows nothing
    assert losses[-1] < losses[0] - 1


def test_the_console_shows_the_asked_steps_as_the_log_has_them(trained):
    pattern = re.compile(
        r"epoch (\d)/2, step (\d+)/20: loss (\d+\.\d{4}), lr (\S+), grad norm (\S+), \d+ tokens/s(.*)$", re.MULTILINE
    )
    lines = pattern.findall(trained.console)
    assert [int(step) for _, step, *_ in lines] == [1, 7, 14, 20]
    for epoch, step, loss, rate, norm, rest in lines:
        record = log_of(trained.output)[int(step) - 1]
        assert int(epoch) == record["epoch"]
        assert float(loss) == pytest.approx(record["loss"], abs=5e-5)
        assert float(rate) == pytest.approx(record["learning_rate"], rel=1e-3)
        assert float(norm) == pytest.approx(record["grad_norm"], abs=5e-4)
        assert rest == " (compiling included)" if step == "1" else rest.endswith(" left")
    for line in ("weights: random, training from scratch", "device: CPU"):
        assert line in trained.console.splitlines()


def test_evaluation_during_training_by_steps(trained):
    results = [json.loads(line) for line in (trained.output / "log" / "eval.jsonl").read_text().splitlines()]
    assert [result["step"] for result in results] == [0, 5, 10, 15, 20]
    assert all(result["PPL"] == pytest.approx(np.exp(result["loss"])) for result in results)
    assert results[0]["loss"] == pytest.approx(np.log(300), rel=0.05)
    assert results[-1]["loss"] < results[1]["loss"] < results[0]["loss"]
    shown = re.findall(r"^evaluation after step (\d+): loss (\S+), PPL (\S+)$", trained.console, re.MULTILINE)
    assert [int(step) for step, *_ in shown] == [5, 10, 15, 20]
    assert float(shown[-1][1]) == pytest.approx(results[-1]["loss"], abs=5e-5)
    assert trained.console.count("evaluation before training: loss ") == 1


def test_a_checkpoint_holds_weights_optimizer_state_and_counters(trained):
    whole = CheckpointFile(trained.last_checkpoint)
    network = CheckpointFile(trained.output / "checkpoint_network" / "rank_0" / "toy_rank_0-2_10-network.ckpt")
    assert all(np.array_equal(whole.read(name), network.read(name)) for name in network.entries)
    state = set(whole.entries) - set(network.entries)
    moments = {f"adam_{letter}.{name}" for letter in "mv" for name in network.entries}
    assert moments <= state
    assert all(np.abs(whole.read(name)).max() > 0 for name in moments if name.endswith("weight"))
    assert state - moments == {
        "epoch_num", "step_num", "global_step", "loss_scale", "current_iterator_step", "dropout_key",
    }  # fmt: skip
    assert (whole.read("epoch_num"), whole.read("step_num")) == (2, 20)


def test_the_kept_configuration_repeats_the_run_bit_for_bit(trained, train, toy):
    kept = trained.output / "train_config.yaml"
    config, _ = load_config(kept)
    assert config.train_dataset.data_loader.dataset_dir == str(toy.train)
    assert config.lr_schedule.warmup_steps == 4
    _, again = train(config=kept)
    assert losses_of(again) == losses_of(trained.output)
    assert load_config(again / "train_config.yaml")[0] == config
    first, second = (CheckpointFile(output / trained.last_checkpoint.relative_to(trained.output))
                     for output in (trained.output, again))  # fmt: skip
    assert all(np.array_equal(first.read(name), second.read(name)) for name in first.entries)


def test_evaluating_in_between_does_not_change_the_training(trained, train, tmp_path):
    older = tmp_path / "log" / "eval.jsonl"  # of a run that evaluated; this one does not, and its plot must not show it
    older.parent.mkdir()
    older.write_text('{"step": 5, "loss": 1.0}\n')
    train("--output_dir", tmp_path, "--options", "runner_config.epochs=1", "callbacks.0.per_print_times=100")
    assert losses_of(tmp_path) == losses_of(trained.output)[:10]
    assert not older.exists()


def test_another_seed_and_what_a_cpu_does_otherwise(trained, train):
    console, output = train(
        "--seed", 7, "--sink_mode", "True", "--epochs", 1, "--use_parallel", "True", "--options",
        "model.model_config.compute_dtype=float16", "model.model_config.use_flash_attention=True",
        "context.max_device_memory=30GB", "model.model_config.checkpoint_name_or_path=gpt2",
        "model.model_config.hidden_dropout_rate=0.1",
        "model.model_config.attention_dropout_rate=0.1",
    )  # fmt: skip
    for line in (
        "on CPU, float16 compute runs as float32",
        "on CPU, flash attention runs as the plain kernel",
        "on CPU, context.max_device_memory has no effect",
        "runner_config.sink_mode: True has no effect: on CPU batches are passed from the host one by one",
        "weights: gpt2 is not in checkpoint_download/gpt2, and nothing is downloaded",
        "weights: random, training from scratch",
        "use_parallel is True, but no cluster is around this process: running on one card",
    ):
        assert console.splitlines().count(line) == 1
    assert len(losses_of(output)) == 10
    assert losses_of(output)[0] != losses_of(trained.output)[0]
    assert losses_of(output)[-1] < losses_of(output)[0] - 1


def test_accumulation_equals_the_larger_batch(trained, train):
    console, parts = train("--batch_size", 2, "--gradient_accumulation_steps", 4)
    assert "2 epoch(s) of 10 steps, batch 2 x 4 rows of 32 tokens" in console
    assert losses_of(parts) == pytest.approx(losses_of(trained.output), rel=1e-4)
    norms = [[record["grad_norm"] for record in log_of(output)] for output in (parts, trained.output)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
