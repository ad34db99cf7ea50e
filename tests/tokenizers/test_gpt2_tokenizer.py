"""GPT2Tokenizer against transformers' GPT-2 tokenizer, and against examples computed by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

EOT = "<|endoftext|>"
# Any character but half a surrogate pair, with the awkward ones made frequent.
awkward = list("\0\t\n\r\x0b\x1f\x85\xa0\u200b\u2028\u3000 '’éß中文ا🎉\u200d\ufeff\U0010ffff")
any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        st.sampled_from([*awkward, "'s", "'LL", "  ", "\n\n", EOT, "<|endof", "123", "don't"]),
    )
).map("".join)


@pytest.fixture(scope="module")
def ours(gpt2_tokenizer_dir):
    return GPT2Tokenizer.from_pretrained(gpt2_tokenizer_dir)


@pytest.fixture(scope="module")
def theirs(gpt2_tokenizer_dir):
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2Tokenizer.from_pretrained(str(gpt2_tokenizer_dir))


def byte_symbols() -> list[str]:
    """GPT-2's 256 byte symbols in order of ids (Radford et al. 2019, encoder.py: visible bytes first)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, visible), *(chr(256 + number) for number in range(256 - len(visible)))]


def write_pair(folder, merges=("h e", "l l", "he ll"), merges_end="\n", **extra):
    """A tokenizer of 256 bytes, a few merges and the end-of-text token, as files."""
    folder.mkdir(exist_ok=True)
    tokens = [*byte_symbols(), *(merge.replace(" ", "") for merge in merges), EOT]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + merges_end, "utf-8")
    for name, content in extra.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


@pytest.fixture
def toy(tmp_path):
    """Ids: 'A'-'Z' 32-57, 'a'-'z' 64-89, he 256, ll 257, hell 258, <|endoftext|> 259."""
    return GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "toy"))


# ---- the same ids as transformers -----------------------------------------------------------------------------------


def test_known_ids(ours):
    assert ours.encode("Hello world") == [15496, 995]
    assert ours.encode(" Hello") == [18435]
    assert ours.encode("\n") == [198]
    assert ours.encode("\n\n") == [628]
    assert len(ours) == ours.vocab_size == 50257
    assert ours.eos_token_id == ours.bos_token_id == ours.unk_token_id == ours.pad_token_id == 50256


def test_wikitext_has_the_ids_of_transformers(ours, theirs, shared_data):
    text = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text("utf-8")
    lines = text.splitlines(keepends=True)
    assert ours.encode_batch(lines) == theirs(lines)["input_ids"]
    whole = ours.encode(text)
    assert whole == theirs(text)["input_ids"]
    assert ours.decode(whole) == text


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(any_text, min_size=1, max_size=4))
def test_unicode_round_trip_equals_transformers(ours, theirs, texts):
    ids = ours.encode_batch(texts)
    assert ids == theirs(texts)["input_ids"]
    assert ours.batch_decode(ids) == texts
    plain = {"clean_up_tokenization_spaces": False}
    for row in ids:
        assert ours.decode(row, skip_special_tokens=True) == theirs.decode(row, skip_special_tokens=True, **plain)
        assert ours.decode(row[:-1]) == theirs.decode(row[:-1], **plain)  # may end in the middle of a character


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(any_text, min_size=1, max_size=4), length=st.integers(1, 12), side=st.sampled_from(["left", "right"])
)
def test_padding_and_truncation_equal_transformers(ours, theirs, texts, length, side):
    theirs.pad_token = EOT
    arguments = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": side}
    expected = theirs(texts, **arguments)
    got = ours(texts, **arguments)
    assert got == {"input_ids": expected["input_ids"], "attention_mask": expected["attention_mask"]}


def test_end_of_text_in_a_text_is_encoded_as_the_token(ours, theirs):
    text = f"One.{EOT}Two. {EOT}\n"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text).count(50256) == 2
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode(text), skip_special_tokens=True) == "One.Two. \n"


# ---- batches --------------------------------------------------------------------------------------------------------


