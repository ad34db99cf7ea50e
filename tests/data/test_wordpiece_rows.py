"""Classification and instruction data with a WordPiece tokenizer: special tokens, pairs of texts, padding.

The oracle is transformers' BertTokenizer, and rows put together by hand.
"""

import pytest

from mindgpt.config.errors import UserError
from mindgpt.data.buckets import read_rows
from mindgpt.data.classification_rows import write_classification
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.instruction_rows import write_examples
from mindgpt.data.instructions import Instruction
from mindgpt.data.labelled_text import file_layout
from mindgpt.tokenizers.loading import load_tokenizer

CLS, SEP, PAD, NO = 101, 102, 0, -100
A, B, C, D, E, F, G, H = range(104, 112)


@pytest.fixture
def write(tmp_path):
    """Write labelled texts; returns the ids and the label of each row, and the summary."""

    def write(tokenizer, file, name, max_length=99, **layout):
        if isinstance(file, str):
            (tmp_path / "in.tsv").write_text(file, "utf-8")
            file = tmp_path / "in.tsv"
        path = tmp_path / "x.mindrecord"
        arguments = {"max_length": max_length, "overwrite": True, "show_progress": False}
        summary = write_classification(file, file_layout(name, **layout), tokenizer, path, **arguments)
        rows = read_rows(inspect(path))
        spans = zip(rows.starts[:-1], rows.starts[1:], strict=True)
        ids = [rows.ids[start:end].tolist() for start, end in spans]
        return list(zip(ids, rows.labels.tolist(), strict=True)), summary

    return write


# ---- classification --------------------------------------------------------------------------------------------------


def test_chnsenticorp_against_transformers(write, shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes((shared_data / "zh" / "google_zh_vocab.txt").read_bytes())
    source = shared_data / "zh" / "chnsenticorp.dev.tsv"
    rows, summary = write(load_tokenizer(tmp_path), source, "chnsenticorp", max_length=128)
    lines = [line.split("\t") for line in source.read_text("utf-8").split("\n")[1:] if line]
    bert = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    expected = bert([text for _, text in lines], truncation=True, max_length=128)["input_ids"]
    assert rows == [(ids, int(label)) for ids, (label, _) in zip(expected, lines, strict=True)]
    assert len(rows) == 1200
    assert summary.label_names == ("negative", "positive")
    assert summary.truncated == sum(ids[-1] == SEP and len(bert(text)["input_ids"]) > 128 for ids, (_, text) in zip(
        expected, lines, strict=True
    ))  # fmt: skip


PAIRS = "text_b\tlabel\ttext_a\nc d\t1\ta b\n\t0\te\n"


def test_a_second_text_follows_sep(write, wordpiece, wordpiece_dir):
    transformers = pytest.importorskip("transformers")
    rows, _ = write(wordpiece, PAIRS, "uer")
    assert rows == [([CLS, A, B, SEP, C, D, SEP], 1), ([CLS, E, SEP], 0)]
    assert rows[0][0] == transformers.BertTokenizer(str(wordpiece_dir / "vocab.txt"))("a b", "c d")["input_ids"]
    rows, summary = write(wordpiece, PAIRS, "uer", max_length=5)
    assert rows == [([CLS, A, SEP, C, SEP], 1), ([CLS, E, SEP], 0)]
    assert summary.truncated == 1


def test_uers_file_without_a_second_text(write, wordpiece):
    assert write(wordpiece, "label\ttext_a\n2\ta\n0\tb\n1\tc\n", "uer")[0] == [
        ([CLS, A, SEP], 2),
        ([CLS, B, SEP], 0),
        ([CLS, C, SEP], 1),
    ]


def test_columns_that_are_named_are_joined(write, wordpiece):
    rows, _ = write(wordpiece, PAIRS, "uer", text_columns=["text_a", "text_b"])
    assert rows == [([CLS, A, B, C, D, SEP], 1), ([CLS, E, SEP], 0)]


def test_a_second_text_without_special_tokens_follows_a_space(write, tokenizer):
    rows, _ = write(tokenizer, PAIRS, "uer")
    assert rows == [(tokenizer.encode("a b c d"), 1), (tokenizer.encode("e"), 0)]


def test_a_table_without_labels_is_refused(write, wordpiece):
    with pytest.raises(UserError, match=r"in.tsv:1: the header has no column 'label'; it has: 'text_a'"):
        write(wordpiece, "text_a\na\n", "uer")
    with pytest.raises(UserError, match=r"in.tsv:2: the label 'neutral' is none of 'negative', 'positive', 0 to 1"):
        write(wordpiece, "label\ttext_a\nneutral\ta\n", "chnsenticorp")


# ---- instructions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"max_length": 7},
            [
                ([CLS, A, B, C, D, SEP, PAD], [1] * 6 + [0], [NO, NO, NO, C, D, SEP, NO]),
                ([CLS, E, F, SEP, PAD, PAD, PAD], [1] * 4 + [0] * 3, [NO, E, F, SEP, NO, NO, NO]),
            ],
        ),
        (
            {"max_length": 11, "pack": True},
            [
                (
                    [CLS, A, B, C, D, SEP, CLS, E, F, SEP, PAD],
                    [1] * 10 + [0],
                    [NO, NO, NO, C, D, SEP, NO, E, F, SEP, NO],
                )
            ],
        ),
        (  # one token too long: the response is truncated, without [SEP]
            {"max_length": 5},
            [
                ([CLS, A, B, C, D], [1] * 5, [NO, NO, NO, C, D]),
                ([CLS, E, F, SEP, PAD], [1] * 4 + [0], [NO, E, F, SEP, NO]),
            ],
        ),
        ({"max_length": 5, "too_long": "drop"}, [([CLS, E, F, SEP, PAD], [1] * 4 + [0], [NO, E, F, SEP, NO])]),
    ],
    ids=["rows", "packed", "truncated", "dropped"],
)
def test_instructions(wordpiece, tmp_path, arguments, expected):
    """[CLS] belongs to the prompt and is never learned; [SEP] ends the response."""
    path = tmp_path / "x.mindrecord"
    write_examples([Instruction("a b", "c d"), Instruction("", "e f")], wordpiece, path, **arguments)
    dataset = build_dataset(path, batch_size=1, columns=["input_ids", "attention_mask", "labels"])
    batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    assert [tuple(column[0].tolist() for column in batch) for batch in batches] == expected


def test_a_prompt_that_fills_the_row_with_its_cls_is_dropped(wordpiece, tmp_path):
    examples, path = [Instruction("a b", "c"), Instruction("a", "b")], tmp_path / "x.mindrecord"
    summary = write_examples(examples, wordpiece, path, max_length=3)
    assert (summary.examples, summary.dropped, summary.truncated) == (1, 1, 1)
