"""A toy model in a folder with its tokenizer, and a text, for the `mindgpt` command in this process."""

import contextlib
import random
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mindgpt.cli import entry
from mindgpt.config.errors import UserError

WORDS = re.findall("[a-z]+", "the quick brown fox jumps over a lazy dog while seven old ships sail north to new land")
VOCAB_SIZE, POSITIONS = 300, 64


class Toy(NamedTuple):
    """Paths: the model with its tokenizer, the tokenizer alone, a text."""

    model: Path
    tokenizer: Path
    text: Path


def text(lines: int, seed: int) -> str:
    choose = random.Random(seed)
    return "".join(" ".join(choose.choices(WORDS, k=12)) + " .\n" for _ in range(lines))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    from mindgpt import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    folder = tmp_path_factory.mktemp("small")
    toy = Toy(folder / "model", folder / "tokenizer", folder / "my.txt")
    tokenizer = GPT2Tokenizer.train([text(200, seed=1)], VOCAB_SIZE)
    config = GPT2Config(
        num_layers=1, hidden_size=32, num_heads=2, vocab_size=VOCAB_SIZE, seq_length=POSITIONS,
        hidden_dropout_rate=0.0, attention_dropout_rate=0.0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(toy.model)
    tokenizer.save_pretrained(toy.model)
    tokenizer.save_pretrained(toy.tokenizer)
    toy.text.write_text(text(300, seed=2))
    return toy


@pytest.fixture
def mindgpt(tmp_path, monkeypatch):
    """Run `mindgpt` in this process and an empty folder: `mindgpt("info", path)` -> its exit status."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MS_WORKER_NUM", "RANK_ID", "MS_ROLE"):
        monkeypatch.delenv(variable, raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mindgpt", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            entry.main()
        return end.value.code

    hooks = sys.excepthook
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, sys, "excepthook", hooks)
        yield run


@pytest.fixture
def complaint():
    """The message of the `UserError` that a function raises."""

    def message(function, *arguments):
        with pytest.raises(UserError) as caught:
            function(*arguments)
        return str(caught.value)

    return message
