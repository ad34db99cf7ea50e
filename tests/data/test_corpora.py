"""The tools that read text corpora: kinds of files, and what is skipped."""

import json

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.dataset import build_dataset
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

TEXT = "tools/dataset_preprocess/text_to_mindrecord.py"
INSTRUCTIONS = "tools/dataset_preprocess/instruction_to_mindrecord.py"


@pytest.fixture
def run(run_tool, monkeypatch, tmp_path):
    """Run a tool's `main` in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return run_tool


def text_of(file, tokenizer):
    batches = build_dataset(file, batch_size=1, drop_remainder=False).create_tuple_iterator(
        num_epochs=1, output_numpy=True
    )
    return tokenizer.decode([token for ids, mask in batches for token in ids[mask == 1]])


EOT = "<|endoftext|>"


def to_mindrecord(run, tokenizer_dir, *arguments):
    output = ("--output_file", "x.mindrecord", "--max_length", 8, "--tokenizer_type", tokenizer_dir, "--overwrite")
    run(TEXT, "--input_file", *arguments, *output)


def test_a_json_corpus_is_not_read_as_plain_text(run, tokenizer, tokenizer_dir, tmp_path):
    texts = ["第一篇文章", "第二篇"]
    (tmp_path / "train.json").write_text(json.dumps(texts))
    to_mindrecord(run, tokenizer_dir, "train.json")
    assert text_of("x.mindrecord", tokenizer) == "".join(text + EOT for text in texts)
    (tmp_path / "train.json").rename(tmp_path / "train.txt")
    with pytest.raises(UserError, match="train.txt holds JSON, not plain text"):
        to_mindrecord(run, tokenizer_dir, "train.txt")
    to_mindrecord(run, tokenizer_dir, "train.txt", "--read_as", "json")
    assert text_of("x.mindrecord", tokenizer) == "".join(text + EOT for text in texts)
    to_mindrecord(run, tokenizer_dir, "train.txt", "--read_as", "text")
    assert text_of("x.mindrecord", tokenizer) == json.dumps(texts) + EOT
    with pytest.raises(UserError, match="train.txt holds JSON"):
        run("tools/train_tokenizer.py", "--input_file", "train.txt", "--vocab_size", 300, "--output_dir", "t")


def test_a_tokenizer_is_trained_on_the_texts_of_a_json_corpus(run, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"body": "早上好" * 20}] * 5 + [{"body": None}]))
    arguments = ("--input_file", "x.json", "--field", "body", "--vocab_size", 300, "--output_dir", "t")
    with pytest.raises(UserError, match="x.json:1: 'body' must be a string; it is a NoneType. --skip_bad leaves such"):
        run("tools/train_tokenizer.py", *arguments)
    run("tools/train_tokenizer.py", *arguments, "--skip_bad")
    tokens = GPT2Tokenizer.from_pretrained("t").get_vocab()
    assert not any("{" in token and len(token) > 1 or "body" in token for token in tokens)
    assert len(GPT2Tokenizer.from_pretrained("t").encode("早上好" * 20)) < 20


def test_bad_rows_of_a_corpus(run, tokenizer, tokenizer_dir, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "\\ud83d"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match="x.jsonl:2: 'text' must be a string; .* --skip_bad leaves such records out"):
        to_mindrecord(run, tokenizer_dir, "x.jsonl")
    to_mindrecord(run, tokenizer_dir, "x.jsonl", "--skip_bad")
    assert text_of("x.mindrecord", tokenizer) == f"a{EOT}b{EOT}"
    errors = capsys.readouterr().err
    assert errors.startswith("warning: 2 bad record(s) left out: x.jsonl:2: 'text' must be a string; it is a NoneType.")
    assert errors.count("\n") == 1


def test_hidden_notebook_copies_are_skipped(run, tokenizer, tokenizer_dir, tmp_path):
    for name in ("corp/a.txt", "corp/.ipynb_checkpoints/a-checkpoint.txt", "corp/.git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "corp" / "._a.txt").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(40))
    to_mindrecord(run, tokenizer_dir, "corp")
    assert text_of("x.mindrecord", tokenizer) == f"corp/a.txt{EOT}"
    to_mindrecord(run, tokenizer_dir, "corp/**/*.txt")
    assert text_of("x.mindrecord", tokenizer) == f"corp/a.txt{EOT}"


def test_instructions_with_empty_outputs_and_other_keys(run, tokenizer, tokenizer_dir, tmp_path, capsys):
    output = ("--output_file", "x.mindrecord", "--tokenizer_type", tokenizer_dir, "--max_length", 99, "--overwrite")
    records = [{"instruction": "Name a colour.", "input": "", "output": text} for text in ("", "red")]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(records))
    run(INSTRUCTIONS, "--input_file", "alpaca_data.json", *output)
    shown = capsys.readouterr()
    assert shown.out.startswith("1 example(s), ")
    assert shown.err == (
        "warning: 1 record(s) with an empty response left out: alpaca_data.json:1: 'output' is empty.\n"
    )
    (tmp_path / "x.csv").write_text("question,facts,answer,,\nwho,them,me,,\n")
    with pytest.raises(UserError, match="fit no format .*--prompt_key NAME --response_key NAME"):
        run(INSTRUCTIONS, "--input_file", "x.csv", *output)
    keys = ("--prompt_key", "question", "--response_key", "answer", "--input_key", "facts")
    run(INSTRUCTIONS, "--input_file", "x.csv", *keys, *output)
    assert text_of("x.mindrecord", tokenizer) == (
        f"### Instruction:\nwho\n\n### Input:\nthem\n\n### Response:\nme{EOT}"
    )
