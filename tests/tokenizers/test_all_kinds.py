"""What `BaseTokenizer` promises, for every kind of tokenizer."""

import io

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.loading import load_tokenizer, tokenizer_kind
from mindgpt.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer

LEARNED = ["the quick brown fox, the lazy dog. 今天天气很好，今天很好。"] * 4
TEXTS = ["the quick fox", "今天很好", "the dog, the fox，天气", ""]


def sentencepiece_tokenizer():
    """As Llama's, so that it encodes every text."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNED), model_writer=model, vocab_size=340, model_type="bpe", byte_fallback=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model=model.getvalue(), add_bos_token=True)


@pytest.fixture(params=["byte-level BPE", "WordPiece", "SentencePiece", "Jieba"])
def tokenizer(request):
    if request.param == "SentencePiece":
        return sentencepiece_tokenizer()
    if request.param == "Jieba":
        pytest.importorskip("jieba")
    make = {
        "byte-level BPE": (GPT2Tokenizer, 320),
        "WordPiece": (WordPieceTokenizer, 80),
        "Jieba": (JiebaTokenizer, 290),
    }
    kind, size = make[request.param]
    found = kind.train(LEARNED, size)
    assert found.kind == request.param
    return found


def test_saved_and_opened_again(tokenizer, tmp_path):
    tokenizer.add_tokens(["mindgpt"])
    tokenizer.add_tokens(["<x>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_kind(tmp_path) == tokenizer.kind
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    assert str(again) == str(tokenizer) and str(again).startswith(f"{tokenizer.kind}, {len(tokenizer)} tokens")
    assert again.get_vocab() == tokenizer.get_vocab() and again.vocab_hash() == tokenizer.vocab_hash()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    texts = [*TEXTS, "mindgpt<x>"]
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)


def test_decoding_is_joining_what_each_token_adds(tokenizer):
    """With ids in an order that no text has, special ones and ids outside the vocabulary among them."""
    random = np.random.default_rng(0)
    for _ in range(200):
        ids = random.integers(0, len(tokenizer) + 3, random.integers(0, 12)).tolist()
        parts = [tokenizer.token_text(token, before) for before, token in zip([None, *ids], ids, strict=False)]
        assert b"".join(parts).decode("utf-8", "replace") == tokenizer.decode(ids)
        if isinstance(tokenizer, JiebaTokenizer) and tokenizer.sep_token_id in ids:
            ids = ids[: ids.index(tokenizer.sep_token_id)]  # what follows is left out with special tokens
        kept = [token for token in ids if token not in tokenizer.all_special_ids]
        assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(kept)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_a_call_puts_the_special_tokens_round_a_text(tokenizer):
    for text in TEXTS[:3]:
        bare = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.encode(text)
        assert tokenizer.build_inputs_with_special_tokens(bare) == whole
        assert len(whole) == len(bare) + tokenizer.num_special_tokens_to_add()
        assert [i for i, mark in zip(whole, tokenizer.get_special_tokens_mask(bare), strict=True) if not mark] == bare
        assert whole[: len(tokenizer.document_start)] == tokenizer.document_start
    pair = tokenizer(*TEXTS[:2], return_token_type_ids=True)
    assert (
        len(pair.token_type_ids)
        == len(pair.input_ids)
        == len(tokenizer.get_special_tokens_mask([], []))
        + sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS[:2])
    )


def test_padding_truncation_and_tensors(tokenizer):
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="np")
    lengths = [len(tokenizer.encode(text)) for text in TEXTS[:3]]
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert set(batch.input_ids[batch.attention_mask == 0]) <= {tokenizer.pad_token_id}
    assert tokenizer.batch_decode(batch.input_ids, True) == TEXTS[:3]
    for length in (3, 5):
        short = tokenizer(TEXTS[2], truncation=True, max_length=length).input_ids
        kept = length - tokenizer.num_special_tokens_to_add()
        bare = tokenizer.encode(TEXTS[2], add_special_tokens=False)
        assert short == tokenizer.build_inputs_with_special_tokens(bare[:kept])
    with pytest.raises(UserError, match="text 1 is a int"):
        tokenizer(["a", 7])
    with pytest.raises(UserError, match="half a surrogate pair"):
        tokenizer("\ud83d")


def test_a_text_split_before_a_space_keeps_its_ids(tokenizer):
    if isinstance(tokenizer, SentencePieceTokenizer):  # it puts a space before every text
        assert not tokenizer.splits_at_spaces
        return
    assert tokenizer.splits_at_spaces
    text = "the quick fox,\nthe dog 今天 天气"
    whole = tokenizer.encode(text, add_special_tokens=False)
    for place in (i for i, c in enumerate(text) if c in " \n"):
        parts = [tokenizer.encode(part, add_special_tokens=False) for part in (text[:place], text[place:])]
        assert sum(parts, []) == whole


def test_added_tokens_are_written_as_they_are(tokenizer):
    size = len(tokenizer)
    before = tokenizer.vocab_hash()
    assert tokenizer.add_tokens(["新词Abc", "the"]) in (1, 2)  # "the" is in one of the vocabularies
    assert len(tokenizer) > size and tokenizer.vocab_hash() != before
    ids = tokenizer.encode("今天新词Abc", add_special_tokens=False)
    assert size in ids
    assert tokenizer.decode(ids) == "今天新词Abc"
    assert tokenizer.convert_ids_to_tokens(size) == "新词Abc"
