"""Prediction and scoring as a user types them, against transformers on the same weights; and what is refused."""

import contextlib
import gzip
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback

import numpy as np
import pytest

from mindgpt.tasks.main import main
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

PROMPTS = ["the quick brown", "seven old ships sail", "new land a", "dog"]
NEW = 8


@pytest.fixture(scope="module")
def peer(trained, succeed, tmp_path_factory):
    """The trained toy as a model of transformers."""
    pytest.importorskip("torch", reason="the oracle is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    folder = tmp_path_factory.mktemp("peer")
    succeed(
        "mindgpt/models/gpt2/convert_weight.py", "--reversed", "--mindspore_path", trained.last_checkpoint,
        "--torch_path", folder / "hf", cwd=folder,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel.from_pretrained(folder / "hf").eval()


@pytest.fixture(scope="module")
def flags(toy, trained):
    weights = ["--load_checkpoint", trained.last_checkpoint, "--tokenizer", toy.tokenizer]
    return ["--config", toy.yaml, "--run_mode", "predict", *weights]


def by_transformers(peer, tokenizer, prompt, **settings):
    """The texts that transformers continues a prompt to."""
    import torch

    ids = torch.tensor([tokenizer.encode(prompt)])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    with torch.no_grad():
        rows = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, **ends, **settings)
    new = [[token for token in row[ids.shape[1] :].tolist() if token != tokenizer.eos_token_id] for row in rows]
    return [prompt + tokenizer.decode(row) for row in new]


def results(folder):
    return [json.loads(line) for line in (folder / "output" / "predictions.jsonl").read_text().splitlines()]


def test_texts_files_and_folders_of_prompts(flags, toy, peer, succeed, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.txt").write_text(f"{PROMPTS[0]}\n\n")
    (folder / "b.jsonl").write_text(json.dumps({"text": PROMPTS[1]}) + "\n" + json.dumps({"prompt": PROMPTS[2]}))
    (folder / "c.md").write_text("not this\n")
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(PROMPTS[3].encode()))
    console = succeed(
        "run_mindformer.py", *flags, "--predict_data", "prompts", "o*.gz", "while a lazy", "--predict_batch_size", 2,
        "--max_new_tokens", NEW, cwd=tmp_path,
    )  # fmt: skip
    tokenizer = GPT2Tokenizer.from_pretrained(toy.tokenizer)
    prompts = [*PROMPTS, "while a lazy"]
    expected = [by_transformers(peer, tokenizer, prompt)[0] for prompt in prompts]
    records = results(tmp_path)
    assert [record["prompt"] for record in records] == prompts
    assert [record["generated_text"] for record in records] == expected
    assert {record["finish_reason"] for record in records} == {"length"}
    assert {record["new_tokens"] for record in records} == {NEW}
    assert (tmp_path / "output" / "predictions.txt").read_text() == "".join(f"{text}\n\n" for text in expected)
    for prompt, text in zip(prompts, expected, strict=True):
        assert f"\n>>> {prompt}\n{text}\n" in console


def test_beams_and_stop_strings_through_the_yaml(flags, toy, peer, succeed, tmp_path):
    tokenizer = GPT2Tokenizer.from_pretrained(toy.tokenizer)
    settings = {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}
    expected = [by_transformers(peer, tokenizer, prompt, **settings) for prompt in PROMPTS]
    stop = expected[0][0][len(PROMPTS[0]) + 2 :][:3]
    yaml = tmp_path / "beams.yaml"
    more = "".join(f"    {key}: {value}\n" for key, value in settings.items())
    yaml.write_text(toy.yaml.read_text().replace("    seq_length:", f"{more}    seq_length:"))
    words = ["--config", yaml, *flags[2:], "--max_new_tokens", NEW, "--predict_data", *PROMPTS]
    succeed("run_mindformer.py", *words, cwd=tmp_path)
    records = results(tmp_path)
    assert [record["generated_text"] for record in records] == sum(expected, [])
    assert [record["sequence"] for record in records] == [0, 1] * 4
    greedy = by_transformers(peer, tokenizer, PROMPTS[1])[0][len(PROMPTS[1]) :]
    stop = greedy[3:6]
    words = [*flags, "--predict_data", PROMPTS[1], "--options", f"model.model_config.stop_strings=['{stop}']"]
    succeed("run_mindformer.py", *words, cwd=tmp_path)
    (record,) = results(tmp_path)
    assert record["generated_text"] == PROMPTS[1] + greedy[: greedy.index(stop)]
    assert record["finish_reason"] == "stop"


# ---- scripts/examples/gpt2/run_gpt2_predict.sh -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(repo):
    ours = ("MS_", "RANK_ID", "AKG_", "OMP_", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment["PYTHON"] = sys.executable

    def run(*arguments, cwd):
        command = ["bash", str(repo / "scripts/examples/gpt2/run_gpt2_predict.sh"), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)

    return run


def test_the_script_with_one_process_and_with_two(script, toy, trained, tmp_path):
    """From a folder with a space in its name; drawing, so that it shows if a text's seed depends on its process."""
    cwd = tmp_path / "my runs"
    cwd.mkdir()
    shutil.copytree(toy.tokenizer, cwd / "tokenizer")
    shutil.copy(toy.yaml, cwd / "toy.yaml")
    config = cwd / "toy.yaml"
    config.write_text(config.read_text().replace("    seq_length:", "    do_sample: True\n    seq_length:"))
    shutil.copy(trained.last_checkpoint, cwd / "toy.ckpt")
    single = script("single", "toy.yaml", "toy.ckpt", 1, "tokenizer", cwd=cwd)
    assert single.returncode == 0, single.stderr
    prompts = ["I love Beijing, because", "GPT2 is a", "Huawei is a company that"]
    assert [record["prompt"] for record in results(cwd)] == prompts
    alone = results(cwd)
    odd = [*prompts, 'it\'s "odd" $HOME', "two\nlines"]
    parallel = script("parallel", "toy.yaml", "toy.ckpt", 2, "tokenizer", *odd, cwd=cwd)
    assert parallel.returncode == 0, parallel.stdout + parallel.stderr
    assert results(cwd)[:3] == alone
    assert [record["prompt"] for record in results(cwd)] == odd


@pytest.mark.parametrize(
    ("network", "devices", "mode", "data_parallel", "model_parallel"),
    [
        ("13b", 8, "semi_auto_parallel", 1, 8),  # 40 heads
        ("small", 8, "data_parallel", 8, 1),  # 12
        ("small", 4, "semi_auto_parallel", 1, 4),
    ],
)
def test_the_script_on_ascend_cuts_what_can_be_cut(
    repo, tmp_path, network, devices, mode, data_parallel, model_parallel
):
    """A copy of it that takes a file that is everywhere for Ascend's driver, and a launcher that tells what it got."""
    copy = tmp_path / "scripts" / "examples" / "gpt2" / "run_gpt2_predict.sh"
    copy.parent.mkdir(parents=True)
    text = (repo / "scripts/examples/gpt2/run_gpt2_predict.sh").read_text()
    assert text.count("/dev/davinci_manager") == 1
    copy.write_text(text.replace("/dev/davinci_manager", "/dev/null"))
    (tmp_path / "scripts" / "msrun_launcher.sh").write_text('printf "%s" "$1"')
    (tmp_path / "mindgpt").symlink_to(repo / "mindgpt")
    config = repo / "configs" / "gpt2" / f"predict_gpt2_{network}_fp16.yaml"
    done = subprocess.run(
        ["bash", copy, "parallel", config, "x.ckpt", str(devices)],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layout = {f"parallel_config.data_parallel={data_parallel}", f"parallel_config.model_parallel={model_parallel}"}
    assert {f"parallel.parallel_mode={mode}", *layout} <= set(shlex.split(done.stdout))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "four arguments or more are needed, and there are 0"),
        (["single", "toy.yaml", "x.ckpt"], "four arguments or more are needed, and there are 3"),
        (["double", "toy.yaml", "x.ckpt", 1], "PARALLEL must be single or parallel, not 'double'"),
        (["single", "toy.yaml", "x.ckpt", 2], "single runs on 1 device, not on 2"),
        (["parallel", "toy.yaml", "x.ckpt", "two"], "DEVICE_NUM must be a whole number from 1, not 'two'"),
        (["single", "no.yaml", "x.ckpt", 1], "CONFIG: there is no file no.yaml"),
        (["single", "toy.yaml", "x.ckpt", 1, "lost"], "TOKENIZER: there is no folder lost"),
        (
            ["single", "toy.yaml", "x.ckpt", 1, "path/to/tokenizer.model"],
            "TOKENIZER: there is no SentencePiece model path/to/tokenizer.model. GPT-2's own tokenizer is not one: "
            "name the folder of its vocab.json and merges.txt, or of its tokenizer.json, such as path/to\n",
        ),
    ],
)
def test_wrong_arguments_of_the_script(script, toy, tmp_path, arguments, message):
    shutil.copy(toy.yaml, tmp_path / "toy.yaml")
    done = script(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert "usage: bash" in done.stderr


# ---- in this process, through the same `main` ------------------------------------------------------------------------


@pytest.fixture
def start(flags, tmp_path, monkeypatch):
    """Run the program here: its exit status, its standard output (an io.StringIO of the test's), its errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, console=None, flags=flags):
        monkeypatch.setattr(sys, "argv", [str(word) for word in ("run_mindformer.py", *flags, *arguments)])
        errors = io.StringIO()
        out = console or io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        return end.value.code, errors.getvalue()

    return run


def no_attention(self, x, mask, tokens, cache=None):
    raise ValueError("attention was reached")


@pytest.mark.usefixtures("cpu")
def test_few_files_lie_between_the_command_line_and_attention(flags, repo, tmp_path, monkeypatch):
    """Those on the stack when a prompt is read: of Python up to MindSpore, and of MindSpore's compiler after that."""
    from mindgpt.models import acceleration
    from mindgpt.models.gpt2.gpt2_modules import Attention

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(acceleration, "USE_KERNELS", False)
    monkeypatch.setattr(Attention, "construct", no_attention)
    monkeypatch.setattr(sys, "argv", ["run_mindformer.py", *map(str, flags), "--predict_data", PROMPTS[0]])
    with pytest.raises(ValueError, match="attention was reached") as error:
        runpy.run_path(str(repo / "run_mindformer.py"), run_name="__main__")
    files = [entry.filename for entry in traceback.extract_tb(error.value.__traceback__)]
    files += re.findall("In file ([^:]+):", str(error.value))
    own = [os.path.relpath(file, repo) for file in dict.fromkeys(files) if file.startswith(str(repo))]
    assert [file for file in own if not file.startswith("tests")] == [
        "run_mindformer.py",
        "mindgpt/tasks/main.py",
        "mindgpt/tasks/predict.py",
        "mindgpt/generation/text_generation.py",
        "mindgpt/generation/engine.py",
        "mindgpt/models/gpt2/gpt2.py",
        "mindgpt/models/gpt2/gpt2_modules.py",
    ]


class Terminal(io.StringIO):
    def __init__(self):
        super().__init__()
        self.writes = []

    def isatty(self):
        return True

    def write(self, text):
        self.writes.append(text)
        return super().write(text)


@pytest.mark.usefixtures("cpu")
def test_at_a_terminal_a_single_text_is_printed_as_it_comes(start, tmp_path):
    terminal = Terminal()
    status, errors = start("--predict_data", PROMPTS[0], "--max_new_tokens", NEW, console=terminal)
    assert (status, errors) == (0, "")
    (record,) = results(tmp_path)
    assert f"\n>>> {PROMPTS[0]}\n{record['generated_text']}\n" in terminal.getvalue()
    assert terminal.getvalue().count(record["generated_text"]) == 1
    begin = terminal.writes.index(PROMPTS[0]) + 1
    pieces = [text for text in terminal.writes[begin:] if text in record["generated_text"] and text]
    assert len(pieces) >= NEW - 2


def test_a_console_that_nobody_reads_and_that_knows_no_emoji(flags, repo, program, tmp_path):
    """The texts are in the files, whole, before the first is printed."""
    text = "the café 😀"
    done = program("run_mindformer.py", *flags, "--predict_data", text, "--max_new_tokens", 2, cwd=tmp_path,
                   env={"PYTHONIOENCODING": "ascii:strict"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n>>> the caf\\xe9 \\U0001f600\n" in done.stdout
    assert [record["prompt"] for record in results(tmp_path)] == [text]
    before = (tmp_path / "output" / "predictions.jsonl").read_bytes()
    (tmp_path / "output" / "predictions.jsonl").unlink()
    command = 'set -o pipefail; "$@" | true'
    words = [sys.executable, repo / "run_mindformer.py", *flags, "--predict_data", text, "--max_new_tokens", 2]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *map(str, words)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "output" / "predictions.jsonl").read_bytes() == before


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["needs prompts", "--predict_data"]),
        (["--predict_data", "lost.txt"], ["there is no file lost.txt"]),
        (["--predict_data", "bad.txt"], ["bad.txt:2", "not UTF-8", "0xff"]),
        (["--predict_data", "bad.jsonl"], ["bad.jsonl:1", "not valid JSON"]),
        (["--predict_data", "keys.jsonl"], ["keys.jsonl:2", "'prompt' and 'text'", "it has: 'txt'"]),
        (["--predict_data", "empty.jsonl"], ["empty.jsonl:1: an empty text is no prompt"]),
        (["--predict_data", "blank.txt"], ["blank.txt holds no prompt"]),
        (["--predict_data", "empty_folder"], ["empty_folder holds no .txt, .json, .jsonl, .ndjson or .parquet file"]),
        (["--predict_data", ""], ["an empty text is no prompt"]),
        (["--predict_data", "the " * 40], ["'the the", "tokens and fills the context length of 32"]),
        (["--predict_data", "long.txt"], ["long.txt:2 has", "fills the context length of 32"]),
        (["--predict_data", "half \udcff"], ["argument", "half \\udcff", "is not text in utf-8"]),
        (["--predict_data", "a", "--top_k", "0"], ["--top_k", "1 or more"]),
        (["--predict_data", "a", "--top_p", "1.5"], ["--top_p", "1.5"]),
        (["--predict_data", "a", "--temperature", "0"], ["--temperature", "above 0"]),
        (["--predict_data", "a", "--predict_batch_size", "0"], ["--predict_batch_size"]),
        (["--predict_data", "a", "--num_beam", "2"], ["unknown flag --num_beam"]),
        (["--predict_data", "a", "--output_dir", "long.txt"], ["output_dir:", "long.txt is a file, and no folder"]),
        (["--predict_data", "a", "--output_dir", "/proc/x/y"], ["output_dir: cannot write into the folder /proc"]),
        (["--predict_data", "a", "--options", "model.model_config.num_beems=2"], ["num_beems", "num_beams"]),
        (["--predict_data", "a", "--options", "model.model_config.num_return_sequences=2"], ["num_return_sequences"]),
        (["--predict_data", "a", "--tokenizer", "other"], ["has 301 tokens, the model's vocab_size is 300"]),
        (["--predict_data", "a", "--tokenizer", "lost"], ["No tokenizer at lost"]),
    ],
    ids=lambda value: value[-1][:20] if value else "no prompts",
)
def test_bad_input_ends_in_one_message_and_leaves_results_alone(start, toy, tmp_path, arguments, parts):
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff fine\n")
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "keys.jsonl").write_text('{"text": "a"}\n{"txt": "a"}\n')
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "long.txt").write_text("the\n" + "the " * 40 + "\n")
    (tmp_path / "empty_folder").mkdir()
    if "other" in arguments:
        GPT2Tokenizer.from_pretrained(toy.tokenizer, eos_token="<end>").save_pretrained("other")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "predictions.jsonl").write_text("of an earlier run")
    status, errors = start(*arguments)
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors
    written = [file.relative_to(tmp_path / "output").as_posix() for file in (tmp_path / "output").rglob("*.*")]
    assert written == ["predictions.jsonl"]
    assert (tmp_path / "output" / "predictions.jsonl").read_text() == "of an earlier run"


