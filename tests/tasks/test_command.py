"""The `mindgpt` command as a user types it, against the old programs on the same weights and data."""

import io
import json
import re
import sys

import pytest

from mindgpt.cli import entry, text_to_mindrecord
from mindgpt.config.loader import load_config
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

MINDGPT = "mindgpt/__main__.py"
QUICK = ("--set", "context.enable_graph_kernel=False")  # compiles in a third of the time
PROMPTS = ("the quick brown", "seven old ships")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder and cache to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tuned(toy, trained, succeed, tmp_path_factory):
    """A fine-tuning of the toy run on text, without a YAML file, and what it printed."""
    cwd = tmp_path_factory.mktemp("tuned")
    (cwd / "my.txt").write_text("seven old ships sail north . a lazy dog jumps .\n" * 300)
    console = succeed(
        MINDGPT, "finetune", "--model", trained.output, "--tokenizer", toy.tokenizer, "--data",
        "my.txt", "--output", "out", "--epochs", 1, "--learning_rate", 0.01, *QUICK, cwd=cwd,
    )  # fmt: skip
    return cwd, console


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "log" / "train.jsonl").read_text().splitlines()]


def test_finetune_without_a_yaml_file_learns_and_tells_its_settings(tuned):
    cwd, console = tuned
    found = losses(cwd / "out")
    assert found[-1] < found[0]
    config, _ = load_config(cwd / "out" / "finetune_config.yaml")
    assert f"learning_rate {config.lr_schedule.learning_rate:g}" in console
    assert f"batch_size {config.runner_config.batch_size}" in console
    assert "to evaluate on" in console
    assert "evaluation after step" in console


def test_its_yaml_file_repeats_the_run_by_the_old_program(tuned, succeed):
    cwd, _ = tuned
    succeed("run_mindformer.py", "--config", "out/finetune_config.yaml", "--output_dir", "again", cwd=cwd)
    assert losses(cwd / "again") == losses(cwd / "out")


def test_predict_and_its_old_program_give_the_same_texts(tuned, toy, succeed):
    cwd, _ = tuned
    succeed(MINDGPT, "predict", "--model", "out", *PROMPTS, "--max_new_tokens", 6, "--output", "new", *QUICK, cwd=cwd)
    succeed(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "predict", "--load_checkpoint", "out/checkpoint",
        "--tokenizer", toy.tokenizer, "--max_new_tokens", 6, "--output_dir", "old", "--predict_data", *PROMPTS, cwd=cwd,
    )  # fmt: skip
    new, old = (json.loads((cwd / name / "predictions.jsonl").read_text().splitlines()[0]) for name in ("new", "old"))
    assert new == old
    assert (cwd / "new/predictions.txt").read_text() == (cwd / "old/predictions.txt").read_text()


def test_eval_and_its_old_program_give_the_same_perplexity(trained, toy, succeed, here):
    text, words = toy.valid.with_suffix(".txt"), ("--batch_size", 8, *QUICK)
    rows = [
        "--input_file",
        text,
        "--output_file",
        "rows.mindrecord",
        "--max_length",
        32,
        "--tokenizer_type",
        toy.tokenizer,
    ]
    text_to_mindrecord.main(list(map(str, rows)))
    succeed(
        "run_mindformer.py", "--config", toy.yaml, "--run_mode", "eval", "--eval_dataset_dir", "rows.mindrecord",
        "--load_checkpoint", trained.output / "checkpoint", "--output_dir", "old", *words, cwd=here,
    )  # fmt: skip
    succeed(
        MINDGPT, "eval", "--model", trained.output, "--data", text, "--tokenizer", toy.tokenizer, "--output", "new",
        *words, cwd=here,
    )  # fmt: skip
    new, old = (json.loads((here / name / "eval_result.json").read_text()) for name in ("new", "old"))
    assert (new["loss"], new["PPL"], new["tokens"]) == (old["loss"], old["PPL"], old["tokens"])


def test_train_from_the_name_of_a_size(toy, succeed, here):
    options = ["num_layers=1", "num_heads=2", "hidden_size=32", "hidden_dropout_rate=0.0", "attention_dropout_rate=0.0"]
    settings = [word for option in options for word in ("--set", f"model.model_config.{option}")]
    console = succeed(
        MINDGPT, "train", "--model", "gpt2_quickstart", "--tokenizer", toy.tokenizer, "--data",
        toy.valid.with_suffix(".txt"), "--eval_data", toy.train.with_suffix(".txt"), "--output", "out", "--epochs", 3,
        *settings, *QUICK, cwd=here,
    )  # fmt: skip
    assert "random, training from scratch" in console
    found = losses(here / "out")
    assert found[-1] < found[0]
    config, _ = load_config(here / "out" / "train_config.yaml")
    assert config.model.config.vocab_size == len(GPT2Tokenizer.from_pretrained(toy.tokenizer))
    first = (here / "out" / "train_config.yaml").read_text().splitlines()[0]
    assert first.startswith("# mindgpt train --model gpt2_quickstart --tokenizer ")


def run(monkeypatch, *words, typed=""):
    """`mindgpt` in this process: its exit status."""
    for variable in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", ["mindgpt", *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as end:
        entry.main()
    return end.value.code