def test_padding_is_masked_and_end_of_text_is_not(toy):
    batch = toy(["hellA", f"he{EOT}", ""], padding=True)
    assert batch["input_ids"] == [[258, 32], [256, 259], [259, 259]]
    assert batch["attention_mask"] == [[1, 1], [1, 1], [0, 0]]
    left = toy(["A", "hellAB"], padding="longest", padding_side="left")
    assert left == {"input_ids": [[259, 259, 32], [258, 32, 33]], "attention_mask": [[0, 0, 1], [1, 1, 1]]}


def test_truncation_max_length_and_tensors(toy):
    batch = toy(["ABC", "A"], padding="max_length", truncation=True, max_length=2, return_tensors="np")
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int32
    np.testing.assert_array_equal(batch["input_ids"], [[32, 33], [32, 259]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1], [1, 0]])
    assert toy("ABC", truncation=True, max_length=2) == {"input_ids": [32, 33], "attention_mask": [1, 1]}
    np.testing.assert_array_equal(toy("AB", return_tensors="np")["input_ids"], [[32, 33]])
    assert toy([]) == {"input_ids": [], "attention_mask": []}


def test_mindspore_tensors(toy):
    mindspore = pytest.importorskip("mindspore")
    batch = toy(["AB", "A"], padding=True, return_tensors="ms")
    assert batch["input_ids"].dtype == mindspore.int32
    np.testing.assert_array_equal(batch["input_ids"].asnumpy(), [[32, 33], [32, 259]])
    assert toy.batch_decode(batch["input_ids"]) == ["AB", f"A{EOT}"]
    assert toy.decode(batch["input_ids"][1], skip_special_tokens=True) == "A"


def test_add_bos_and_eos_tokens(tmp_path):
    folder = write_pair(tmp_path / "t", tokenizer_config={"add_bos_token": True, "bos_token": "<s>"})
    tokenizer = GPT2Tokenizer.from_pretrained(folder, add_eos_token=True)
    assert tokenizer.bos_token_id == 260  # behind <|endoftext|>
    assert tokenizer.encode("AB") == [260, 32, 33, 259]
    assert tokenizer.encode("AB", add_special_tokens=False) == [32, 33]
    assert tokenizer("ABC", truncation=True, max_length=4)["input_ids"] == [260, 32, 33, 259]
    with pytest.raises(UserError, match="too short"):
        tokenizer("ABC", truncation=True, max_length=1)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert GPT2Tokenizer.from_pretrained(tmp_path / "saved").encode("AB") == [260, 32, 33, 259]


def test_model_max_length_is_the_default_of_truncation(tmp_path):
    tokenizer = GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "t", tokenizer_config={"model_max_length": 2}))
    assert tokenizer("ABC", truncation=True)["input_ids"] == [32, 33]
    big = GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "t", tokenizer_config={"model_max_length": int(1e30)}))
    assert big.model_max_length is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "A", "truncation": True}, "need max_length"),
        ({"text": "A", "padding": "max_length"}, "need max_length"),
        ({"text": "A", "padding": "always"}, "padding must be one of False, True, 'longest', 'max_length'"),
        ({"text": "A", "padding": True, "padding_side": "top"}, "padding_side must be one of 'right', 'left'"),
        ({"text": "A", "truncation": True, "max_length": 0}, "at least 1; it is 0"),
        ({"text": "A", "return_tensors": "tf"}, "return_tensors must be one of None, 'np', 'ms', 'pt'"),
        ({"text": "A", "truncation": "first"}, "truncation must be one of False, True, 'longest_first'"),
        ({"text": ["A"], "text_pair": ["A", "B"]}, "text and text_pair belong together: there are 1 and 2"),
        ({"text": "A", "text_pair": "BCD", "truncation": "only_first", "max_length": 2}, "fewer than the 2 tokens"),
        ({"text": ["A", "AB"], "return_tensors": "np"}, "padding=True"),
        ({"text": ["A", 7]}, "text 1 is a int"),
        ({"text": ["A\ud800"]}, "half a surrogate pair at character 1"),
    ],
)
def test_wrong_calls_are_explained(toy, arguments, message):
    with pytest.raises(UserError, match=message):
        toy(**arguments)


