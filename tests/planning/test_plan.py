"""The planner: what it searches, how it ranks, what it writes, and what it says of bad input."""

import sys
import time

import pytest
import yaml

from mindgpt.config.errors import UserError
from mindgpt.config.hardware import load_hardware
from mindgpt.config.layout import grid_of, layout_problems, rows_of_step
from mindgpt.config.loader import load_config
from mindgpt.config.strategy import strategy_of
from mindgpt.planning.estimates import step_time
from mindgpt.planning.formula import collectives_of_stage
from mindgpt.planning.layout_search import MOST_MICRO_BATCHES, calibrated, own_candidate, rows_of, search
from mindgpt.planning.plan_report import describe
from tests import programs

GIB = 2**30
LIMIT = 0.85 * 64 * GIB


@pytest.fixture
def hardware(repo):
    return load_hardware(repo / "configs" / "hardware" / "atlas_800t_a2.yaml")


@pytest.fixture
def shipped(repo):
    return lambda name: load_config(repo / "configs" / f"{name}.yaml")[0]


@pytest.fixture
def toy(tmp_path):
    """A YAML file of a small network with a data-parallel layout."""

    def write(**sections):
        settings = {
            "runner_config": {"batch_size": 4},
            "lr_schedule": {"learning_rate": 1e-4},
            "train_dataset": {"input_columns": ["input_ids"]},
            "model": {
                "model_config": {
                    "num_layers": 2, "hidden_size": 64, "num_heads": 4, "vocab_size": 256, "seq_length": 32,
                    "compute_dtype": "float16",
                }
            },
            **sections,
        }  # fmt: skip
        file = tmp_path / "toy.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    return write


def command(repo, *flags):
    return programs.run([sys.executable, "tools/plan.py", *flags], repo, timeout=300)


@pytest.mark.parametrize(
    ("name", "cards"),
    [("gpt2/pretrain_gpt2_13b_fp16", 8), ("gpt2/pretrain_gpt2_52b_fp16", 64), ("gpt3/pretrain_gpt3_175b_fp16", 512)],
)
def test_every_layout_found_is_the_same_training(shipped, hardware, name, cards):
    config = shipped(name)
    before = time.monotonic()
    found = search(config, cards, hardware, LIMIT, rows_of(config, cards))
    assert time.monotonic() - before < 4  # 2 on a machine that does nothing else
    kinds = set()
    for candidate in found.fitting:
        run = candidate.config
        assert grid_of(run).devices == cards
        assert rows_of_step(run) == rows_of_step(config)
        assert not list(layout_problems(run, "Ascend", strategy_of(run, "Ascend", cards), cards))
        assert candidate.memory <= LIMIT
        batches = run.runner_config.gradient_accumulation_steps * run.parallel_config.micro_batch_num
        assert batches <= MOST_MICRO_BATCHES
        kinds.add((grid_of(run), candidate.recompute, run.parallel_config.optimizer_shard))
    assert len(kinds) > 10
    speeds = [candidate.tokens_per_second for candidate in found.fitting]
    assert all(faster > 0.98 * slower for faster, slower in zip(speeds, speeds[1:], strict=False))


def test_the_shipped_13b_is_what_it_finds_and_fits(shipped, hardware):
    """More than MindFormers published, 1376 tokens/s per card, if the assumptions about the card hold."""
    config = shipped("gpt2/pretrain_gpt2_13b_fp16")
    found, own = search(config, 8, hardware, LIMIT, rows_of(config, 8)).fitting[0], own_candidate(config, hardware)
    assert describe(found) == describe(own) == "dp 2 mp 4 pp 1 optimizer shard sequence, 1 x 1 rows"
    assert own.tokens_per_second > 1376
    assert own.memory < 58 * GIB
    named = {name for name, size in own.fullest.terms.items() if size}
    assert named == {
        "parameters", "gradients", "optimizer state", "gathered weights", "kept by blocks", "dropout masks",
        "logits and loss", "attention mask",
    }  # fmt: skip


def test_what_bounds_a_layout(shipped, hardware):
    """With little memory full recomputation is all that fits, and memory is named; with slow links messages are."""
    config = shipped("gpt2/pretrain_gpt2_13b_fp16")
    little = search(config, 8, hardware, 34 * GIB, 8)
    assert little.fitting[0].recompute == "full"
    assert little.bound(little.fitting[0]) == "memory"
    slow = hardware.model_copy(update={"server_gb_per_second": 5.0})
    found = search(config, 8, slow, LIMIT, 2)
    assert found.bound(found.fitting[0]) == "messages"


def test_idle_stages_are_those_of_the_bubble(shipped, hardware):
    config = shipped("gpt2/pretrain_gpt2_52b_fp16")
    own = own_candidate(config, hardware)
    busy = own.time.compute + own.time.messages
    assert own.time.idle == pytest.approx(busy * 3 / 32)
    last = own.stages[-1]
    again = step_time(config, hardware, last.flops, collectives_of_stage(config, last.stage), 48)
    assert last.time == again