def test_chat_prints_what_predict_writes(tuned, monkeypatch, capsys):
    cwd, _ = tuned
    monkeypatch.chdir(cwd)
    typed = (
        f"{PROMPTS[0]}\n/set max_new_tokens 3\n{PROMPTS[1]}\n\n/set no_such 1\n/nothing\n/settings\n/quit\nnot this\n"
    )
    words = ("--max_new_tokens", 6, "--do_sample", "False", "--output", "chat", *QUICK)
    assert run(monkeypatch, "chat", "--model", "out", *words, typed=typed) == 0
    printed, complaints = capsys.readouterr()
    answers = printed.split("type a prompt; /help lists the commands\n")[1].splitlines()
    texts = [json.loads(line) for line in (cwd / "new" / "predictions.jsonl").read_text().splitlines()]
    continued = [one["generated_text"].removeprefix(one["prompt"]) for one in texts]
    assert answers[0] == continued[0]
    assert answers[1] + answers[2] == continued[1]  # three tokens, and three more after an empty line
    assert answers[3:] == ["max_new_tokens 3, do_sample False"] or "max_new_tokens 3" in answers[3]
    assert re.search(r"no_such: unknown key", complaints)
    assert "/nothing: there is no such command" in complaints


def test_chat_words_prompts_by_a_template(tuned, monkeypatch, capsys):
    from mindgpt.generation.pipeline import TextGenerationPipeline

    cwd, _ = tuned
    monkeypatch.chdir(cwd)
    asked = []
    monkeypatch.setattr(
        TextGenerationPipeline, "stream", lambda self, text, **settings: asked.append((text, settings)) or ["!"]
    )
    assert run(monkeypatch, "chat", "--model", "out", "--template", "alpaca", *QUICK, typed="name a {colour}\n") == 0
    ((text, settings),) = asked
    assert text == "### Instruction:\nname a {colour}\n\n### Response:\n"
    assert settings == {"max_new_tokens": 128, "do_sample": True, "top_p": 0.95}
    (cwd / "t.json").write_text('{"prompt": "Q: {prompt}\\nA:"}')
    assert run(monkeypatch, "chat", "--model", "out", "--template", "t.json", "--seed", 3, *QUICK, typed="why?\n") == 0
    assert asked[1][0] == "Q: why?\nA:"
    assert asked[1][1]["seed"] == 3
    assert run(monkeypatch, "chat", "--model", "out", "--template", "nope", *QUICK) == 2
    assert "--template: nope is no file" in capsys.readouterr().err


def test_score_and_its_old_program_write_the_same(tuned, toy, monkeypatch):
    cwd, _ = tuned
    monkeypatch.chdir(cwd)
    words = (*PROMPTS, "--output", "new.jsonl", "--per_token", *QUICK)
    assert run(monkeypatch, "score", "--model", "out", *words) == 0
    from mindgpt.cli.score_text import main as old_program

    old_program(
        list(map(str, [
            "--config", toy.yaml, "--load_checkpoint", "out/checkpoint", "--tokenizer", toy.tokenizer, *PROMPTS,
            "--output", "old.jsonl", "--per_token",
        ]))
    )  # fmt: skip
    assert (cwd / "new.jsonl").read_text() == (cwd / "old.jsonl").read_text()


def test_convert_merge_plot_and_lora_run_by_their_new_names(tuned, monkeypatch, capsys):
    cwd, _ = tuned
    monkeypatch.chdir(cwd)
    assert run(monkeypatch, "convert", "--input_path", "out/checkpoint", "--output_path", "hf") == 0
    assert run(monkeypatch, "info", "--json", "hf") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["kind"], facts["family"]) == ("weights", "GPT-2")
    assert run(monkeypatch, "lora", "merge", "--src_ckpt_path_or_dir", "out/checkpoint", "--dst_ckpt_dir", "m") == 2
    assert "LoRA" in capsys.readouterr().err
    assert run(monkeypatch, "merge", "--src_ckpt_dir", "nope", "--dst_ckpt_dir", "m") == 2
    assert "nope" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, "plot", "out", "--output", "x.png") == 0
    assert (cwd / "x.png").read_bytes().startswith(b"\x89PNG")


def test_prepare_and_tokenizer_run_by_their_new_names(toy, here, monkeypatch):
    source = toy.valid.with_suffix(".txt")
    assert run(monkeypatch, "tokenizer", "--input_file", source, "--vocab_size", 280, "--output_dir", "t") == 0
    assert run(monkeypatch, "prepare", "split", "--input_file", source, "--output_dir", "parts") == 0
    words = ("--input_file", "parts/train.txt", "--output_file", "x.mindrecord", "--max_length", 17)
    assert run(monkeypatch, "prepare", "text", *words, "--tokenizer_type", "t") == 0
    assert run(monkeypatch, "prepare", "text", *words, "--tokenizer_type", "t") == 2  # it exists
    assert (here / "x.mindrecord").exists()
    joined = (here / "parts/train.txt").read_text() + (here / "parts/valid.txt").read_text()
    assert joined == source.read_text()


def test_launch_runs_two_processes(tuned, toy, program, tmp_path):
    """One start of real processes: that they join, and that the flag they need is added."""
    cwd, _ = tuned
    done = program(
        MINDGPT, "launch", "-n", 2, "--log_dir", tmp_path / "logs", "eval", "--config", toy.yaml, "--eval_dataset_dir",
        toy.valid, "--load_checkpoint", "out/checkpoint", "--output", tmp_path / "two", "--batch_size", 8, *QUICK,
        cwd=cwd, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes of mindgpt" in done.stdout
    assert "data parallel: 2 processes" in done.stdout
    assert json.loads((tmp_path / "two" / "eval_result.json").read_text())["tokens"] > 0
