"""The data tools, run as a user calls them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.mindrecord import find_mindrecord_files
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from tests import programs

WIKITEXT = "tools/dataset_preprocess/gpt2/wikitext2_data_process.py"
TEXT = "tools/dataset_preprocess/text_to_mindrecord.py"
TRAIN = "tools/train_tokenizer.py"


@pytest.fixture
def run(repo, tmp_path):
    """Run a tool from the checkout, not installed, in a folder of its own: (exit status, standard output, error)."""

    def run(tool, *arguments, cwd=tmp_path):
        done = programs.run([sys.executable, repo / tool, *arguments], cwd)
        return done.returncode, done.stdout, done.stderr

    return run


def rows_of(path):
    batches = build_dataset(path, batch_size=1, drop_remainder=False).create_tuple_iterator(
        num_epochs=1, output_numpy=True
    )
    return [(ids[0].tolist(), mask[0].tolist()) for ids, mask in batches]


def digest(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in os.listdir(folder)}


# ---- what they make ----


def test_wikitext_as_documented(run, shared_data, gpt2_tokenizer_dir, tmp_path):
    source = shared_data / "wikitext-2" / "wiki.valid.tokens"
    arguments = ["--input_file", source, "--output_file", "out/x.mindrecord", "--max_length", 1025]
    arguments += ["--tokenizer_type", gpt2_tokenizer_dir]
    status, output, errors = run(WIKITEXT, *arguments)
    assert (status, errors) == (0, "")
    rows = rows_of(tmp_path / "out")
    tokens = [token for ids, mask in rows for token, real in zip(ids, mask, strict=True) if real]
    padded = len(rows) * 1025 - len(tokens)
    assert f"60 document(s), {len(tokens)} tokens, {len(rows)} blocks, {padded} padded positions" in output
    assert all(len(ids) == len(mask) == 1025 for ids, mask in rows)
    articles = GPT2Tokenizer.from_pretrained(gpt2_tokenizer_dir).decode(tokens).split("<|endoftext|>")
    assert len(articles) == 61
    assert articles[-1] == ""
    assert articles[0].startswith("= Homarus gammarus =\n\nHomarus gammarus, known as the European lobster or common")
    assert "== Description ==" in articles[0]

    before = digest(tmp_path / "out")
    status, output, errors = run(WIKITEXT, *arguments)
    assert (status, output) == (2, "")
    assert errors == "error: out/x.mindrecord exists already. Use --overwrite to replace it, or another name.\n"
    assert digest(tmp_path / "out") == before


def test_wikitext_as_in_mindformers(run, shared_data, gpt2_tokenizer_dir, tmp_path):
    from tests.data.test_text import slow_mindformers_text

    transformers = pytest.importorskip("transformers")
    source = shared_data / "wikitext-2" / "wiki.valid.tokens"
    status, output, _ = run(
        WIKITEXT, "--input_file", source, "--output_file", "x.mindrecord", "--max_length", 1024,
        "--tokenizer_type", gpt2_tokenizer_dir, "--compat", "mindformers",
        "--data_columns", "input_ids", "attention_mask", "labels", "--num_splits", 1,
    )  # fmt: skip
    assert status == 0
    ids = transformers.GPT2Tokenizer.from_pretrained(str(gpt2_tokenizer_dir)).encode(
        slow_mindformers_text(source.read_text("utf-8"))
    )
    blocks = [ids[start : start + 1024] for start in range(0, len(ids) - 1023, 1024)]
    assert rows_of(tmp_path / "x.mindrecord") == [(block, [1] * 1024) for block in blocks]
    assert f"{len(blocks)} blocks, 0 padded positions, {len(ids) % 1024} tokens of the tail dropped" in output
    dataset = build_dataset(tmp_path / "x.mindrecord", batch_size=len(blocks), columns=["labels"])
    assert [batch.tolist() for (batch,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)] == [blocks]


def test_text_of_all_kinds_in_splits(run, tokenizer, tokenizer_dir, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text(json.dumps({"body": "quick\nfox"}) + "\n\n" + json.dumps({"body": "é\0🎉"}) + "\n")
    (corpus / "b.txt").write_text("the end\n\nof the town\n")
    (corpus / "blank.txt").write_text("")
    arguments = ["--input_file", "corpus", "--output_file", "out/c.mindrecord", "--tokenizer_type", tokenizer_dir]
    arguments += ["--max_length", 6, "--field", "body", "--num_splits", 2, "--num_workers", 1]
    status, output, errors = run(TEXT, *arguments)
    assert (status, errors) == (0, "")
    assert output.startswith("3 document(s) (1 blank ones left out), ")
    assert output.endswith("s -> out/c.0.mindrecord, out/c.1.mindrecord\n")
    first, second = (rows_of(tmp_path / "out" / f"c.{number}.mindrecord") for number in range(2))
    rows = [row for pair in zip(first, [*second, None], strict=False) for row in pair if row]
    tokens = [token for ids, mask in rows for token, real in zip(ids, mask, strict=True) if real]
    eot = "<|endoftext|>"
    assert tokenizer.decode(tokens) == f"quick\nfox{eot}é\0🎉{eot}the end\n\nof the town\n{eot}"
    assert inspect(tmp_path / "out").metadata["vocab_sha256"] == tokenizer.vocab_hash()

    status, output, errors = run(TEXT, *arguments[:-4], "--overwrite", "--document_per", "line")
    assert (status, errors) == (0, "")
    assert output.startswith("4 document(s) (1 blank ones left out), ")
    assert sorted(os.listdir(tmp_path / "out")) == ["c.mindrecord", "c.mindrecord.db"]


def test_a_trained_tokenizer_is_used_by_the_tools(run, tmp_path):
    (tmp_path / "x.txt").write_text("the quick brown fox and the lazy dog\n" * 30)
    arguments = ["--input_file", "x.txt", "--vocab_size", 300, "--output_dir", "new/tok"]
    status, output, errors = run(TRAIN, *arguments)
    assert (status, errors) == (0, "")
    tokenizer = GPT2Tokenizer.from_pretrained(tmp_path / "new" / "tok")
    assert f"{len(tokenizer)} tokens" in output
    assert tokenizer.decode(tokenizer.encode("a lazy fox ☃")) == "a lazy fox ☃"
    assert len(tokenizer.encode("the quick brown fox")) < 10
    status, output, errors = run(TRAIN, *arguments)
    assert (status, output) == (2, "")
    assert "holds a tokenizer already" in errors
    status, output, _ = run(TRAIN, *arguments[:3], 5000, *arguments[4:], "--overwrite")
    assert status == 0
    assert "5000 were asked for; no more pairs occur 2 times" in output
    status, output, _ = run(
        TEXT, "--input_file", "x.txt", "--output_file", "x.mindrecord", "--tokenizer_type", "new/tok", "--max_length", 9
    )
    assert status == 0
    assert inspect(tmp_path / "x.mindrecord").metadata["block_length"] == 9


# ---- what they refuse ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--input_file": "none.txt"}, "No such file: none.txt"),
        ({"--input_file": "."}, "is a folder"),
        (
            {"--input_file": "list.json"},
            "list.json holds json, not the plain text of WikiText; tools/",
        ),
        ({"--input_file": "empty.txt"}, "no document with any text"),
        ({"--input_file": "latin.txt"}, "latin.txt:2: not UTF-8: byte 0xfc at offset 5"),
        ({"--max_length": "1"}, "max_length must be at least 2"),
        ({"--tokenizer_type": "none"}, "No tokenizer at none"),
        (
            {"--tokenizer_type": "."},
            "No tokenizer in .: found empty.txt, good.txt, latin.txt, list.json. Give a folder with",
        ),
        ({"--output_file": "x.txt"}, "ends in 'mindrecord'"),
        ({"--output_file": "good.txt/x.mindrecord"}, "a file of that name is in the way"),
        ({"--num_splits": "0"}, "num_splits must be at least 1"),
        ({"--num_workers": "0"}, "num_workers must be at least 1"),
        ({"--data_columns": "input_idz"}, "data_columns may be input_ids, attention_mask, labels; got input_idz"),
    ],
)
def test_wikitext_errors_are_one_sentence(run, tokenizer_dir, tmp_path, arguments, message):
    (tmp_path / "good.txt").write_text(" = A = \n \n some text \n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"fine\n\xfc\n")
    (tmp_path / "list.json").write_text('["a text"]')
    before = sorted(os.listdir(tmp_path))
    good = {"--input_file": "good.txt", "--output_file": "x.mindrecord", "--tokenizer_type": tokenizer_dir}
    flat = [part for pair in {**good, **arguments}.items() for part in pair]
    status, output, errors = run(WIKITEXT, *flat)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ('{"text": "a"}\n{"text": \n', [], "x.jsonl:2: not valid JSON"),
        ('{"text": "a"}\n{"body": "b"}\n', [], "x.jsonl:2: no key 'text'"),
        ('{"text": "a"}\n', ["--field", "body"], "x.jsonl:1: no key 'body'"),
        ("", [], "no document with any text"),
    ],
)
def test_broken_json_lines_are_one_sentence(run, tokenizer_dir, tmp_path, content, arguments, message):
    (tmp_path / "x.jsonl").write_text(content)
    flat = ["--input_file", "x.jsonl", "--output_file", "x.mindrecord", "--tokenizer_type", tokenizer_dir, *arguments]
    status, output, errors = run(TEXT, *flat)
    assert (status, output) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_wrong_vocabulary_size_is_one_sentence(run, tmp_path):
    (tmp_path / "x.txt").write_text("text")
    status, output, errors = run(TRAIN, "--input_file", "x.txt", "--vocab_size", 100, "--output_dir", "t")
    assert (status, output, os.listdir(tmp_path)) == (2, "", ["x.txt"])
    assert errors == "error: vocab_size must be at least 257 (256 bytes and <|endoftext|>); it is 100.\n"


# ---- kill -9 ----


def test_a_killed_tool_leaves_the_old_file(run, repo, tokenizer_dir, tmp_path):
    (tmp_path / "x.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200_000)
    (tmp_path / "small.txt").write_text("the end and the beginning of the town\n" * 10)
    arguments = ["--output_file", "out/x.mindrecord", "--max_length", "64", "--tokenizer_type", str(tokenizer_dir)]
    assert run(TEXT, "--input_file", "small.txt", *arguments)[0] == 0
    old = rows_of(tmp_path / "out")
    command = [sys.executable, str(repo / TEXT), "--input_file", "x.txt", *arguments, "--overwrite"]
    tool = subprocess.Popen(command, cwd=tmp_path)
    while not list((tmp_path / "out").glob(".*/x.mindrecord")) and tool.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)  # in the middle of writing
    tool.kill()
    assert tool.wait() == -signal.SIGKILL
    assert [os.path.basename(file) for file in find_mindrecord_files(tmp_path / "out")] == ["x.mindrecord"]
    assert rows_of(tmp_path / "out") == old
    assert run(TEXT, "--input_file", "small.txt", *arguments, "--overwrite")[0] == 0
    assert rows_of(tmp_path / "out") == old
    assert sorted(os.listdir(tmp_path / "out")) == ["x.mindrecord", "x.mindrecord.db"]
