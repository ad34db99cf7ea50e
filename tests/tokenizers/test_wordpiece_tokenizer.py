"""WordPieceTokenizer against transformers' BertTokenizer, UER-py's rules, and examples computed by hand."""

import json
import logging
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.loading import load_tokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from tests.tokenizers.wordpiece_vocabularies import SPECIAL, any_text, pieces


def plain(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# ---- the same ids as transformers -----------------------------------------------------------------------------------

ANCHORS = {
    "这是很久之前的事情了": [6821, 3221, 2523, 719, 722, 1184, 4638, 752, 2658, 749],
    "今天天气不错": [791, 1921, 1921, 3698, 679, 7231],
    "GPT2模型 is 好的, Hello World!": [13228, 8165, 8144, 3563, 1798, 8310, 1962, 4638, 117, 8701, 8572, 106],
    "双11，3.14": [1352, 8111, 8024, 124, 119, 8122],
    "未知字符𠮷😀　全角": [3313, 4761, 2099, 5016, 100, 100, 1059, 6235],
    "café naïve": [8377, 11469, 8857],
    "[SEP]测试": [102, 3844, 6407],
    "。，！？": [511, 8024, 8013, 8043],
}


def test_known_ids(ours):
    assert {text: plain(ours, text) for text in ANCHORS} == ANCHORS
    assert (len(ours), ours.text_vocab_size, str(ours)) == (21128, 21128, "WordPiece, 21128 tokens, lower case")
    roles = (ours.pad_token_id, ours.unk_token_id, ours.bos_token_id, ours.eos_token_id, ours.mask_token_id)
    assert roles == (0, 100, 101, 102, 103)
    assert (ours.cls_token, ours.cls_token_id, ours.sep_token, ours.sep_token_id) == ("[CLS]", 101, "[SEP]", 102)
    assert ours.encode("今天") == [101, 791, 1921, 102] == ours.build_inputs_with_special_tokens([791, 1921])
    assert ours.document_start == [101]
    assert ours.convert_ids_to_tokens([343, 13502, 21127]) == ["\u2028", "##\u2028", "##😎"]


def test_real_texts_have_the_ids_of_transformers(ours, theirs, shared_data):
    texts = (shared_data / "zh" / "cluecorpussmall_sampled.txt").read_text("utf-8").split("\n")
    poems = json.loads((shared_data / "zh" / "poet.tang.10000.json").read_text("utf-8"))
    texts += ["\n".join(poem["paragraphs"]) for poem in poems]
    for part in ("train", "dev"):
        texts += (shared_data / "sst2" / f"{part}.tsv").read_text("utf-8").split("\n")
    assert len(texts) > 24_000
    ids = ours.encode_batch(texts)
    assert ids == theirs(texts)["input_ids"]
    assert ours.batch_decode(ids[:300], True, spaced=True) == theirs.batch_decode(ids[:300], skip_special_tokens=True)


@pytest.mark.parametrize("lower", [True, False])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(any_text, min_size=1, max_size=3))
def test_generated_unicode_has_the_ids_of_transformers(characters, lower, texts):
    transformers = pytest.importorskip("transformers")
    for flags in ({}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        pair = _pair(transformers, characters, do_lower_case=lower, **flags)
        assert pair[0].encode_batch(texts) == pair[1](texts)["input_ids"]


_pairs = {}


def _pair(transformers, folder, **flags):
    """Our tokenizer and theirs, made once for all generated examples."""
    key = tuple(flags.items())
    if key not in _pairs:
        theirs = transformers.BertTokenizer.from_pretrained(str(folder), **flags)
        _pairs[key] = WordPieceTokenizer.from_pretrained(folder, **flags), theirs
    return _pairs[key]


def test_pairs_equal_transformers(ours, theirs):
    firsts, seconds = ["你好，世界", "ab", "c"], ["今天", "x y z", "q"]
    for options in (
        {},
        {"padding": True},
        {"padding": "max_length", "truncation": True, "max_length": 6},
        {"truncation": "only_second", "max_length": 9},
        {"padding": "max_length", "max_length": 20, "padding_side": "left"},
    ):
        expected = theirs(firsts, seconds, **options)
        assert ours(firsts, seconds, return_token_type_ids=True, **options) == dict(expected)
    assert ours("你好", "世界", return_token_type_ids=True).token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert ours.get_special_tokens_mask([5], [6]) == [1, 0, 1, 0, 1]
    assert ours.num_special_tokens_to_add() == 2 and ours.num_special_tokens_to_add(pair=True) == 3
    assert ours("你好世界", truncation=True, max_length=4).input_ids == [101, *plain(ours, "你好"), 102]
    with pytest.raises(UserError, match="too short for the special tokens"):
        ours("你好", truncation=True, max_length=1)


def test_tokens_equal_transformers(ours, theirs):
    text = "Unaffable 模型2, don't [MASK] ok 𠮷"
    tokens = ours.tokenize(text)
    assert tokens == theirs.tokenize(text)
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == plain(ours, text)
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens) == set(SPECIAL)
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.convert_tokens_to_ids("no token") == 100


