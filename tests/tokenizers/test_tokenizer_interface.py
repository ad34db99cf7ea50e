"""The interface of MindFormers' and transformers' GPT-2 tokenizers: constructor, tokens, special tokens, pairs."""

import json
import sys

import numpy as np
import pytest

import mindgpt
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer, GPT2TokenizerFast
from tests.tokenizers.test_gpt2_tokenizer import EOT, byte_symbols, write_pair

# The toy vocabulary of transformers' own tests of its GPT-2 tokenizer.
SMALL = [*"lowerstidn", "Ġ", "Ġl", "Ġn", "Ġlo", "Ġlow", "er", "Ġlowest", "Ġnewer", "Ġwider", "<unk>", EOT]
SMALL = list(dict.fromkeys(SMALL))


@pytest.fixture
def files(tmp_path):
    """The toy vocabulary under names of one's own."""
    (tmp_path / "my-vocab.json").write_text(json.dumps({token: number for number, token in enumerate(SMALL)}), "utf-8")
    (tmp_path / "my.merges").write_text("#version: 0.2\nĠ l\nĠl o\nĠlo w\ne r\n", "utf-8")
    return tmp_path / "my-vocab.json", tmp_path / "my.merges"


@pytest.fixture
def toy(tmp_path):
    """Ids: 'A'-'Z' 32-57, 'a'-'z' 64-89, he 256, ll 257, hell 258, <|endoftext|> 259."""
    return GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "toy"))


@pytest.fixture(params=["toy", "gpt2"])
def both(request, tmp_path):
    """Our tokenizer and that of transformers, of the same two files."""
    transformers = pytest.importorskip("transformers")
    folder = write_pair(tmp_path / "toy") if request.param == "toy" else request.getfixturevalue("gpt2_tokenizer_dir")
    names = {"vocab_file": str(folder / "vocab.json"), "merges_file": str(folder / "merges.txt")}
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(folder))
    return GPT2Tokenizer(**names), theirs


TEXT = "Hello shell, it's hell\n\n é🎉 "


def test_tokens_and_ids_equal_transformers(both):
    ours, theirs = both
    tokens = ours.tokenize(TEXT)
    assert tokens == theirs.tokenize(TEXT)
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == ours.encode(TEXT)
    assert ours.convert_ids_to_tokens(ours.encode(TEXT)) == tokens
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens) == TEXT
    ids = [5, ours.eos_token_id, 60000]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids) == ["&", EOT, None]
    assert ours.convert_ids_to_tokens(ids[:2], skip_special_tokens=True) == ["&"]
    assert ours.convert_ids_to_tokens(5) == ours.convert_ids_to_tokens(np.int64(5)) == "&"
    assert ours.convert_tokens_to_ids("no token") == ours.unk_token_id == theirs.convert_tokens_to_ids("no token")
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    assert ours.get_vocab() == theirs.get_vocab()


def test_pairs_equal_transformers(both):
    ours, theirs = both
    theirs.pad_token = EOT
    firsts, seconds = ["hello", "a", "it's hell and more"], ["b", "shell shell shell", "é"]
    for options in (
        {},
        {"padding": True},
        {"padding": "max_length", "truncation": True, "max_length": 5},
        {"padding": True, "truncation": "only_first", "max_length": 40, "padding_side": "left"},
    ):
        expected = theirs(firsts, seconds, return_token_type_ids=True, **options)
        assert ours(firsts, seconds, return_token_type_ids=True, **options) == dict(expected)
    assert ours.encode("a", "b") == theirs.encode("a", "b")
    assert ours.build_inputs_with_special_tokens([1, 2], [3]) == [1, 2, 3]
    assert ours.build_inputs_with_special_tokens([1, 2]) == [1, 2]
    assert ours.create_token_type_ids_from_sequences([1, 2], [3]) == [0, 0, 1]
    assert ours.get_special_tokens_mask([1, 2], [3]) == [0, 0, 0]
    ids = [5, ours.eos_token_id]
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == [0, 1]
    assert theirs.get_special_tokens_mask(ids, already_has_special_tokens=True) == [0, 1]


def test_truncating_a_pair_longest_first(toy):
    assert toy("ABCDEF", "GH", truncation=True, max_length=5).input_ids == toy.encode("ABC") + toy.encode("GH")
    assert toy("AB", "CDEFGH", truncation=True, max_length=5).input_ids == toy.encode("AB") + toy.encode("CDE")
    second = toy("AB", "CDEFGH", truncation="only_second", max_length=3)
    assert second.input_ids == toy.encode("AB") + toy.encode("C")


