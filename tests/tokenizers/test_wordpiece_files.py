"""The files of a WordPiece tokenizer: read, obeyed or refused, written, and recognised among other kinds."""

import shutil

import pytest

import mindgpt
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.loading import load_tokenizer, tokenizer_kind
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests.tokenizers.wordpiece_vocabularies import TOY, write_vocab


@pytest.fixture
def toy(tmp_path):
    return WordPieceTokenizer.from_pretrained(write_vocab(tmp_path / "toy", TOY))


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def test_a_vocabulary_by_its_own_name(chinese_vocab, ours, tmp_path):
    assert tokenizer_kind(chinese_vocab) == "WordPiece"
    for tokenizer in (load_tokenizer(chinese_vocab), WordPieceTokenizer(chinese_vocab)):
        assert tokenizer.vocab_hash() == ours.vocab_hash()
    assert mindgpt.WordPieceTokenizer is WordPieceTokenizer


def test_line_ends(tmp_path, toy):
    for end in ("\r\n", "\n"):
        folder = write_vocab(tmp_path / "t", ["\ufeff[PAD]", *TOY[1:], "\u2028", "\x85", "last "], end)
        tokenizer = load_tokenizer(folder)
        assert tokenizer.convert_tokens_to_ids(["[PAD]", "sep", "\u2028", "\x85", "last"]) == [0, *range(21, 25)]
    (folder / "vocab.txt").write_bytes("\n".join(TOY).encode())  # without a last line end
    assert load_tokenizer(folder).vocab_hash() == toy.vocab_hash()


def test_blank_and_repeated_lines_shift_no_id(tmp_path, caplog):
    folder = write_vocab(tmp_path / "t", [*TOY, "", "c", "天", "d", "", ""])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["c", "天", "d"]) == [23, 24, 25]
    assert len(tokenizer) == 26
    assert "line 23 is blank: these ids have no token" in caplog.text
    assert "1 token(s) occur twice, and the last line gives the id: '天' (lines 9 and 25)" in caplog.text
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "vocab.txt: the vocabulary is empty"),
        (["a", "b"], r"vocab.txt: \[UNK\], \[CLS\], \[SEP\] not in the vocabulary of 2 tokens \('a', 'b'\)"),
        ([token for token in TOY if token != "[UNK]"], r"vocab.txt: \[UNK\] not in the vocabulary"),
        ([token for token in TOY if token != "[CLS]"], r"vocab.txt: \[CLS\] not in the vocabulary"),
        (["Copyright 2020 \ud83d".encode("utf-8", "surrogatepass")], "vocab.txt:1: not UTF-8: byte 0xed"),
        (["[PAD]\n天\n".encode("gbk")], "vocab.txt:2: not UTF-8: .*iconv -f GB"),
    ],
)
def test_a_vocabulary_that_is_none(tmp_path, tokens, message):
    folder = tmp_path / "t"
    folder.mkdir()
    parts = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    (folder / "vocab.txt").write_bytes(b"\n".join([*parts, b""]))
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_lower_case": "true"}, "tokenizer_config.json: do_lower_case must be one of False, True; it is 'true'"),
        ({"never_split": ["hello"]}, 'never_split: "hello" is no special token'),
        ({"do_basic_tokenize": False}, "do_basic_tokenize: only True is supported; it is False"),
        ({"wordpieces_prefix": "@@"}, "wordpieces_prefix: only '##' is supported"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class is 'BertJapaneseTokenizer', whose ids"),
        ({"add_bos_token": True}, r"add_bos_token: this kind of tokenizer puts \[CLS\] and \[SEP\]"),
        ({"cls_token": 5}, "cls_token: should be a token"),
        ({"unk_token": "<oov>"}, "<oov> not in the vocabulary"),
        ({"added_tokens_decoder": {"99": {"content": "<x>"}}}, "the added token '<x>' should have id 99 but gets 22"),
    ],
)
def test_settings_are_obeyed_or_refused(tmp_path, config, message):
    folder = write_vocab(tmp_path / "t", TOY, tokenizer_config=config)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_special_tokens_that_the_files_name_are_in_the_vocabulary(tmp_path):
    """A new one would have an id that the model does not have."""
    config = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    folder = write_vocab(tmp_path / "t", [token for token in TOY if token != "[CLS]"], tokenizer_config=config)
    with pytest.raises(UserError, match=r"vocab.txt: \[CLS\] not in the vocabulary of 21 tokens"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, bos_token="[NEW]").encode("a") == [21, 14, 2]


