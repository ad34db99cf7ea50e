"""`load_tokenizer`: a kind of tokenizer is recognised by its files, and a new kind is one entry."""

import pytest

import mindgpt
from mindgpt import GPT2Tokenizer
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.loading import KINDS, TOKENIZER_FILES, TokenizerKind, holds_tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    GPT2Tokenizer.train(["a text to learn from, a text"], 260).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("name", ["", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"])
def test_a_folder_or_a_file_in_it_is_opened(folder, name):
    tokenizer = mindgpt.load_tokenizer(folder / name, model_max_length=7)
    assert type(tokenizer) is GPT2Tokenizer and tokenizer.model_max_length == 7
    assert tokenizer.vocab_hash() == GPT2Tokenizer.from_pretrained(folder).vocab_hash()


def test_a_folder_without_a_known_tokenizer_is_refused_with_its_files(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"found model.bin\. Give .*a folder with tokenizer.json.*byte-level BPE"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such folder.*nothing is downloaded"):
        load_tokenizer(tmp_path / "absent")


def test_an_argument_of_another_kind_is_refused(folder):
    with pytest.raises(
        UserError, match="rules: .* kind byte-level BPE, which has no such argument. It has: .*eos_token"
    ):
        load_tokenizer(folder, rules="bert4keras")


def test_the_files_of_all_kinds_are_copied_with_weights():
    assert {"vocab.json", "merges.txt", "tokenizer.json", "vocab.txt", "added_tokens.json"} <= {*TOKENIZER_FILES}


def test_a_new_kind_is_one_entry(folder, tmp_path, monkeypatch):
    toy = TokenizerKind(lambda path: (path / "toy.vocab").exists(), lambda path: path.name, ("toy.vocab",), "a toy")
    monkeypatch.setitem(KINDS, "toy", toy)
    (tmp_path / "toy.vocab").touch()
    assert load_tokenizer(tmp_path) == tmp_path.name and holds_tokenizer(tmp_path)
    assert type(load_tokenizer(folder)) is GPT2Tokenizer