# ---- UER's rules ----------------------------------------------------------------------------------------------------


def uer_tokens(text, vocab, lower):
    """The tokens by UER-py's rules: Devlin et al. 2018, tokenization.py, with words of up to 200 characters."""

    def is_punctuation(c):
        return c.isascii() and c.isprintable() and not c.isalnum() or unicodedata.category(c)[0] == "P"

    def is_chinese(c):
        blocks = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF F900-FAFF 2F800-2FA1F"
        return any(int(a, 16) <= ord(c) <= int(b, 16) for a, b in (block.split("-") for block in blocks.split()))

    kept = [c for c in text if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cf") and c != "\ufffd"]
    words = "".join(f" {c} " if is_chinese(c) else c for c in kept).split()
    if lower:
        words = [unicodedata.normalize("NFD", word.lower()) for word in words]
        words = ["".join(c for c in word if unicodedata.category(c) != "Mn") for word in words]
    words = " ".join("".join(f" {c} " if is_punctuation(c) else c for c in word) for word in words).split()
    return [token for word in words for token in pieces(word, vocab)]


@pytest.mark.parametrize("lower", [True, False])
@settings(max_examples=80, deadline=None)
@given(text=any_text)
def test_generated_unicode_by_the_rules_of_uer(characters, lower, text):
    key = ("uer", lower)
    if key not in _pairs:
        uer = WordPieceTokenizer.from_pretrained(characters, rules="uer", do_lower_case=lower)
        _pairs[key] = uer, uer.get_vocab()
    uer, vocab = _pairs[key]
    assert uer.tokenize(text) == uer_tokens(text, vocab, lower)


def test_what_uer_does_differently(chinese_folder, ours, tmp_path):
    shutil.copy(chinese_folder / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"rules": "uer"}')
    uer = load_tokenizer(tmp_path)
    assert str(uer) == "WordPiece, 21128 tokens, lower case, UER's rules"
    same = [text for text in ANCHORS if "[SEP]" not in text]
    assert [plain(uer, text) for text in same] == [ANCHORS[text] for text in same]
    assert plain(uer, "[SEP]测试") == [138, 9463, 140, 3844, 6407]
    assert uer.encode("今天") == [101, 791, 1921, 102]  # a call puts them round a text all the same
    assert (plain(uer, "天\ue000气"), plain(ours, "天\ue000气")) == ([1921, 100, 3698], [1921, 3698])
    assert plain(ours, "z" * 101) == [100] == plain(uer, "z" * 201)
    assert uer.decode(plain(uer, "z" * 101)) == "z" * 101
    uer.save_pretrained(tmp_path / "again")
    assert plain(load_tokenizer(tmp_path / "again"), "[SEP]测试") == [138, 9463, 140, 3844, 6407]
    with pytest.raises(UserError, match="rules must be one of 'transformers', 'uer', .*; it is 'tencent'"):
        load_tokenizer(tmp_path, rules="tencent")
    with pytest.raises(UserError, match="tokenize_chinese_chars: False is not possible with rules: uer"):
        load_tokenizer(tmp_path, tokenize_chinese_chars=False)


def test_real_texts_by_the_rules_of_uer(chinese_folder, shared_data):
    uer = load_tokenizer(chinese_folder, rules="uer")
    vocab = uer.get_vocab()
    texts = (shared_data / "zh" / "cluecorpussmall_sampled.txt").read_text("utf-8").split("\n")[:400]
    assert [uer.convert_ids_to_tokens(row) for row in uer.encode_batch(texts, add_special_tokens=False)] == [
        uer_tokens(text, vocab, lower=True) for text in texts
    ]


# ---- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("今天天气不错。", "今天天气不错。"),
        ("GPT2模型 is 好的, Hello World!", "gpt2模型is好的, hello world!"),
        ("双11，3.14", "双11，3.14"),
        ("it's (not) so bad, 10:30 or 1,000 or 5%; don't", "it's (not) so bad,10:30 or 1,000 or 5%; don't"),
        ("May 5, 2010: 12,345", "may 5, 2010:12,345"),
        ("iphone 12 pro", "iphone 12 pro"),
        ("price: $5 for #1 c++ state-of-the-art", "price: $5 for #1 c++ state-of-the-art"),
        ('he said "hi" twice', 'he said " hi " twice'),
        ("未知𠮷😀全角 𠮷 x 𠮷 5", "未知[UNK][UNK]全角[UNK] x [UNK] 5"),
        ("《你好》～他说·、", "《你好》～他说·、"),
        ("привет мир", "привет мир"),
    ],
)
def test_text_of_tokens(ours, text, decoded):
    ids = plain(ours, text)
    assert ours.decode(ids) == decoded
    assert ours.decode(ours.encode(text)) == f"[CLS]{decoded}[SEP]"
    skipped = ours.decode(ours.encode(text), skip_special_tokens=True)
    assert skipped == decoded.replace("[UNK]", "") or "[UNK]" in decoded
    parts = [ours.token_text(token, before) for before, token in zip([None, *ids], ids, strict=False)]
    assert b"".join(parts).decode() == decoded  # what streaming joins
    assert all(decoded.startswith(ours.decode(ids[:count])) for count in range(len(ids)))