def test_settings_files_as_transformers_reads_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokens = [*TOY, "<s>", "</s>", "é", "e", "天气", "Hello"]
    config = {"cls_token": "<s>", "sep_token": "</s>", "model_max_length": 7, "strip_accents": False}
    config |= {"do_lower_case": False, "tokenize_chinese_chars": False, "never_split": ["[MASK]"]}
    folder = write_vocab(tmp_path / "t", tokens, tokenizer_config=config)
    ours, theirs = load_tokenizer(folder), transformers.BertTokenizer.from_pretrained(str(folder))
    text = "Hello hello é e 天气 天 <s> [CLS]"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.bos_token, ours.eos_token, ours.model_max_length) == ("<s>", "</s>", 7)
    special = {"cls_token": {"content": "</s>"}, "sep_token": "<s>"}
    mapped = write_vocab(tmp_path / "u", tokens, special_tokens_map=special, added_tokens={"<new>": len(tokens)})
    assert load_tokenizer(mapped).encode("a<new>") == [23, 15, len(tokens), 22]


def test_lower_case_off_is_obeyed_and_its_cost_said_once(chinese_vocab, tmp_path, caplog):
    shutil.copy(chinese_vocab, tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(tmp_path)
    assert plain(cased, "GPT2模型 is 好的, Hello World!") == [100, 3563, 1798, 8310, 1962, 4638, 117, 100, 100, 106]
    load_tokenizer(tmp_path)
    said = [record.message for record in caplog.records if "do_lower_case is False" in record.message]
    assert len(said) == 1 and "every word with one becomes [UNK]" in said[0]
    assert str(cased).endswith("upper and lower case")


def test_saved_files_open_here_and_in_transformers(chinese_vocab, ours, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(chinese_vocab, model_max_length=99)
    assert tokenizer.add_tokens(["新词abc", "今"]) == 1
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<sep2>"]}) == 1
    (tmp_path / "tokenizer.json").write_text("{}")  # another tokenizer's, which would be read first
    tokenizer.save_pretrained(tmp_path)
    assert {"vocab.txt", "tokenizer_config.json", "tokenizer-1.json"} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "vocab.txt").read_bytes() == chinese_vocab.read_bytes()
    text = "a新词abc今天 <sep2> Hi[MASK]"
    again, theirs = load_tokenizer(tmp_path), transformers.BertTokenizer.from_pretrained(str(tmp_path))
    assert again.encode(text) == theirs.encode(text) == tokenizer.encode(text)
    assert len(again) == len(theirs) == 21130
    assert again.vocab_hash() == tokenizer.vocab_hash() != ours.vocab_hash()
    assert (again.model_max_length, theirs.model_max_length) == (99, 99)
    assert again.decode(plain(again, text)) == "a新词abc今天<sep2>hi[MASK]"


def test_files_saved_by_transformers_open_here(chinese_vocab, ours, theirs, tmp_path):
    theirs.save_pretrained(str(tmp_path))
    assert (tmp_path / "tokenizer.json").is_file() and not (tmp_path / "vocab.txt").exists()
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "mine.json")
    for name in ("", "tokenizer.json", "mine.json", "tokenizer_config.json"):
        found = load_tokenizer(tmp_path / name)
        assert type(found) is WordPieceTokenizer
        assert found.encode("GPT2模型, [SEP]") == ours.encode("GPT2模型, [SEP]")
        assert found.vocab_hash() == ours.vocab_hash()
    shutil.copy(chinese_vocab, tmp_path / "vocab.txt")
    assert load_tokenizer(tmp_path).vocab_hash() == ours.vocab_hash()
    assert load_tokenizer(tmp_path, do_lower_case=False).encode("Hello") == [101, 100, 102]
    (tmp_path / "vocab.txt").write_bytes(chinese_vocab.read_bytes().replace(b"[unused5]\n", b"\n"))
    assert load_tokenizer(tmp_path).encode("天") == ours.encode("天")
    (tmp_path / "vocab.txt").write_bytes(chinese_vocab.read_bytes().replace(b"[unused5]\n", b""))
    with pytest.raises(UserError, match=r"vocab.txt:6: token '\[unused6\]' has id 5 here and 6 in tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_with_rules_of_its_own(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordPiece({token: n for n, token in enumerate(TOY)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("HELLO天气 world") == [2, 1, 6, 3]  # Chinese characters are no words of their own there
    assert not tokenizer.splits_at_spaces
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("HELLO天气 world") == [2, 1, 6, 3]
    with pytest.raises(UserError, match="the rules of this tokenizer.json are not BERT's, so do_lower_case cannot be"):
        load_tokenizer(tmp_path, do_lower_case=False)


def test_kinds_are_told_apart_by_their_files(tmp_path, toy):
    gpt2 = mindgpt.GPT2Tokenizer.train(["hello hello world"], 260)
    gpt2.save_pretrained(tmp_path / "both")
    toy.save_vocabulary(tmp_path / "both")
    assert tokenizer_kind(tmp_path / "both") == "byte-level BPE"
    assert tokenizer_kind(tmp_path / "both" / "vocab.txt") == "WordPiece"
    assert tokenizer_kind(tmp_path / "both" / "merges.txt") == "byte-level BPE"
    (tmp_path / "both" / "tokenizer.json").unlink()
    assert tokenizer_kind(tmp_path / "both") == "byte-level BPE"
    (tmp_path / "both" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}')
    assert type(load_tokenizer(tmp_path / "both")) is WordPieceTokenizer
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    assert tokenizer_kind(tmp_path) == "WordPiece"
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer that can be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: WordPieceTokenizer(), "is read from vocab_file or from tokenizer_file"),
        (lambda d: WordPieceTokenizer(d / "vocab.txt", tokenizer_file=d / "x.json"), "from vocab_file or from tok"),
        (lambda d: WordPieceTokenizer(d), "is a folder; WordPieceTokenizer.from_pretrained opens it"),
        (lambda d: WordPieceTokenizer(d / "no.txt"), "No such file: .*no.txt"),
        (lambda d: WordPieceTokenizer(tokenizer_file=d / "x.json"), "this is not a WordPiece tokenizer"),
    ],
)
def test_invalid_tokenizer_files_are_refused(tmp_path, make, message):
    folder = write_vocab(tmp_path / "t", TOY)
    (folder / "x.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match=message):
        make(folder)


def test_added_and_named_tokens(toy, tmp_path):
    named = WordPieceTokenizer(tmp_path / "toy" / "vocab.txt", eos_token="[END]", pad_token="<pad>")
    assert (named.eos_token_id, named.pad_token_id, named.new_tokens) == (22, 23, ["[END]", "<pad>"])
    assert named(["a", "a b"], padding=True).input_ids == [[2, 15, 22, 23], [2, 15, 16, 22]]
    without = [token for token in TOY if token != "[PAD]"]
    assert load_tokenizer(write_vocab(tmp_path / "u", without)).pad_token is None
    assert load_tokenizer(tmp_path / "u").pad_token_id == 2  # [SEP]
    toy.add_tokens(["two words"])
    assert not toy.splits_at_spaces