@pytest.mark.usefixtures("cpu")
def test_what_is_done_is_kept_and_told_while_the_rest_is_to_do(start, tmp_path, monkeypatch):
    """Interrupted in its second batch, a run has left the first; a whole run leaves the results alone."""
    monkeypatch.setattr("mindgpt.tasks.prompts.Progress.EVERY", 0.0)
    words = ["--predict_data", "and/or", *PROMPTS, "--max_new_tokens", NEW, "--predict_batch_size", 2, "--top_k", 5]
    partial = tmp_path / "output" / "predictions.jsonl.partial"
    console = io.StringIO()
    status, errors = start(*words, console=console)
    assert status == 0
    assert "2/5 prompts, " in errors
    assert " tokens/s, about " in errors
    assert "5/5" not in errors
    assert not partial.exists()
    assert "'and/or': it is taken for a text" in console.getvalue()
    assert "top_k has no effect: do_sample is False" in console.getvalue()
    whole = results(tmp_path)
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        keep(*arguments)

    from mindgpt.tasks import predict

    keep = predict._keep
    monkeypatch.setattr(predict, "_keep", interrupted)
    assert start(*words)[0] == 130
    kept = [json.loads(line) for line in partial.read_text().splitlines()]
    assert len(kept) == 2
    assert all(one == {"number": one["number"]} | whole[one["number"]] for one in kept)
    assert results(tmp_path) == whole


