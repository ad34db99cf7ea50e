"""A small tokenizer, trained here."""

import functools
import importlib.util
import sys

import pytest

from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.loading import load_tokenizer


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


@pytest.fixture(scope="session")
def wordpiece_dir(tmp_path_factory):
    """A vocab.txt with the special ids of BERT's Chinese vocabulary, then letters and a few Chinese characters."""
    folder = tmp_path_factory.mktemp("wordpiece")
    special = ["[PAD]", *(f"[unused{number}]" for number in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*"abcdefgh", "good", "bad", *"唐诗春眠不觉晓處聞啼鳥，。", "##x"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def wordpiece(wordpiece_dir):
    return load_tokenizer(wordpiece_dir)


@pytest.fixture
def run_tool(repo, monkeypatch):
    """Run the `main` of a tool, such as "tools/train_tokenizer.py", in this process."""

    def run(tool, *arguments):
        spec = importlib.util.spec_from_file_location("tool", repo / tool)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        module.main(list(map(str, arguments)))

    return run


@pytest.fixture
def text_tool(run_tool):
    """Run text_to_mindrecord.py in this process."""
    return functools.partial(run_tool, "tools/dataset_preprocess/text_to_mindrecord.py")
