"""A small tokenizer, trained here."""

import pytest

from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with a few merges; the end-of-text token is the last."""
    text = "the quick brown fox jumps over the lazy dog . = Heading = the end and the beginning of the town"
    return GPT2Tokenizer.train([text] * 3, 300)


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder
