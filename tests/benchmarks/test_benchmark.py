"""benchmarks/benchmark.py as a user runs it, at toy size; also under its older name, tools/benchmark.py."""

import importlib.util
import json
import math
import statistics
import subprocess
import sys

import pytest

from tests import programs

TOY = (
    "--num_layers 2 --hidden_size 64 --num_heads 2 --vocab_size 101 --batch_size 2 --seq_length 16 --rounds 2 --steps 3"
)


def benchmark(repo, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/benchmark.py", *TOY.split(), *flags]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def measured(repo, tmp_path_factory):
    """What the tool printed, and its JSON file."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}, the benchmark's peer (extra `test`)")
    file = tmp_path_factory.mktemp("benchmark") / "result.json"
    run = benchmark(repo, "--what", "train", "eval", "startup", "--warmup", "1", "--json", str(file))
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(file.read_text())


def test_both_sides_generate_as_many_tokens(repo, measured, tmp_path):
    """measured: the peer is there."""
    small = ("--decode_batch_sizes", "2", "--prompt_length", "4", "--new_tokens", "3", "--prefill_length", "12")
    run = benchmark(
        repo, "--what", "decode", "prefill", *small, "--warmup", "0", "--json", str(tmp_path / "result.json")
    )
    assert run.returncode == 0, run.stderr
    rows = {row["task"]: row for row in json.loads((tmp_path / "result.json").read_text())["results"]}
    assert list(rows) == ["decode:2", "prefill:12"]
    for task, made, counted in (("decode:2", 6, 6), ("prefill:12", 1, 12)):
        for side in (rows[task][side] for side in ("mindgpt", "transformers")):
            assert side["result"] == made
            assert side["tokens_per_second"] == pytest.approx(counted / side["median"])


def test_ratio_is_the_peers_median_by_ours(measured):
    printed, result = measured
    rows = {row["task"]: row for row in result["results"]}
    assert list(rows) == ["train", "eval", "startup", "startup again"]
    for task in ("train", "eval"):
        sides = [rows[task][side] for side in ("mindgpt", "transformers")]
        for side in sides:
            assert len(side["seconds"]) == 2 * 3  # rounds x steps
            assert side["median"] == statistics.median(side["seconds"]) > 0
            assert side["tokens_per_second"] == pytest.approx(2 * 16 / side["median"])
            assert 2**26 < side["peak_memory"] < 2**35
        ours, peer = sides
        assert rows[task]["ratio"] == pytest.approx(peer["median"] / ours["median"])
        line = next(line for line in printed.splitlines() if line.startswith(task)).split()
        assert [float(cell) for cell in line[1:3]] == pytest.approx([ours["median"], peer["median"]], rel=1e-3)
        assert float(line[3]) == pytest.approx(rows[task]["ratio"], abs=0.006)


def test_both_sides_do_the_same_work(measured):
    """The loss is a mean over tokens: the logarithm of the vocabulary before training, and falling alike with it."""
    _, result = measured
    rows = {row["task"]: row for row in result["results"]}
    for side in ("mindgpt", "transformers"):
        assert rows["eval"][side]["result"] == pytest.approx(math.log(101), abs=0.1)
        assert 0.8 * math.log(101) < rows["train"][side]["result"] < math.log(101) + 0.1
    assert rows["train"]["mindgpt"]["result"] == pytest.approx(rows["train"]["transformers"]["result"], abs=0.3)


def test_startup_takes_longer_than_a_step(measured):
    _, result = measured
    rows = {row["task"]: row for row in result["results"]}
    for side in ("mindgpt", "transformers"):
        assert 0.5 < rows["startup"][side]["median"] < 300
        assert rows["startup"][side]["median"] > rows["train"][side]["median"]
    assert rows["startup again"]["transformers"] == rows["startup"]["transformers"]
    assert rows["startup again"]["mindgpt"]["median"] < 0.9 * rows["startup"]["mindgpt"]["median"]  # kernels were kept


def test_measured_matmuls_have_the_shapes_of_the_model(measured):
    printed, result = measured
    shapes = [(shape["rows"], shape["in"], shape["out"]) for shape in result["matmul"]["shapes"]]
    assert shapes == [(32, 64, 64), (32, 64, 256), (32, 256, 64), (32, 64, 101)]
    forward = 0.0  # recomputed from the printed speeds: 4 square products a layer, 2 of the perceptron, one head
    for shape, count in zip(result["matmul"]["shapes"], (8, 2, 2, 1), strict=True):
        forward += count * 2 * shape["rows"] * shape["in"] * shape["out"] / shape["gflops"]["mindspore"] / 1e9
    seconds = result["matmul"]["seconds_per_step"]
    assert seconds["eval"]["mindgpt"] == pytest.approx(forward)
    assert seconds["train"]["mindgpt"] == pytest.approx(3 * forward)
    assert "matmul, float32 GFLOP/s" in printed


def test_machine_and_versions_are_named(measured):
    printed, result = measured
    assert set(result["machine"]["versions"]) == {"mindspore", "torch", "transformers"}
    assert result["machine"]["cpu"] in printed
    assert f"torch {result['machine']['versions']['torch']}" in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seq_length", "0"], "--seq_length: must be an integer of at least 1, not '0'"),
        (["--seq_length", "4096"], "--seq_length: 4096 tokens, but the position table of gpt2 holds 1024"),
        (["--what", "dance"], "argument --what: invalid choice: 'dance'"),
        (["--hidden_size", "65"], "65 must be divisible by num_heads"),
        (["--dropout", "1.5"], "hidden_dropout_rate"),
        (["--model", "gpt3"], "gpt3: is neither a file, nor a folder, nor the name of a preset"),
        (["--json", "nowhere/at/all.json"], "there is no folder nowhere/at"),
    ],
)
def test_wrong_flags_are_refused_with_one_message(repo, flags, said):
    run = programs.run([sys.executable, "tools/benchmark.py", *TOY.split(), *flags], repo)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_missing_peer_is_named_with_the_extra_that_brings_it(repo, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", repo / "benchmarks/benchmark.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(tool.UserError, match=r"needs torch, of the extra `test`: pip install 'mindgpt\[test\]'"):
        tool.check(tool.parse_arguments([]))


def test_lora_is_compared_with_training_all_weights(repo, tmp_path):
    file = tmp_path / "result.json"
    run = benchmark(repo, "--what", "lora", "--warmup", "1", "--json", str(file))
    assert run.returncode == 0, run.stderr
    tuning = json.loads(file.read_text())["tuning"]
    assert list(tuning) == ["train", "lora"]
    for values in tuning.values():
        assert len(values["seconds"]) == 2 * 3  # rounds x steps
        assert values["tokens_per_second"] == pytest.approx(2 * 16 / values["median"])
        assert 0.8 * math.log(101) < values["result"] < math.log(101) + 0.1
    full, lora = tuning["train"], tuning["lora"]
    assert full["result"] != lora["result"]  # after as many steps from the same weights
    speed, memory = full["median"] / lora["median"], full["peak_memory"] / lora["peak_memory"]
    *_, shown_speed, shown_memory = run.stdout.splitlines()[-1].split()
    assert float(shown_speed.rstrip("x")) == pytest.approx(speed, abs=0.006)
    assert float(shown_memory.rstrip("x")) == pytest.approx(memory, abs=0.006)
