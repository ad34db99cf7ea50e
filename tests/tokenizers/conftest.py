"""The real vocabulary of Chinese BERT and GPT-2, in our tokenizer and that of transformers."""

import shutil

import pytest

from mindgpt.tokenizers.loading import load_tokenizer


@pytest.fixture(scope="session")
def chinese_vocab(shared_data):
    """A vocabulary of 21,128 tokens, one a line."""
    return shared_data / "zh" / "google_zh_vocab.txt"


@pytest.fixture(scope="session")
def chinese_folder(chinese_vocab, tmp_path_factory):
    """A folder that holds it as vocab.txt, and nothing else."""
    folder = tmp_path_factory.mktemp("chinese")
    shutil.copy(chinese_vocab, folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def ours(chinese_folder):
    return load_tokenizer(chinese_folder)


@pytest.fixture(scope="module")
def theirs(chinese_folder):
    return pytest.importorskip("transformers").BertTokenizer.from_pretrained(str(chinese_folder))
