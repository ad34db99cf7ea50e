"""The real vocabulary of Chinese BERT and GPT-2, in our tokenizer and that of transformers."""

import shutil
import unicodedata

import pytest

from mindgpt.tokenizers.loading import load_tokenizer
from tests.tokenizers.wordpiece_vocabularies import PARTS, SPECIAL, write_vocab


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


@pytest.fixture(scope="session")
def characters(tmp_path_factory):
    """A vocabulary of single characters, so that [UNK] hides no rule: all that generated texts often hold."""
    known = [c for c in map(chr, range(0x21, 0x3000)) if unicodedata.category(c) not in ("Cc", "Zs", "Zl", "Zp")]
    known += [c for part in PARTS for c in part if c.strip() and c not in known and c.isprintable()]
    known += [*"\ue000\U000f0000\U0002b820", *map(chr, range(0x3041, 0x3100)), *map(chr, range(0xFF01, 0xFF60))]
    known = list(dict.fromkeys(c for c in known if c.strip()))
    return write_vocab(tmp_path_factory.mktemp("characters"), [*SPECIAL, *known, *(f"##{c}" for c in known)])
