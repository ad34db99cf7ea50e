"""The data tools with a WordPiece tokenizer: rows begin with [CLS] and end with [SEP]; unknown texts are refused."""

import json
import logging

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.buckets import read_rows
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.loading import load_tokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens, refuse_unknown
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer

INSTRUCTIONS = "tools/dataset_preprocess/instruction_to_mindrecord.py"
LABELLED = "tools/dataset_preprocess/gpt2/txtcls_dataset_to_mindrecord.py"
TEXT = "tools/dataset_preprocess/text_to_mindrecord.py"
TRAIN = "tools/train_tokenizer.py"
# [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"今天气好坏吗很，。", "good", "film", "##s"]


@pytest.fixture
def run(run_tool, monkeypatch, tmp_path):
    """Run a tool's `main` in this process and in a folder of its own, in which `tok` is a WordPiece tokenizer."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "vocab.txt").write_text("\n".join(TOKENS), "utf-8")
    monkeypatch.chdir(tmp_path)
    return run_tool


def ids_of(text):
    return [TOKENS.index(token) for token in text.split()]


def test_an_instruction_begins_with_cls_and_its_response_ends_with_sep(run, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "今天好吗", "response": "很好。"}), "utf-8")
    arguments = ["--input_file", "x.jsonl", "--output_file", "x.mindrecord", "--tokenizer_type", "tok"]
    run(INSTRUCTIONS, *arguments, "--format", "prompt_response", "--max_length", 12)
    assert capsys.readouterr().out.startswith("tokenizer: tok (WordPiece, 16 tokens, lower case)\n1 example(s), ")
    columns = ["input_ids", "attention_mask", "labels"]
    data = build_dataset(tmp_path / "x.mindrecord", batch_size=1, columns=columns, drop_remainder=False)
    ((ids, mask, labels),) = data.create_tuple_iterator(num_epochs=1, output_numpy=True)
    prompt, response = ids_of("[CLS] 今 天 好 吗"), ids_of("很 好 。 [SEP]")
    assert ids[0][:9].tolist() == prompt + response
    assert mask[0].tolist() == [1] * 9 + [0] * 3
    assert labels[0].tolist() == [-100] * 5 + response + [-100] * 3
    assert inspect(tmp_path / "x.mindrecord").metadata["vocab_sha256"] == load_tokenizer(tmp_path / "tok").vocab_hash()


def test_a_labelled_text_stands_between_cls_and_sep(run, tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n今天很好\t1\ngood films\t1\n坏\t0\n", "utf-8")
    arguments = ["--dataset_name", "sst_2", "--input_file", "train.tsv", "--output_file", "x.mindrecord"]
    run(LABELLED, *arguments, "--tokenizer_type", "tok", "--max_length", 5)
    rows = read_rows(inspect(tmp_path / "x.mindrecord"))
    texts = [rows.ids[a:b].tolist() for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)]
    # The first is truncated to 5 tokens, [SEP] among them.
    expected = ["[CLS] 今 天 很 [SEP]", "[CLS] good film ##s [SEP]", "[CLS] 坏 [SEP]"]
    assert texts == list(map(ids_of, expected))
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n好\t1\n\u200b\t0\n", "utf-8")
    with pytest.raises(UserError, match="train.tsv:3: the tokenizer makes no token of this text"):
        run(LABELLED, *arguments, "--tokenizer_type", "tok", "--overwrite")


UNKNOWN = r"knows nothing of the text: all 4 tokens are \[UNK\], such as 'приветм'"
HALF_WIDTH = "has no full-width punctuation, such as ， and 。 in the text '今天，好'"


@pytest.mark.parametrize(("text", "message"), [("привет мир", UNKNOWN), ("今天，好", HALF_WIDTH)])
@pytest.mark.parametrize("tool", [INSTRUCTIONS, LABELLED])
def test_texts_that_the_vocabulary_does_not_know_are_refused(run, tmp_path, tool, text, message):
    half_width = [token for token in TOKENS if token not in "，。"]
    (tmp_path / "tok" / "vocab.txt").write_text("\n".join(half_width), "utf-8")
    if tool == INSTRUCTIONS:
        (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": text, "response": text}), "utf-8")
        arguments = ["--input_file", "in.jsonl", "--format", "prompt_response"]
    else:
        (tmp_path / "in.tsv").write_text(f"sentence\tlabel\n{text}\t1\n{text}\t0\n", "utf-8")
        arguments = ["--input_file", "in.tsv", "--dataset_name", "sst_2"]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(tool, *arguments, "--output_file", "x.mindrecord", "--tokenizer_type", "tok")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corpus_in_gbk_is_refused_with_the_way_out(run, tmp_path):
    (tmp_path / "x.txt").write_bytes("今天天气很好\n".encode("gbk"))
    for tool, *arguments in (
        (TRAIN, "--kind", "wordpiece", "--vocab_size", 40, "--output_dir", "new"),
        (TEXT, "--tokenizer_type", "tok", "--output_file", "x.mindrecord"),
    ):
        with pytest.raises(UserError, match=r"x.txt:1: not UTF-8: .*iconv -f GB18030 -t UTF-8"):
            run(tool, "--input_file", "x.txt", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tok", "x.txt"]


def test_a_file_of_many_lines_as_one_document_is_reported(run, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("今天 好\n" * 99, "utf-8")
    arguments = ["--output_file", "x.mindrecord", "--tokenizer_type", "tok", "--max_length", 40, "--overwrite"]
    run(TEXT, "--input_file", "x.txt", *arguments)
    assert "note:" not in capsys.readouterr().err
    (tmp_path / "x.txt").write_text("今天 好\n" * 100, "utf-8")
    run(TEXT, "--input_file", "x.txt", *arguments)
    out, err = capsys.readouterr()
    assert "note: x.txt is one document, with one [CLS] at its beginning." in err and "--document_per line" in err
    assert "1 document(s), 302 tokens" in out
    for per, documents in (("line", 100), ("file", 1)):
        run(TEXT, "--input_file", "x.txt", *arguments, "--document_per", per)
        out, err = capsys.readouterr()
        assert f"{documents} document(s), " in out and "note:" not in err


def test_many_unknown_tokens_are_reported(run, tmp_path, caplog):
    tokenizer = load_tokenizer(tmp_path / "tok")
    count = UnknownTokens(tokenizer)
    texts = ["今天很好" * 4, "𠮷天", "мир"]
    count.add(texts, tokenizer.encode_batch(texts))
    assert (count.known, count.unknown, count.only_unknown) == (17, 2, 1)
    with caplog.at_level(logging.WARNING):
        count.check()
    assert "note: 11 % of the tokens are [UNK], such as '𠮷мир'" in caplog.text
    few = UnknownTokens(tokenizer)
    few.add(["今天" * 40, "𠮷"], tokenizer.encode_batch(["今天" * 40, "𠮷"]))
    few.check()
    assert "note: all tokens of 1 text(s) are [UNK], such as '𠮷'" in caplog.text
    with pytest.raises(UserError, match=r"a prompt: the vocabulary knows nothing of this text: all of its tokens are"):
        refuse_unknown(tokenizer, "𠮷 мир", tokenizer.encode("𠮷 мир"), "a prompt")
    refuse_unknown(tokenizer, "𠮷天", tokenizer.encode("𠮷天"), "a prompt")


def test_a_full_width_comma_is_no_error_for_a_vocabulary_without_chinese(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ngood\n##s\nfilm\n,", "utf-8")
    tokenizer = load_tokenizer(tmp_path)
    count = UnknownTokens(tokenizer)
    count.add(["good films， good"], tokenizer.encode_batch(["good films， good"]))
    assert (count.known, count.unknown) == (4, 1)


def test_byte_level_bpe_knows_every_text(tokenizer):
    count = UnknownTokens(tokenizer)
    count.add(["𠮷，。"], tokenizer.encode_batch(["𠮷，。"]))
    assert (count.unknown, count.share) == (0, 0.0)
    count.check()


def test_what_is_not_read_is_named_once(run, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.txt").write_text("今天天气很好", "utf-8")
    (tmp_path / "in" / "y.html").write_text("<html>", "utf-8")
    with caplog.at_level(logging.WARNING):
        run(TRAIN, "--kind", "wordpiece", "--input_file", "in", "--vocab_size", 40, "--output_dir", "new")
    assert caplog.text.count("1 file(s) with other suffixes (.html) are not read") == 1  # the text is read twice


def test_a_vocabulary_is_learned_and_used(run, tmp_path, capsys):
    texts = [
        json.dumps({"text": text}, ensure_ascii=False) for text in ("今天天气很好", "Good films, good", "很好 good")
    ]
    (tmp_path / "x.jsonl").write_text("\n".join([*texts, "{broken"]), "utf-8")
    arguments = ["--kind", "wordpiece", "--input_file", "x.jsonl", "--vocab_size", 40, "--output_dir", "new"]
    run(TRAIN, *arguments, "--skip_bad")
    out, err = capsys.readouterr()
    assert out.endswith("tokens (40 were asked for; no more pairs occur 2 times) -> new\n")
    assert err.count("1 bad record(s) left out") == 1  # the text is read twice
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer_config.json", "vocab.txt"]
    tokenizer = load_tokenizer(tmp_path / "new")
    assert type(tokenizer) is WordPieceTokenizer
    assert tokenizer.tokenize("GOOD 今天") == ["good", "今", "天"]
    with pytest.raises(UserError, match=r"new holds a tokenizer already \(vocab.txt\)"):
        run(TRAIN, *arguments, "--skip_bad")
    run(TRAIN, *arguments, "--skip_bad", "--overwrite", "--keep_case")
    assert load_tokenizer(tmp_path / "new").do_lower_case is False
    (tmp_path / "new" / "tokenizer.model").write_bytes(b"\n")  # a SentencePiece model, which load_tokenizer prefers
    (tmp_path / "new" / "added_tokens.json").write_text('{"<x>": 7}')
    run(TRAIN, *arguments[2:4], "--read_as", "text", "--vocab_size", 300, "--output_dir", "new", "--overwrite")
    assert type(load_tokenizer(tmp_path / "new")) is GPT2Tokenizer
    assert {"tokenizer-1.model", "vocab-1.txt"} <= {path.name for path in (tmp_path / "new").iterdir()}
    with pytest.raises(UserError, match="--keep_case is for --kind wordpiece; the other kinds always keep the case"):
        run(TRAIN, *arguments[2:], "--keep_case")