def test_part_of_a_word_is_seen(ours):
    gp, t, two = plain(ours, "GPT2")
    assert ours.decode([gp, t, two]) == "gpt2"
    assert ours.decode([t, two]) == "##t2"
    assert ours.decode([101, t]) == "[CLS]##t"
    assert (ours.token_text(t, gp), ours.token_text(t, None), ours.token_bytes(t)) == (b"t", b"##t", b"t")
    assert ours.decode([gp, 30_000, t]) == "gp##t"  # an embedding table may be larger than the vocabulary
    assert ours.token_bytes(30_000) == b""
    assert ours.decode(791) == "今"


def test_text_of_transformers_on_request(ours, theirs):
    for text in ("GPT2模型 is 好的, Hello World!", "it's 3.14, don't", "[SEP]测试 𠮷"):
        ids = ours.encode(text)
        assert ours.decode(ids, spaced=True) == theirs.decode(ids)
        assert ours.decode(ids, True, spaced=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(plain(ours, "今天 ok"), spaced=True) == "今 天 ok"
    assert ours.convert_tokens_to_string(["今", "天", "hello", "##s"]) == "今天hellos"


def test_a_text_may_be_split_at_spaces(ours):
    assert ours.splits_at_spaces
    text = "Hello World, 今天 天气\n不错 [SEP] don't"
    for place in (i for i, c in enumerate(text) if c in " \n"):
        assert plain(ours, text[:place]) + plain(ours, text[place:]) == plain(ours, text)


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_learns_the_expected_tokens(tmp_path):
    texts = ["aab " * 4, "ab " * 3, "天气天气"]
    tokenizer = WordPieceTokenizer.train(texts, 100, min_frequency=3)
    tokens = list(tokenizer.get_vocab())
    assert tokens[:5] == list(SPECIAL)
    # Pairs: a-##a 4, ##a-##b 4, a-##b 3. The first of equal count is a-##a (by ids), then aa-##b; ab last.
    assert tokens[5:] == ["##a", "##b", "a", "b", "天", "气", "##ab", "aab", "ab"]
    assert tokenizer.tokenize("Aab ab 天气") == ["aab", "ab", "天", "气"]
    again = WordPieceTokenizer.train(texts, 100, min_frequency=3)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert WordPieceTokenizer.train(["Ab " * 9], 30, do_lower_case=False).tokenize("Ab ab") == ["Ab", "[UNK]"]


def test_a_small_vocabulary_keeps_the_most_frequent_characters():
    texts = ["天" * 9 + "气" * 8 + "aa " * 4 + "今" * 7 + "地" * 6 + "，"]
    tokenizer = WordPieceTokenizer.train(texts, 10)
    assert list(tokenizer.get_vocab())[5:] == [
        "##a",
        "a",
        "今",
        "天",
        "气",
    ]  # a has two tokens: a word may go on with it
    assert len(WordPieceTokenizer.train(texts, 100)) == 5 + 2 + 5 + 1
    for size, texts, message in ((6, ["a"], "at least 7; it is 6"), (20, [""], "no text to learn")):
        with pytest.raises(UserError, match=message):
            WordPieceTokenizer.train(texts, size)
    with pytest.raises(UserError, match="min_frequency must be at least 1"):
        WordPieceTokenizer.train(["a"], 20, min_frequency=0)


def test_no_warning_without_a_reason(chinese_folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_tokenizer(chinese_folder)
    assert not caplog.records