# ---- tools/score_text.py ---------------------------------------------------------------------------------------------


def test_scores_are_those_of_transformers(flags, toy, peer, succeed, tmp_path):
    import torch

    text = "the quick brown fox\n\nsail north to new land , over a lazy dog\n"
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress(text.encode()))
    weights = [word for word in flags if word not in ("--run_mode", "predict")]
    words = ["texts.txt.gz", "x", *weights, "--output", "scores.jsonl", "--per_token"]
    console = succeed("tools/score_text.py", *words, cwd=tmp_path)
    tokenizer = GPT2Tokenizer.from_pretrained(toy.tokenizer)
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    texts = ["the quick brown fox", "sail north to new land , over a lazy dog", "x"]
    assert [record["text"] for record in records] == texts
    total = tokens = 0
    for record in records:
        ids = torch.tensor([tokenizer.encode(record["text"])])
        with torch.no_grad():
            log_probs = peer(ids).logits[0].double().log_softmax(-1)
        expected = log_probs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].numpy()
        values = [token["log_probability"] for token in record["per_token"]]
        assert values[0] is None
        np.testing.assert_allclose(values[1:], expected, atol=1e-4)
        assert [token["id"] for token in record["per_token"]] == ids[0].tolist()
        assert record["tokens"] == len(expected)
        assert record["log_probability"] == pytest.approx(expected.sum(), abs=1e-3)
        if len(expected):
            assert record["perplexity"] == pytest.approx(np.exp(-expected.mean()), rel=1e-4)
            assert f"{record['log_probability']:12.4f} {len(expected):7} {record['perplexity']:12.4f}  " in console
        total, tokens = total + expected.sum(), tokens + len(expected)
    assert records[2]["perplexity"] is None
    (last,) = (line.split() for line in console.splitlines() if line.endswith("all 3 texts"))
    assert [float(word) for word in last[:3]] == pytest.approx([total, tokens, np.exp(-total / tokens)], rel=1e-4)


CLASSIFIER = ["trainer.type=TextClassificationTrainer", "model.arch.type=GPT2ForSequenceClassification"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--per_token", "a text"], "--per_token goes into a file"),
        (["the " * 60, "--output", "x.jsonl"], "has 61 tokens; 33 can be scored at once"),
        (["lost.txt", "--output", "x.jsonl"], "texts: there is no file lost.txt"),
        (["--options", "seed=3", "a text"], "no texts: name texts, files or folders, before --options"),
        (["a", "--options", "seed=3", "model.model_config.num_beems=4"], "did you mean 'num_beams'"),
        (["a", *(word for option in CLASSIFIER for word in ("--options", option))], "is no language model"),
    ],
)
def test_texts_that_cannot_be_scored(flags, program, tmp_path, arguments, part):
    weights = [word for word in flags if word not in ("--run_mode", "predict")]
    done = program("tools/score_text.py", *arguments, *weights, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.jsonl").exists()