def test_a_measured_run_sets_the_efficiency(shipped, hardware):
    config = shipped("gpt2/pretrain_gpt2_13b_fp16")
    fitted = calibrated(config, hardware, 1000.0)
    assert own_candidate(config, fitted).tokens_per_second == pytest.approx(1000)
    assert 0.2 < fitted.efficiency < hardware.efficiency
    with pytest.raises(UserError, match="--measured 9999: with efficiency 1 the formula gives"):
        calibrated(config, hardware, 9999.0)


def test_the_written_file_is_the_same_run_with_another_layout(toy, repo, tmp_path):
    out = tmp_path / "plan.yaml"
    flags = ["--rank_size", 4, "--compile", 0, "--output", out, "--batch_size", 2, "--run_mode", "train"]
    result = command(repo, "--config", toy(), *flags)
    assert result.returncode == 0, result.stderr
    header, columns, *_ = result.stdout.splitlines()
    assert "legal layouts of 4 cards for 8 rows a step" in header
    assert columns.split()[:3] == ["layout", "GiB", "tokens/s"]
    assert f"written: {out}" in result.stdout
    assert " holds, in GiB: parameters" in result.stdout
    before, after = load_config(toy())[0], load_config(out)[0]
    assert rows_of_step(after) == 8
    assert grid_of(after).devices == 4
    assert after.use_parallel
    for section in ("model", "optimizer", "lr_schedule", "train_dataset", "callbacks", "context"):
        assert getattr(after, section) == getattr(before, section), section


def test_fewest_cards(toy, repo):
    """One card would hold more than the limit, and two that share the layers' widths less."""
    network = {"num_layers": 2, "hidden_size": 256, "num_heads": 4, "vocab_size": 256, "seq_length": 8}
    file = toy(context={"max_device_memory": "0.02GB"}, model={"model_config": network})
    flags = ["--config", file, "--compile", 0, "--objective", "fewest_cards", "--usable_memory", 1, "--rows", 4]
    result = command(repo, *flags, "--rank_size", "4,1,2")
    assert result.returncode == 0, result.stderr
    assert "legal layouts of 2 cards for 4 rows a step" in result.stdout
    result = command(repo, *flags, "--rank_size", "1")
    assert result.returncode == 3, result.stdout
    (message,) = result.stderr.splitlines()
    assert message.startswith("error: none of the ")
    assert "legal layouts of 1 card fits 0.02 GiB a card. The smallest, dp 1 mp 1" in message
    assert "a card holds, in GiB: parameters 0.01, gradients 0.01, optimizer state 0.01" in message


@pytest.mark.needs_ascend
def test_the_best_are_compiled(toy, repo):
    result = command(repo, "--config", toy(), "--rank_size", 2, "--compile", 2)
    assert result.returncode == 0, result.stderr
    compiled = [line for line in result.stdout.splitlines() if line.startswith("compiled, ")]
    assert len(compiled) == 2
    for line in compiled:
        assert ", +0.0%), " in line
    assert "chosen: dp " in result.stdout


def test_refusals_are_one_clear_message(toy, repo, tmp_path):
    file = toy()
    wrong = tmp_path / "hardware.yaml"
    wrong.write_text("name: x\nmemory_gib: much\n")
    four = ["--config", file, "--rank_size", 4]
    for flags, message in [
        (["--config", file], "--rank_size N is required"),
        (["--config", file, "--rank_size", "four"], "--rank_size must be a whole number from 1, not 'four'"),
        (["--config", file, "--rank_size", "4,8"], "several numbers of cards are for --objective fewest_cards"),
        (["--config", tmp_path / "no.yaml", "--rank_size", 4], "no.yaml: there is no such file"),
        ([*four, "--rows", 0], "--rows must be a whole number from 1, not '0'"),
        (
            [*four, "--rows", 3, "--options", "model.model_config.num_heads=1"],
            "divides num_heads 1, hidden_size 64 and",
        ),
        ([*four, "--usable_memory", "1.5"], "--usable_memory must be a number above 0 and at most 1, not '1.5'"),
        ([*four, "--measured", "fast"], "--measured must be a number above 0, not 'fast'"),
        ([*four, "--measured", 1e12], "--measured 1e+12: with efficiency 1 the formula gives"),
        ([*four, "--compile", "x"], "--compile must be a whole number from 0, not 'x'"),
        ([*four, "--run_mode", "predict"], "layouts are planned for training"),
        ([*four, "--device_target", "CPU"], "layouts are planned for Ascend"),
        ([*four, "--hardware", wrong], "hardware.yaml:2: memory_gib: must be a number"),
        ([*four, "--nonsense", 1], "unknown flag --nonsense"),
        ([*four, "--compile", 0, "--output", tmp_path], "--output: it is a folder"),
    ]:
        result = command(repo, *flags)
        assert result.returncode == 2, (flags, result.stdout, result.stderr)
        assert result.stderr.startswith("error: "), result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