@pytest.mark.parametrize("ids", [[-1], [0.5], [[1, 2]], ["a"]])
def test_decode_refuses_invalid_ids(toy, ids):
    with pytest.raises(UserError, match="one row of token ids"):
        toy.decode(ids)


def test_decode_takes_lists_arrays_and_single_ids(toy):
    assert toy.decode([]) == ""
    assert toy.decode(258) == toy.decode(np.int32(258)) == toy.decode(np.array([258])) == "hell"
    assert toy.decode([32, 9999, 33]) == "AB"  # an embedding table may be larger than the vocabulary


# ---- files ----------------------------------------------------------------------------------------------------------


def test_last_merge_counts_without_a_final_line_end(tmp_path):
    tokenizer = GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "t", merges_end=""))
    assert tokenizer.encode("hell") == [258]


@pytest.mark.parametrize("which", ["gpt2", "toy"])
def test_saved_files_open_here_and_in_transformers(request, which, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue("ours" if which == "gpt2" else "toy")
    tokenizer.save_pretrained(tmp_path / "new" / "saved")
    assert sorted(p.name for p in (tmp_path / "new" / "saved").iterdir()) == sorted(GPT2Tokenizer.FILES)
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (pair / name).write_bytes((tmp_path / "new" / "saved" / name).read_bytes())
    text = f"hello shell, it's  HELL\n\n{EOT}é🎉\0"
    ids = tokenizer.encode(text)
    for folder in (tmp_path / "new" / "saved", pair):
        again = GPT2Tokenizer.from_pretrained(folder)
        assert again.encode(text) == ids
        assert again.vocab_hash() == tokenizer.vocab_hash()
        for kind in (transformers.GPT2Tokenizer, transformers.GPT2TokenizerFast):
            other = kind.from_pretrained(str(folder))
            assert other.encode(text) == ids
            assert other.eos_token_id == tokenizer.eos_token_id


def test_files_saved_by_transformers_open_here(ours, theirs, tmp_path):
    theirs.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    theirs.add_tokens(["mindgpt"])
    theirs.save_pretrained(str(tmp_path))
    tokenizer = GPT2Tokenizer.from_pretrained(tmp_path)
    text = "a<sep>b mindgpt c"
    assert tokenizer.encode(text) == theirs.encode(text)
    assert 50257 in tokenizer.encode(text)
    assert 50258 in tokenizer.encode(text)
    assert len(tokenizer) == 50259


def test_added_tokens_of_the_settings_files(tmp_path):
    folder = write_pair(
        tmp_path / "t", added_tokens={"<pad>": 260}, special_tokens_map={"pad_token": {"content": "<pad>"}}
    )
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == 260
    assert tokenizer(["AB", "A"], padding=True)["input_ids"] == [[32, 33], [32, 260]]
    write_pair(tmp_path / "t", added_tokens={"<pad>": 261})
    with pytest.raises(UserError, match="should have id 261 but gets 260"):
        GPT2Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "vocab.json missing"),
        ("merges.txt", None, "merges.txt missing"),
        ("vocab.json", b'{"a": 1,,}', r"vocab.json:1:9: not valid JSON"),
        ("vocab.json", b"[1, 2]", "vocab.json: should hold a JSON object"),
        ("vocab.json", b'{"a": "x"}', "token 'a': a token id is a whole number"),
        ("vocab.json", b'{"a": 1, "b": 1}', "'a' and 'b' have the same id 1"),
        ("vocab.json", b'{"a": 1}', r"merges.txt:2: token 'h' is not in .*vocab.json"),
        ("vocab.json", b"\xff{}", "vocab.json:1: not UTF-8: byte 0xff at offset 0"),
        ("merges.txt", b"#version: 0.2\nh e l\n", r"merges.txt:2: a merge is two tokens"),
        ("merges.txt", b"#version: 0.2\nx y\n", r"merges.txt:2: token 'xy' is not in .*do not belong together"),
        ("tokenizer.json", b"{", r"tokenizer.json:1:\d+: not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "not a byte-level BPE tokenizer"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}}', "that can be read"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: should hold a JSON object"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "tokenizer_config.json: eos_token: should be a token"),
        ("tokenizer_config.json", b'{"padding_side": "up"}', "padding_side must be one of"),
        ("added_tokens.json", b'{"x": -1}', "a token id is a whole number"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    folder = write_pair(tmp_path / "t")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        GPT2Tokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_a_model_name_is_not_a_folder():
    with pytest.raises(UserError, match="no such folder.*nothing is downloaded"):
        GPT2Tokenizer.from_pretrained("gpt2-no-such-folder")


def test_a_vocabulary_without_some_bytes_is_reported(tmp_path, caplog):
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "vocab.json").write_text('{"a": 0, "b": 1}', "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    GPT2Tokenizer.from_pretrained(folder)
    assert "lacks 241 of the 256 bytes" in caplog.text  # 256 - 2 - the 13 that UTF-8 never uses


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_learns_the_expected_merges():
    # "aab" 4 times, "ab" 3 times: pairs a-b 7, a-a 4 -> first merge "ab"; then a-ab 4 -> "aab"; nothing is left.
    tokenizer = GPT2Tokenizer.train(["aab " * 4, "ab " * 3], 300, min_frequency=4)
    tokens = list(tokenizer.get_vocab())
    assert set(tokens[:256]) == set(byte_symbols())
    assert tokens[256] == "ab"
    assert tokens[-1] == EOT
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert len(tokenizer.encode("aab")) == 1


def test_training_is_repeatable_and_transformers_agrees(tmp_path, shared_data):
    transformers = pytest.importorskip("transformers")
    file = shared_data / "text" / "tinyshakespeare.txt"
    text = file.read_text("utf-8")[:200_000]
    (tmp_path / "part.txt").write_text(text, "utf-8")
    one = GPT2Tokenizer.train([text], 600)
    assert len(one) == 600
    two = GPT2Tokenizer.train([tmp_path / "part.txt"], 600)
    assert one.vocab_hash() == two.vocab_hash()
    two.save_pretrained(tmp_path / "t")
    assert transformers.GPT2Tokenizer.from_pretrained(str(tmp_path / "t")).encode(text) == one.encode(text)
    assert one.decode(one.encode(text + "☃\0")) == text + "☃\0"
    assert len(one.encode(text)) < 0.6 * len(text)


@pytest.mark.parametrize(
    ("texts", "size", "frequency", "message"),
    [(["a"], 256, 2, "at least 257"), (["a"], 300, 0, "min_frequency"), (["", ""], 300, 2, "no text")],
)
def test_invalid_training_arguments_are_explained(texts, size, frequency, message):
    with pytest.raises(UserError, match=message):
        GPT2Tokenizer.train(texts, size, min_frequency=frequency)


def test_the_tokenizer_does_not_load_mindspore(repo):
    code = "import sys, mindgpt.tokenizers.gpt2_tokenizer; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo).returncode == 0


def test_splits_at_spaces_is_false_if_tokens_span_spaces(tmp_path):
    assert GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "a")).splits_at_spaces
    over = write_pair(tmp_path / "b", added_tokens={"he he": 260})
    assert not GPT2Tokenizer.from_pretrained(over).splits_at_spaces
    eats = {"260": {"content": "<s>", "lstrip": True, "special": True}}
    eats = write_pair(tmp_path / "c", tokenizer_config={"added_tokens_decoder": eats})
    assert not GPT2Tokenizer.from_pretrained(eats).splits_at_spaces
    prefix = write_pair(tmp_path / "d", tokenizer_config={"add_prefix_space": True})
    assert not GPT2Tokenizer.from_pretrained(prefix).splits_at_spaces
    assert GPT2Tokenizer.from_pretrained(prefix).encode("A") == [220, 32]  # byte 0x20 is the 33rd of the later symbols