def test_special_tokens_around_texts(tmp_path):
    """With bos and eos, as MindFormers 1.5 puts them: bos A eos bos B eos, the second three of type 1."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    folder = write_pair(tmp_path / "t")
    tokenizer = GPT2Tokenizer(folder / "vocab.json", folder / "merges.txt", **names)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (bos, eos) == (260, 261)
    assert tokenizer.build_inputs_with_special_tokens([32, 33]) == [bos, 32, 33, eos] == tokenizer.encode("AB")
    pair = [bos, 32, eos, bos, 33, 34, eos]
    assert tokenizer.build_inputs_with_special_tokens([32], [33, 34]) == pair == tokenizer.encode("A", "BC")
    assert tokenizer.create_token_type_ids_from_sequences([32], [33, 34]) == [0, 0, 0, 1, 1, 1, 1]
    assert tokenizer.create_token_type_ids_from_sequences([32]) == [0, 0, 0]
    assert tokenizer.get_special_tokens_mask([32], [33, 34]) == [1, 0, 1, 1, 0, 0, 1]
    assert tokenizer.get_special_tokens_mask([32]) == [1, 0, 1]
    assert tokenizer.get_special_tokens_mask(pair, already_has_special_tokens=True) == [1, 0, 1, 1, 0, 0, 1]
    batch = tokenizer(["A"], ["BC"], return_token_type_ids=True, truncation=True, max_length=6)
    assert batch.input_ids == [[bos, 32, eos, bos, 33, eos]]
    assert batch.token_type_ids == [[0, 0, 0, 1, 1, 1]]
    assert tokenizer.encode("A", "BC", add_special_tokens=False) == [32, 33, 34]
    assert tokenizer.tokenize("A") == ["A"]
    assert tokenizer.tokenize("A", add_special_tokens=True) == ["<s>", "A", "</s>"]
    with pytest.raises(UserError, match="are one list"):
        tokenizer.get_special_tokens_mask([1], [2], already_has_special_tokens=True)


def test_the_toy_vocabulary_of_transformers_tests(files):
    for tokenizer in (GPT2Tokenizer(*files), GPT2Tokenizer(vocab_file=files[0], merges_file=str(files[1]))):
        tokens = tokenizer.tokenize(" lower newer")
        assert tokens == ["Ġlow", "er", "Ġ", "n", "e", "w", "er"]
        ids = tokenizer.convert_tokens_to_ids([*tokens, EOT])
        assert ids == [SMALL.index(token) for token in [*tokens, EOT]]
        assert tokenizer.decode(ids) == f" lower newer{EOT}"
        assert tokenizer.build_inputs_with_special_tokens(ids) == ids
    spaced = GPT2Tokenizer(*files, add_prefix_space=True, unk_token="<unk>")
    assert spaced.tokenize("lower newer") == tokens
    assert spaced.build_inputs_with_special_tokens([1, 2], [3]) == [1, 2, 3]
    assert spaced.convert_tokens_to_ids("Ġxyz") == SMALL.index("<unk>")


def test_a_batch_has_keys_and_attributes(toy):
    batch = toy(["AB", "A"], padding=True)
    assert batch.input_ids == batch["input_ids"] == [[32, 33], [32, 259]]
    assert batch.attention_mask == [[1, 1], [1, 0]]
    assert list(batch) == ["input_ids", "attention_mask"]
    assert list(toy("A", return_attention_mask=False)) == ["input_ids"]
    with pytest.raises(AttributeError, match="the batch has no labels; it has input_ids, attention_mask"):
        batch.labels  # noqa: B018
    assert toy.encode("ABC", truncation=True, max_length=2) == [32, 33]
    assert toy.encode("A", padding="max_length", max_length=3) == [32, 259, 259]
    with pytest.raises(UserError, match="encode takes one text"):
        toy.encode(["A"])


def test_tensors_of_torch(toy, monkeypatch):
    torch = pytest.importorskip("torch")
    batch = toy(["AB", "A"], padding=True, return_tensors="pt")
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert batch.input_ids.tolist() == [[32, 33], [32, 259]]
    assert toy.encode("AB", return_tensors="pt").tolist() == [[32, 33]]
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="return_tensors='pt' needs PyTorch, which is not installed"):
        toy("AB", return_tensors="pt")


def test_one_class_under_two_names():
    assert mindgpt.GPT2TokenizerFast is mindgpt.GPT2Tokenizer is GPT2TokenizerFast
    assert "GPT2TokenizerFast" in mindgpt.__all__


def test_save_vocabulary(both, tmp_path):
    ours, theirs = both
    written = ours.save_vocabulary(tmp_path / "new")
    assert written == (str(tmp_path / "new" / "vocab.json"), str(tmp_path / "new" / "merges.txt"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["merges.txt", "vocab.json"]
    assert ours.save_vocabulary(str(tmp_path / "new"), "my")[0] == str(tmp_path / "new" / "my-vocab.json")
    for again in (GPT2Tokenizer(*written), type(theirs)(*written)):
        assert list(again.encode(TEXT)) == ours.encode(TEXT)


def test_add_tokens(toy):
    assert toy.add_tokens(["mindgpt", "hell"]) == 1
    assert toy.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<sep>"]}) == 2
    assert (len(toy), toy.pad_token_id) == (263, 261)
    assert toy.encode("A<sep>mindgpt") == [32, 262, 260]
    assert toy(["A", "AB"], padding=True).input_ids == [[32, 261], [32, 33]]
    assert toy.decode([32, 261, 262], skip_special_tokens=True) == "A"
    assert toy.special_tokens_map == {"bos_token": EOT, "eos_token": EOT, "unk_token": EOT, "pad_token": "[PAD]"}
    toy.pad_token_id = toy.eos_token_id
    assert toy.pad_token == EOT
    toy.pad_token = "<sep>"
    assert toy.pad_token_id == 262
    with pytest.raises(UserError, match="no role 'padding'"):
        toy.add_special_tokens({"padding": "x"})


# ---- files under any names ------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    """Another tokenizer's files under the usual names, beside which the wanted ones lie."""
    folder = tmp_path / "d"
    GPT2Tokenizer.from_pretrained(write_pair(folder, merges=("o t", "h e"))).save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text('{"eos_token": "ot"}')
    return folder


