"""Packing into blocks: no token is lost or moved, padding is masked; the oracle is a plain implementation."""

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.data import blocks, document_tokens, packing
from mindgpt.data.blocks import write_blocks
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.text import Piece, split_document


def rows_of(path, columns=("input_ids", "attention_mask")):
    dataset = build_dataset(path, batch_size=1, columns=columns, drop_remainder=False)
    return [
        [row[0].tolist() for row in batch] for batch in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    ]


def whole(*texts):
    return [Piece(text, True) for text in texts]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Many batches even from little text."""
    monkeypatch.setattr(document_tokens, "BATCH_CHARACTERS", 40)
    monkeypatch.setattr(packing, "BATCH_BLOCKS", 3)


def test_expected_blocks(tokenizer, tmp_path):
    end = tokenizer.eos_token_id
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    # The end-of-text token stands between documents with mask 1, and as padding with mask 0.
    summary = write_blocks(
        whole("abc", " \n", "cb", ""),
        tokenizer,
        tmp_path / "x.mindrecord",
        max_length=4,
        recipe="test",
        columns=["input_ids", "attention_mask", "labels"],
    )
    assert rows_of(tmp_path, ["input_ids", "attention_mask", "labels"]) == [
        [[a, b, c, end], [1, 1, 1, 1], [a, b, c, end]],
        [[c, b, end, end], [1, 1, 1, 0], [c, b, end, -100]],
    ]
    assert (summary.documents, summary.blank_documents, summary.tokens) == (2, 2, 7)
    assert (summary.blocks, summary.padded, summary.dropped) == (2, 1, 0)


def test_no_token_is_lost(tokenizer, tmp_path, shared_data):
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text("utf-8")[:30_000]
    texts = text.split("\n\n")
    summary = write_blocks(whole(*texts), tokenizer, tmp_path / "x.mindrecord", max_length=50, recipe="test")
    rows = rows_of(tmp_path)
    tokens = [token for ids, mask in rows for token, real in zip(ids, mask, strict=True) if real]
    assert tokenizer.decode(tokens) == "".join(text + tokenizer.eos_token for text in texts)
    assert tokens == sum((tokenizer.encode(text) + [tokenizer.eos_token_id] for text in texts), [])
    assert summary.tokens == len(tokens)
    assert summary.blocks == len(rows) == -(-len(tokens) // 50)
    assert summary.padded == summary.blocks * 50 - len(tokens)
    assert all(mask == [1] * 50 for _, mask in rows[:-1])
    assert rows[-1][1] == sorted(rows[-1][1], reverse=True)


@pytest.mark.parametrize("length", [7, 11, 2])
def test_a_tail_is_padded_or_dropped(tokenizer, tmp_path, length):
    text = "the lazy dog jumps over the quick brown fox " * 5
    stream = tokenizer.encode(text)
    kept = write_blocks(
        split_document([text]),
        tokenizer,
        tmp_path / "a.mindrecord",
        max_length=length,
        recipe="t",
        special_tokens="none",
    )
    dropped = write_blocks(
        split_document([text]),
        tokenizer,
        tmp_path / "b.mindrecord",
        max_length=length,
        recipe="t",
        special_tokens="none",
        keep_tail=False,
    )
    full = len(stream) // length
    expected = [[stream[i * length : (i + 1) * length], [1] * length] for i in range(full)]
    assert rows_of(tmp_path / "b.mindrecord") == expected
    assert dropped.dropped == len(stream) - full * length
    tail = stream[full * length :]
    padding = length - len(tail)
    if tail:
        expected.append([tail + [tokenizer.eos_token_id] * padding, [1] * len(tail) + [0] * padding])
    assert rows_of(tmp_path / "a.mindrecord") == expected
    assert kept.dropped == 0


def test_splits_share_the_blocks(tokenizer, tmp_path):
    text = "the lazy dog jumps over the quick brown fox " * 20
    one = write_blocks(split_document([text]), tokenizer, tmp_path / "one" / "x.mindrecord", max_length=9, recipe="t")
    many = write_blocks(
        split_document([text]), tokenizer, tmp_path / "many" / "x.mindrecord", max_length=9, recipe="t", num_splits=4
    )
    assert [file.rsplit("/", 1)[1] for file in many.files] == [f"x.{n}.mindrecord" for n in range(4)]
    rows = rows_of(tmp_path / "one")
    assert one.blocks == many.blocks == len(rows) > 8
    for number, file in enumerate(many.files):
        assert rows_of(file) == rows[number::4]


def test_documents_in_pieces_are_the_same_as_whole(tokenizer, tmp_path, monkeypatch):
    class Uncuttable:
        """The same tokenizer, saying that its tokens may reach over spaces."""

        splits_at_spaces = False
        seen: list[str] = []

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode_batch(self, texts, **arguments):
            self.seen += texts
            return tokenizer.encode_batch(texts, **arguments)

    pieces = [Piece("the quick", False), Piece(" brown", False), Piece("\nfox", True), Piece("dog", True)]
    uncuttable = Uncuttable()
    write_blocks(pieces, tokenizer, tmp_path / "a.mindrecord", max_length=6, recipe="t")
    write_blocks(pieces, uncuttable, tmp_path / "b.mindrecord", max_length=6, recipe="t")
    assert uncuttable.seen == ["the quick brown\nfox", "dog"]
    assert rows_of(tmp_path / "a.mindrecord") == rows_of(tmp_path / "b.mindrecord")


def test_a_document_may_begin_with_blank_pieces(tokenizer, tmp_path):
    pieces = [Piece("a", False), Piece(" ", True), Piece(" ", True)]
    summary = write_blocks(pieces, tokenizer, tmp_path / "a.mindrecord", max_length=3, recipe="t")
    assert (summary.documents, summary.blank_documents) == (1, 1)
    ids = [tokenizer.encode("a")[0], tokenizer.encode(" ")[0], tokenizer.eos_token_id]
    assert rows_of(tmp_path) == [[ids, [1, 1, 1]]]


def test_metadata_describe_tokenizer_and_blocks(tokenizer, tmp_path):
    write_blocks(whole("abc"), tokenizer, tmp_path / "x.mindrecord", max_length=4, recipe="mine")
    assert inspect(tmp_path).metadata == {
        "recipe": "mine",
        "block_length": 4,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_sha256": tokenizer.vocab_hash(),
    }


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (["a"], {"max_length": 1}, "max_length must be at least 2"),
        (["", " \n"], {}, "no document with any text"),
        ([], {}, "no document with any text"),
        (["ab"], {"keep_tail": False}, "3 tokens and so 0 blocks of 4"),
        (["ab"], {"num_splits": 2}, "1 blocks of 4: too few for 2 file"),
        (["ab"], {"num_splits": 0}, "num_splits must be at least 1"),
        (["ab"], {"columns": ["ids"]}, "data_columns may be input_ids, attention_mask, labels; got ids"),
        (["ab"], {"columns": []}, "got none"),
    ],
)
def test_write_errors_are_explained(tokenizer, tmp_path, texts, arguments, message):
    with pytest.raises(UserError, match=message):
        write_blocks(
            whole(*texts), tokenizer, tmp_path / "x.mindrecord", **{"max_length": 4, "recipe": "t", **arguments}
        )
    assert list(tmp_path.iterdir()) == []


def test_padding_targets_are_not_counted(tokenizer, tmp_path):
    """The mask of the target decides: of a row of n real tokens, n - 1 predictions count."""
    write_blocks(whole("abc"), tokenizer, tmp_path / "x.mindrecord", max_length=8, recipe="t", columns=blocks.COLUMNS)
    ((ids, mask, labels),) = rows_of(tmp_path, blocks.COLUMNS)
    counted = np.array(mask[1:]) == 1
    assert counted.sum() == 3
    assert np.array_equal(np.array(labels[1:])[counted], np.array(ids[1:])[counted])
    assert set(np.array(labels[1:])[~counted]) == {-100}
