"""Runs without a YAML file: what is chosen, the rows that are made and kept, what is refused."""

import json
import os
import re

import numpy as np
import pytest
from mindspore.mindrecord import FileReader

from mindgpt import GPT2Config
from mindgpt.cli import text_to_mindrecord
from mindgpt.cli.run_modes import command_from
from mindgpt.config.loader import load_config
from mindgpt.config.shipped import model_files
from mindgpt.data.cached_rows import TRAIN, VALID, TextSource, cached_rows, part_of
from mindgpt.data.text import Piece
from mindgpt.tokenizers.loading import load_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def tokens_of(file):
    """The tokens of a MindRecord file in order, without padding."""
    reader = FileReader(str(file))
    rows = list(reader.get_next())
    reader.close()
    return np.concatenate([row["input_ids"][row["attention_mask"] == 1] for row in rows]).tolist()


def folder_of(config):
    return config.train_dataset.data_loader.dataset_dir


# ---- what is chosen --------------------------------------------------------------------------------------------------


def test_finetune_has_the_weights_network_and_data(small, capsys):
    command = command_from("finetune", ["--model", str(small.model), "--data", str(small.text), "--output", "out"])
    config, network = command.config, GPT2Config.from_pretrained(small.model)
    assert (config.run_mode, config.output_dir) == ("finetune", "out")
    assert config.load_checkpoint == str(small.model)
    for name in ("num_layers", "hidden_size", "num_heads", "vocab_size", "hidden_dropout_rate", "eos_token_id"):
        assert getattr(config.model.config, name) == getattr(network, name)
    assert config.processor.tokenizer.path == str(small.model)
    assert config.do_eval
    assert (config.lr_schedule.learning_rate, config.runner_config.epochs) == (5e-5, 3)
    printed = capsys.readouterr().out
    rows = int(re.search(r"([\d,]+) rows of 65 tokens to train on", printed)[1].replace(",", ""))
    assert rows == -(-len(tokens_of(folder_of(config))) // 65)
    assert f"batch_size {config.runner_config.batch_size}" in printed
    assert "out/finetune_config.yaml" in printed


def test_flags_and_set_override_what_is_chosen(small):
    words = ["--model", str(small.model), "--data", str(small.text), "--learning_rate", "0.003", "--epochs", "7"]
    words += ["--batch_size", "2", "--seq_length", "16", "--eval_data", "none", "--set", "optimizer.weight_decay=0.5"]
    config = command_from("finetune", [*words, "--set", "seed=9", "--lora", "--lora_rank", "4"]).config
    assert (config.lr_schedule.learning_rate, config.runner_config.epochs, config.runner_config.batch_size) == (
        0.003, 7, 2,
    )  # fmt: skip
    assert (config.model.config.seq_length, config.do_eval) == (16, False)
    assert (config.optimizer.weight_decay, config.seed) == (0.5, 9)
    assert (config.model.config.pet_config.lora_rank, config.model.config.pet_config.lora_alpha) == (4, 8.0)


@pytest.mark.parametrize("name", ["gpt2_small", "gpt2", "gpt3_base", "gpt2_chinese_distil", "gpt2_ml_base"])
def test_a_size_starts_from_random_weights(small, name):
    words = ["--model", name, "--tokenizer", str(small.tokenizer), "--data", str(small.text)]
    config = command_from("train", words).config
    shipped, _ = load_config(model_files()[name], {"use_parallel": False})
    assert config.load_checkpoint == ""
    for key in ("num_layers", "hidden_size", "num_heads", "hidden_act", "variant", "layer_norm"):
        assert getattr(config.model.config, key) == getattr(shipped.model.config, key)
    assert config.model.config.vocab_size == len(load_tokenizer(small.tokenizer))
    assert config.lr_schedule.learning_rate == 6e-4


def test_every_shipped_size_has_a_name():
    assert {"gpt2_xl", "gpt2_quickstart", "gpt2_chinese_large", "gpt2_chinese_base_seq128", "gpt3_175b"} <= set(
        model_files()
    )
    assert model_files()["gpt2_chinese_base"].name == "pretrain_gpt2_chinese_base_seq1024_fp16.yaml"


def test_predict_takes_prompts_between_flags(small):
    command = command_from(
        "predict", ["--model", str(small.model), "the quick", "--top_k", "5", "a dog", "--do_sample", "True"]
    )
    assert command.predict_data == ["the quick", "a dog"]
    assert (command.config.model.config.top_k, command.config.model.config.max_new_tokens) == (5, 64)


def test_predict_by_a_yaml_file(small, repo):
    words = ["--config", str(repo / "configs/gpt2/predict_gpt2_small_fp16.yaml"), "--tokenizer", str(small.tokenizer)]
    command = command_from("predict", [*words, "--load_checkpoint", "x.ckpt", "the quick"])
    assert command.config.processor.tokenizer.path == str(small.tokenizer)
    assert (command.config.load_checkpoint, command.predict_data) == ("x.ckpt", ["the quick"])


def test_mindrecord_gives_the_length(small, tmp_path):
    words = ["--input_file", str(small.text), "--max_length", "41", "--tokenizer_type", str(small.tokenizer)]
    text_to_mindrecord.main([*words, "--output_file", "x.mindrecord"])
    config = command_from(
        "finetune", ["--model", str(small.model), "--data", "x.mindrecord", "--eval_data", "none"]
    ).config
    assert (config.model.config.seq_length, folder_of(config)) == (40, "x.mindrecord")


def test_a_yaml_file_and_texts(small, repo):
    words = ["--config", str(repo / "configs/gpt2/pretrain_gpt2_quickstart.yaml"), "--data", str(small.text)]
    config = command_from("train", [*words, "--tokenizer", str(small.tokenizer)]).config
    assert config.model.config.seq_length == 128
    assert len(tokens_of(folder_of(config))) == len(tokens_in_full(small))
    assert not config.do_eval
    words = [*words[:2], "--data", folder_of(config)]  # MindRecord, which needs no tokenizer
    assert folder_of(command_from("train", words).config) == folder_of(config)


def test_a_size_changed_by_set_keeps_its_ratios(small):
    words = ["--model", "gpt2_small", "--tokenizer", str(small.tokenizer), "--data", str(small.text)]
    config = command_from("train", [*words, "--set", "model.model_config.hidden_size=48"]).config.model.config
    assert (config.hidden_size, config.ffn_hidden_size) == (48, 192)


def tokens_in_full(small):
    tokenizer = load_tokenizer(small.tokenizer)
    return [*tokenizer.encode(small.text.read_text()), tokenizer.eos_token_id]


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_rows_of_an_evaluation_are_those_of_the_tool(small):
    words = ["--input_file", str(small.text), "--max_length", "64", "--tokenizer_type", str(small.tokenizer)]
    text_to_mindrecord.main([*words, "--output_file", "x.mindrecord"])
    config = command_from("eval", ["--model", str(small.model), "--data", str(small.text)]).config
    assert config.model.config.seq_length == 64
    assert tokens_of(config.eval_dataset.data_loader.dataset_dir) == tokens_of("x.mindrecord")


def test_training_and_validation_rows_are_the_whole_text(small):
    made = cached_rows(TextSource.of([small.text]), small.tokenizer, {TRAIN: 33, VALID: 32}, 0.1)
    tokenizer = load_tokenizer(small.tokenizer)
    train, valid = (tokenizer.decode(tokens_of(made.files[part])[:-1]) for part in (TRAIN, VALID))
    assert train + valid == small.text.read_text()
    assert train.endswith("\n")
    assert 0.05 < len(valid) / len(train + valid) <= 0.1


def test_the_second_time_they_come_from_the_cache(small, capsys, cache):
    words = ["--model", str(small.model), "--data", str(small.text)]
    first = command_from("finetune", words).config
    assert "(made, and kept in " in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.mindrecord")}
    second = command_from("finetune", words).config
    assert "(from the cache, " in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.mindrecord")} == before
    assert first == second


def test_other_text_tokenizer_length_or_reading_makes_other_rows(small, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(small.text.read_text())
    lengths = {VALID: 32}

    def made(source=None, tokenizer=small.tokenizer, lengths=lengths):
        return cached_rows(source or TextSource.of([copy]), tokenizer, lengths)

    first = made()
    assert not made().made
    assert made(lengths={VALID: 31}).made
    assert made(source=TextSource.of([copy], document_per="line")).made
    os.utime(copy, ns=(1, 1))
    assert made().made
    copy.write_text("another text\n" * 50)
    assert made().rows != first.rows
    from mindgpt import GPT2Tokenizer

    GPT2Tokenizer.train([small.text.read_text()], 280).save_pretrained(tmp_path / "other")
    assert made(tokenizer=tmp_path / "other").made


def test_rows_that_are_damaged_are_made_again(small):
    source, lengths = TextSource.of([small.text]), {VALID: 32}
    first = cached_rows(source, small.tokenizer, lengths)
    first.files[VALID].write_bytes(first.files[VALID].read_bytes()[:5000])
    again = cached_rows(source, small.tokenizer, lengths)
    assert again.made
    assert again.rows == first.rows


def test_a_failure_leaves_nothing_in_the_cache(small, tmp_path, cache, complaint):
    (tmp_path / "bad.jsonl").write_text('{"text": "a text"}\n{"no": 1}\n')
    message = complaint(cached_rows, TextSource.of(["bad.jsonl"]), small.tokenizer, {VALID: 32})
    assert "bad.jsonl:2" in message
    assert [file for file in cache.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("documents", "train", "valid"),
    [
        (["a" * 10] * 10, ["a" * 10] * 9, ["a" * 10]),
        (["line\n" * 20], ["line\n" * 18], ["line\n" * 2]),
        (["word " * 20], ["word " * 18], ["word " * 2]),
        (["x" * 100], ["x" * 90], ["x" * 10]),
        (["a" * 95, "b" * 5], ["a" * 95], ["b" * 5]),  # a document ends nearby
        (["  ", "a" * 50, "", "b" * 50], None, None),
    ],
)
def test_where_a_text_is_split(documents, train, valid):
    def parts(part):
        pieces = iter([Piece(document, True) for document in documents])
        return list(part_of(pieces, sum(len(one) for one in documents if one.strip()), 0.1, part))

    found = {part: [piece.text for piece in parts(part)] for part in (TRAIN, VALID)}
    assert all(piece.ends_document for part in (TRAIN, VALID) for piece in parts(part))
    assert "".join(found[TRAIN] + found[VALID]) == "".join(documents)
    if train is not None:
        assert (found[TRAIN], found[VALID]) == (train, valid)


def test_documents_of_json_lines_stay_whole(small, tmp_path):
    documents = [f"the text number {number} of many" for number in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    made = cached_rows(TextSource.of(["x.jsonl"]), small.tokenizer, {TRAIN: 33, VALID: 32}, 0.1)
    tokenizer = load_tokenizer(small.tokenizer)
    found = [tokenizer.decode(tokens_of(made.files[part])).split("<|endoftext|>")[:-1] for part in (TRAIN, VALID)]
    assert found[0] + found[1] == documents
    assert found[1]


# ---- what is refused -------------------------------------------------------------------------------------------------

MODEL, TEXT = "{model}", "{text}"


@pytest.mark.parametrize(
    ("mode", "words", "expected"),
    [
        ("finetune", [], "name a model with --model, or a YAML file with --config"),
        ("finetune", ["--model", MODEL], "finetune needs --data FILE"),
        ("finetune", ["--model", "nope/", "--data", TEXT], "there is no file or folder nope"),
        ("finetune", ["--model", "gpt2_smal", "--data", TEXT], "did you mean 'gpt2_small'?"),
        ("finetune", ["--model", "gpt2_small", "--data", TEXT, "--tokenizer", "{tokenizer}"], "without weights"),
        ("predict", ["--model", "gpt2_small", "--tokenizer", "{tokenizer}", "x"], "has no weights"),
        ("train", ["--model", "gpt2_small", "--data", TEXT], "no tokenizer: name its folder with --tokenizer DIR"),
        ("finetune", ["--model", MODEL, "--data", "nope.txt"], "nope.txt"),
        ("finetune", ["--model", MODEL, "--data", "empty.txt"], "empty.txt: holds no text"),
        ("finetune", ["--model", MODEL, "--data", "fifo"], "fifo is no regular file"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--tokenizer", "nope"], "No tokenizer at nope"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--lora_rank", "2"], "--lora_rank is for --lora"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--seq_length", "0"], "must be a whole number from 1"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--load_checkpoint", "x"], "name it with --model"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--learning_rat", "1"], "did you mean '--learning_rate'?"),
        ("finetune", ["--model", MODEL, "--data", TEXT, "--run_mode", "eval"], "this is `mindgpt finetune`"),
        (
            "finetune",
            ["--model", MODEL, "--config", "x.yaml"],
            "with --config, name the weights with --load_checkpoint",
        ),
        ("predict", ["--model", MODEL, "x", "--epochs", "2"], "--epochs has no effect with run_mode predict"),
        ("eval", ["--model", MODEL, "--data", "x.mindrecord", "b.txt"], "name one file, or a folder of them"),
    ],
)
def test_what_is_refused(small, complaint, tmp_path, mode, words, expected):
    (tmp_path / "empty.txt").write_text(" \n")
    os.mkfifo(tmp_path / "fifo")
    paths = {"model": small.model, "text": small.text, "tokenizer": small.tokenizer}
    assert expected in complaint(command_from, mode, [word.format(**paths) for word in words])


@pytest.mark.parametrize("flag", ["--set", "--options"])
def test_a_misspelt_key_is_named_once(small, complaint, flag):
    words = ["--model", str(small.model), "--data", str(small.text), flag, "runner_config.epoch=2"]
    assert complaint(command_from, "finetune", words) == (
        f"command line: {flag} runner_config.epoch: unknown key; did you mean 'epochs'?"
    )
