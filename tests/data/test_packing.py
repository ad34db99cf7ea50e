"""Documents of a WordPiece tokenizer in rows, against UER-py's windows and loss masks written from their definition."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindgpt import GPT2Config, GPT2LMHeadModel
from mindgpt.config.errors import UserError
from mindgpt.data import document_tokens, packing
from mindgpt.data.blocks import COLUMNS, write_blocks
from mindgpt.data.dataset import build_dataset, inspect
from mindgpt.data.document_tokens import TokenPiece
from mindgpt.data.packing import joined_rows, separate_rows
from mindgpt.data.text import Piece
from mindgpt.evaluation.perplexity import PerplexityCell
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

CLS, SEP, PAD = 101, 102, 0
A, B, C, D, E, F = range(104, 110)


def columns_of(path, columns=COLUMNS):
    """The columns of all rows, each an array (rows, length)."""
    info = inspect(path)
    dataset = build_dataset(info, batch_size=info.num_rows, columns=columns)
    return next(iter(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)))


def uer_windows(documents, seq_length):
    """(source, target, segment) of each window: w[:-1], w[1:], and 1 at the first n places, where n is seq_length for a
    full window and the number of real tokens for a padded one."""
    windows = []
    for ids in documents:
        document = [CLS, *ids, SEP]
        for start in range(0, len(document), seq_length + 1):
            window = document[start : start + seq_length + 1]
            n = min(len(window), seq_length)
            window = window + [PAD] * (seq_length + 1 - len(window))
            windows.append((window[:-1], window[1:], [1] * n + [0] * (seq_length - n)))
    return [np.array(column) for column in zip(*windows, strict=True)]


@pytest.fixture
def documents():
    """Documents of 1 to 14 letters, so that windows of 5 end in every way."""
    letters = np.random.default_rng(0).integers(A, F + 1, (14, 14))
    return [list(map(int, row[: number + 1])) for number, row in enumerate(letters)]


def text_of(ids):
    return "".join("abcdef"[number - A] + " " for number in ids)


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding_target", "last_mask"), [(False, [1, 1, 1, 0, 0]), (True, [1, 1, 1, 1, 0])])
def test_the_example_of_a_document_of_six_tokens(wordpiece, tmp_path, padding_target, last_mask):
    write_blocks(
        [Piece("a b c d e f", True)],
        wordpiece,
        tmp_path / "x.mindrecord",
        max_length=5,
        recipe="text",
        packing="none",
        padding_target=padding_target,
        columns=COLUMNS,
    )
    ids, mask, labels = columns_of(tmp_path)
    assert ids.tolist() == [[CLS, A, B, C, D], [E, F, SEP, PAD, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], last_mask]
    assert labels.tolist() == [[CLS, A, B, C, D], [E, F, SEP, PAD if padding_target else -100, -100]]


def test_joined_documents(wordpiece, tmp_path):
    pieces = [Piece("a b", True), Piece(" ", True), Piece("c", True), Piece("d e", True)]
    arguments = {"max_length": 5, "recipe": "text"}
    kept = write_blocks(pieces, wordpiece, tmp_path / "a.mindrecord", **arguments)
    ids, mask = columns_of(tmp_path / "a.mindrecord", COLUMNS[:2])
    assert ids.tolist() == [[CLS, A, B, SEP, CLS], [C, SEP, CLS, D, E], [SEP, PAD, PAD, PAD, PAD]]
    assert mask.tolist() == [[1] * 5, [1] * 5, [1, 0, 0, 0, 0]]
    assert (kept.documents, kept.blank_documents, kept.tokens, kept.padded) == (3, 1, 11, 4)
    dropped = write_blocks(pieces, wordpiece, tmp_path / "b.mindrecord", keep_tail=False, **arguments)
    assert columns_of(tmp_path / "b.mindrecord", COLUMNS[:1])[0].tolist() == ids[:2].tolist()  # as TencentPretrain
    assert dropped.dropped == 1


@pytest.mark.parametrize("padding_target", [False, True])
def test_rows_and_targets_are_those_of_uer(wordpiece, tmp_path, monkeypatch, documents, padding_target):
    monkeypatch.setattr(document_tokens, "BATCH_CHARACTERS", 10)
    monkeypatch.setattr(packing, "BATCH_BLOCKS", 3)
    pieces = [
        Piece(text_of(part), ends)
        for ids in documents
        for part, ends in ([(ids, True)] if len(ids) % 2 else [(ids[:3], False), (ids[3:], True)])
    ]
    arguments = {"max_length": 5, "recipe": "text", "packing": "none", "padding_target": padding_target}
    summary = write_blocks(pieces, wordpiece, tmp_path / "x.mindrecord", **arguments)
    ids, mask = columns_of(tmp_path, COLUMNS[:2])
    source, target, segment = uer_windows(documents, 4)
    assert ids[:, :-1].tolist() == source.tolist()
    assert ids[:, 1:].tolist() == target.tolist()
    assert mask[:, 1:].tolist() == (segment if padding_target else (target > 0).astype(int)).tolist()
    assert mask[:, 0].all()
    assert summary.blocks == len(ids)
    assert summary.tokens == sum(len(ids) + 2 for ids in documents)
    assert summary.padded == ids.size - summary.tokens


@pytest.mark.parametrize(
    ("special_tokens", "row"),
    [
        ("around", [CLS, A, B, SEP, PAD]),
        ("end", [A, B, SEP, PAD, PAD]),
        ("none", [A, B, PAD, PAD, PAD]),
        (None, [CLS, A, B, SEP, PAD]),
    ],
)
def test_special_tokens_of_a_document(wordpiece, tmp_path, special_tokens, row):
    pieces, path = [Piece("a b", True)], tmp_path / "x.mindrecord"
    write_blocks(pieces, wordpiece, path, max_length=5, recipe="t", special_tokens=special_tokens)
    ids, mask = columns_of(path, COLUMNS[:2])
    assert ids.tolist() == [row]
    assert mask.tolist() == [[int(token != PAD) for token in row]]
    assert inspect(path).metadata.get("special_tokens", "end") == (special_tokens or "around")


def test_byte_level_bpe_around(tokenizer, tmp_path):
    end = tokenizer.eos_token_id
    pieces, path = [Piece("ab", True)], tmp_path / "x.mindrecord"
    write_blocks(pieces, tokenizer, path, max_length=5, recipe="t", special_tokens="around")
    ids, mask = columns_of(path, COLUMNS[:2])
    assert ids.tolist() == [[end, *tokenizer.encode("ab"), end, end]]
    assert mask.tolist() == [[1, 1, 1, 1, 0]]


def test_a_document_without_tokens_is_blank(wordpiece, tmp_path):
    """Control characters are dropped; UER-py would make a row of [CLS] [SEP]."""
    pieces, path = [Piece("\u200b", True), Piece("a", True), Piece("\x07", True)], tmp_path / "x.mindrecord"
    summary = write_blocks(pieces, wordpiece, path, max_length=5, recipe="t", packing="none")
    assert columns_of(path, COLUMNS[:1])[0].tolist() == [[CLS, A, SEP, PAD, PAD]]
    assert (summary.documents, summary.blank_documents) == (1, 2)


def test_metadata_say_how_rows_were_made(wordpiece, tmp_path):
    path = tmp_path / "x.mindrecord"
    arguments = {"packing": "none", "padding_target": True}
    write_blocks([Piece("a", True)], wordpiece, path, max_length=5, recipe="text", **arguments)
    assert inspect(path).metadata == {
        "recipe": "text",
        "block_length": 5,
        "vocab_size": len(wordpiece),
        "eos_token_id": SEP,
        "vocab_sha256": wordpiece.vocab_hash(),
        "packing": "none",
        "special_tokens": "around",
        "padding_target": True,
    }


# ---- loss ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy():
    ms.set_seed(1)
    rates = dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), 0.0)
    config = GPT2Config(
        num_layers=2, hidden_size=32, num_heads=4, vocab_size=140, seq_length=8, initializer_range=0.3, **rates
    )
    return GPT2LMHeadModel(config)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("padding_target", [False, True])
def test_loss_is_over_uers_targets(toy, wordpiece, tmp_path, documents, padding_target):
    """Training loss and perplexity of the written columns, with and without `labels`, against cross-entropy over
    the kept targets in NumPy."""
    pieces, path = [Piece(text_of(ids), True) for ids in documents], tmp_path / "x.mindrecord"
    arguments = {"packing": "none", "padding_target": padding_target, "columns": COLUMNS}
    write_blocks(pieces, wordpiece, path, max_length=5, recipe="text", **arguments)
    columns = [Tensor(column, ms.int32) for column in columns_of(path)]

    source, target, segment = uer_windows(documents, 4)
    toy.set_train(False)
    logits = toy(Tensor(source, ms.int32)).asnumpy().astype(np.float64)  # UER-py does not mask padding
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probability, target[..., None], -1)[..., 0]
    kept = segment > 0 if padding_target else target > 0
    total, count = PerplexityCell(toy)(*columns)
    assert int(count.asnumpy()) == kept.sum()
    assert float(total.asnumpy()) == pytest.approx(losses[kept].sum(), rel=1e-5)
    toy.set_train(True)
    for given in (columns, columns[:2]):
        assert float(toy(*given).asnumpy()) == pytest.approx(losses[kept].mean(), rel=1e-5)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [joined_rows, separate_rows])
def test_rows_are_made_while_documents_are_read(pack):
    """What is read and not yet written stays the same for a text ten times as long."""
    waiting = []
    for documents in (2_000, 20_000):
        read = written = most = 0

        def pieces(count=documents):
            nonlocal read
            for number in range(count):
                ids = [A] * (number % 40 + 1)
                read += len(ids)
                yield TokenPiece(ids, True)

        for rows in pack(pieces(), 16, PAD):
            written += int(rows.lengths.sum())
            most = max(most, read - written)
        assert written == read
        waiting.append(most)
    assert waiting[1] <= waiting[0] + 40 < 2 * packing.BATCH_BLOCKS * 16


def test_a_long_document_is_written_while_it_is_read(monkeypatch, wordpiece):
    monkeypatch.setattr(document_tokens, "BATCH_CHARACTERS", 100)
    read = itertools.count()
    pieces = (Piece(" a" * 20, False) for number in iter(lambda: next(read), 10**9))  # endless
    layout = document_tokens.document_format(wordpiece)
    tokens = document_tokens.tokenised(pieces, wordpiece, layout, UnknownTokens(wordpiece))
    rows = next(separate_rows(tokens, 5, PAD))
    assert rows.ids[0].tolist() == [CLS, A, A, A, A]
    assert len(rows.ids) == packing.BATCH_BLOCKS
    assert next(read) < packing.BATCH_BLOCKS * 5 / 20 + 20


# ---- unknown tokens --------------------------------------------------------------------------------------------------


UNKNOWN = r"knows nothing of the text: all \d+ tokens are \[UNK\]"


def test_a_text_of_unknown_tokens_is_refused(wordpiece, tmp_path):
    with pytest.raises(UserError, match=UNKNOWN):
        write_blocks([Piece("x y z", True)], wordpiece, tmp_path / "x.mindrecord", max_length=5, recipe="t")
    assert list(tmp_path.iterdir()) == []


def test_unknown_text_is_refused_before_it_is_read_to_the_end(wordpiece, tmp_path, monkeypatch):
    monkeypatch.setattr(document_tokens, "BATCH_CHARACTERS", 1000)
    endless = iter(lambda: Piece("y " * 100, True), None)
    with pytest.raises(UserError, match=UNKNOWN):
        write_blocks(endless, wordpiece, tmp_path / "x.mindrecord", max_length=5, recipe="t")


@pytest.mark.parametrize(("text", "share"), [("a y", 50), ("a " * 19 + "y", None), ("a " * 18 + "y", 5)])
def test_much_unknown_text_is_warned_of(wordpiece, tmp_path, caplog, text, share):
    write_blocks([Piece(text, True)], wordpiece, tmp_path / "x.mindrecord", max_length=5, recipe="t")
    warned = [] if share is None else [f"note: {share} % of the tokens are [UNK], such as 'y'"]
    assert [record.getMessage() for record in caplog.records if "[UNK]" in record.getMessage()] == warned


# ---- the tool --------------------------------------------------------------------------------------------------------


def test_lines_as_uer_reads_them(text_tool, wordpiece_dir, tmp_path, monkeypatch, capsys):
    """A blank line is no document, and a last line without a newline is one, both unlike UER-py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("a b c d e f\n\n \nab\u2028cd\nef", "utf-8")
    common = ("--input_file", "x.txt", "--tokenizer_type", wordpiece_dir, "--max_length", 5)
    text_tool(*common, "--output_file", "a.mindrecord", "--document_per", "line", "--packing", "none")
    assert "3 document(s) (2 blank ones left out), " in capsys.readouterr().out
    (ids,) = columns_of("a.mindrecord", COLUMNS[:1])
    assert ids[:2].tolist() == [[CLS, A, B, C, D], [E, F, SEP, PAD, PAD]]
    assert len(ids) == 4
    (tmp_path / "x.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n')
    text_tool("--input_file", "x.jsonl", *common[2:], "--output_file", "b.mindrecord")
    assert columns_of("b.mindrecord", COLUMNS[:1])[0].tolist() == [[CLS, A, B, SEP, CLS], [C, SEP, PAD, PAD, PAD]]


def test_poems(text_tool, wordpiece_dir, tmp_path, monkeypatch, wordpiece):
    """chinese-poetry's files: a list of objects whose `paragraphs` are lines."""
    monkeypatch.chdir(tmp_path)
    poem = '[{"title": "春晓", "paragraphs": ["春眠不觉晓，", "處處聞啼鳥。"], "id": "1"}, {"paragraphs": ["唐诗"]}]'
    (tmp_path / "poems.json").write_text(poem, "utf-8")
    common = ("--input_file", "poems.json", "--tokenizer_type", wordpiece_dir, "--max_length", 15)
    text_tool(*common, "--output_file", "x.mindrecord", "--field", "paragraphs", "--packing", "none")
    (ids,) = columns_of("x.mindrecord", COLUMNS[:1])
    expected = [
        ["[CLS]", *"春眠不觉晓，處處聞啼鳥。", "[SEP]", "[PAD]"],
        ["[CLS]", "唐", "诗", "[SEP]", *["[PAD]"] * 11],
    ]
    assert wordpiece.convert_ids_to_tokens(ids[0]) == expected[0]
    assert wordpiece.convert_ids_to_tokens(ids[1]) == expected[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--padding_target"], "--padding_target needs --packing none"),
        (["--packing", "none", "--drop_tail"], "--drop_tail needs --packing full"),
        (["--packing", "none", "--padding_target", "--drop_tail"], "not allowed with"),
        (["--packing", "half"], "invalid choice"),
        (
            ["--input_file", "gbk.txt"],
            r"gbk.txt:1: not UTF-8: .* seems to be GB18030 \(GBK\). Convert it: iconv -f GB",
        ),
        (["--input_file", "unknown.txt"], UNKNOWN),
    ],
)
def test_refused_arguments_and_texts(text_tool, wordpiece_dir, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("a b\n")
    (tmp_path / "gbk.txt").write_bytes("今天天气不错，我们去公园散步。\n".encode("gbk") * 20)
    (tmp_path / "unknown.txt").write_text("今天天气错了\n", "utf-8")
    before = sorted(tmp_path.iterdir())
    common = ["--input_file", "x.txt", "--tokenizer_type", wordpiece_dir, "--output_file", "x.mindrecord"]
    with pytest.raises(UserError, match=message):
        text_tool(*common, *arguments)
    assert sorted(tmp_path.iterdir()) == before