def test_named_files_are_read_and_no_others(other, toy, tmp_path):
    toy.save_vocabulary(other, "gpt2")
    toy.save_pretrained(tmp_path / "whole")
    (other / "mine.json").write_bytes((tmp_path / "whole" / "tokenizer.json").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (other / "gpt2-merges.txt").rename(tmp_path / "elsewhere" / "m")
    for tokenizer in (
        GPT2Tokenizer(other / "gpt2-vocab.json", tmp_path / "elsewhere" / "m"),
        GPT2Tokenizer(tokenizer_file=other / "mine.json"),
    ):
        assert tokenizer.vocab_hash() == toy.vocab_hash()
        assert tokenizer.encode("hello other") == toy.encode("hello other")
        assert tokenizer.eos_token == EOT


def test_a_file_may_be_named_instead_of_its_folder(other, toy, tmp_path):
    toy.save_vocabulary(other, "gpt2")
    for name in ("gpt2-vocab.json", "gpt2-merges.txt"):
        assert GPT2Tokenizer.from_pretrained(other / name).encode("hell") == [258]
    (other / "gpt2-vocab.json").rename(other / "encoder.json")
    (other / "gpt2-merges.txt").rename(other / "vocab.bpe")
    assert GPT2Tokenizer.from_pretrained(other / "encoder.json").encode("hell") == [258]
    assert GPT2Tokenizer.from_pretrained(other / "vocab.json").encode("hell") != [258]
    assert GPT2Tokenizer.from_pretrained(other / "tokenizer_config.json").encode("hell") != [258]
    toy.save_pretrained(tmp_path / "whole")
    (other / "mine.json").write_bytes((tmp_path / "whole" / "tokenizer.json").read_bytes())
    assert GPT2Tokenizer.from_pretrained(other / "mine.json").encode("hell") == [258]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: GPT2Tokenizer(), "from vocab_file and merges_file together, or from tokenizer_file"),
        (lambda d: GPT2Tokenizer(d / "vocab.json"), "from vocab_file and merges_file together"),
        (
            lambda d: GPT2Tokenizer(d / "vocab.json", d / "merges.txt", tokenizer_file=d / "tokenizer.json"),
            "together, or",
        ),
        (
            lambda d: GPT2Tokenizer(d, d / "merges.txt"),
            "vocab_file: .*d is a folder; GPT2Tokenizer.from_pretrained opens",
        ),
        (lambda d: GPT2Tokenizer(d / "no.json", d / "merges.txt"), "No such file: .*no.json"),
        (lambda d: GPT2Tokenizer.from_pretrained(d / "x-vocab.json"), "x-merges.txt is missing.*vocab_file and"),
        (lambda d: GPT2Tokenizer.from_pretrained(d / "tokenizer.model"), "is not a file of a GPT-2 tokenizer"),
        (
            lambda d: GPT2Tokenizer(d / "vocab.json", d / "merges.txt", errors="strict"),
            "errors must be one of 'replace'",
        ),
    ],
)
def test_invalid_tokenizer_files_are_refused(other, make, message):
    (other / "x-vocab.json").write_text("{}")
    (other / "tokenizer.model").write_text("")
    with pytest.raises(UserError, match=message):
        make(other)


def test_byte_order_marks_in_the_files(tmp_path, toy):
    folder = write_pair(tmp_path / "t")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    (folder / "merges.txt").write_text("\ufeffh e\n\ufeffl l\nhe ll\n", "utf-8")
    assert GPT2Tokenizer.from_pretrained(folder).encode("hell") == [258]


# ---- special tokens of their own ------------------------------------------------------------------------------------


def with_tokens(folder, *special):
    """A folder whose vocabulary ends in these tokens and lacks <|endoftext|>."""
    write_pair(folder)
    tokens = [*byte_symbols(), "he", "ll", "hell", *special]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("special", "eos", "bos", "unk"),
    [
        (("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "</s>", "<s>", "<unk>"),
        (("<eos>",), "<eos>", "<eos>", "<eos>"),
        (("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "[SEP]", "[CLS]", "[UNK]"),
        (("<|begin_of_text|>", "<|end_of_text|>"), "<|end_of_text|>", "<|begin_of_text|>", "<|end_of_text|>"),
        (("</s>", EOT), EOT, EOT, EOT),
    ],
)
def test_a_known_end_of_text_token_is_used(tmp_path, special, eos, bos, unk):
    tokenizer = GPT2Tokenizer.from_pretrained(with_tokens(tmp_path / "t", *special))
    assert len(tokenizer) == 259 + len(special)
    assert tokenizer.new_tokens == []
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == (eos, bos, unk)
    assert tokenizer.eos_token_id == 259 + special.index(eos)
    assert tokenizer.encode(f"hell{eos}") == [258, tokenizer.eos_token_id]
    assert tokenizer.decode([258, tokenizer.eos_token_id], skip_special_tokens=True) == "hell"


def test_named_tokens_take_precedence(tmp_path):
    folder = with_tokens(tmp_path / "t", "<s>", "</s>", "<end>")
    tokenizer = GPT2Tokenizer.from_pretrained(folder, eos_token="<end>")
    assert (tokenizer.eos_token_id, tokenizer.bos_token, tokenizer.unk_token) == (261, "<s>", "<end>")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<end>", "bos_token": "<end>"}')
    assert GPT2Tokenizer.from_pretrained(folder).bos_token_id == 261


def test_end_of_text_is_added_if_none_is_known(tmp_path):
    tokenizer = GPT2Tokenizer.from_pretrained(with_tokens(tmp_path / "t", "<fin>"))
    assert (tokenizer.eos_token_id, tokenizer.new_tokens) == (260, [EOT])


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_additional_special_tokens_of_the_files_are_tokens(tmp_path, file):
    folder = write_pair(tmp_path / "t")
    (folder / file).write_text('{"additional_special_tokens": ["<a>", {"content": "<b>"}]}')
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "u"))) + 2
    first = len(tokenizer) - 2
    assert tokenizer.encode("x<b>y<a>")[1::2] == [first + 1, first]
    assert len(GPT2Tokenizer.from_pretrained(folder, additional_special_tokens=[])) == first
    tokenizer.save_pretrained(tmp_path / "again")
    assert GPT2Tokenizer.from_pretrained(tmp_path / "again").encode("x<b>") == tokenizer.encode("x<b>")


def test_text_vocab_size_without_trailing_padding_token(tmp_path):
    folder = write_pair(tmp_path / "t", special_tokens_map={"pad_token": "[PAD]", "unk_token": "[UNK]"})
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    assert (len(tokenizer), tokenizer.text_vocab_size) == (262, 260)
    assert GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "u")).text_vocab_size == 260
    ends = GPT2Tokenizer.from_pretrained(write_pair(tmp_path / "v"), pad_token="<end>", eos_token="<end>")
    assert len(ends) == ends.text_vocab_size == 261
