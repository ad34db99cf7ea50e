"""examples/fine_tune_own_text.py at toy size, as a user starts it."""

import sys
from pathlib import Path

import pytest

from tests import programs

REPO = Path(__file__).resolve().parents[2]
PROGRAM = REPO / "examples" / "fine_tune_own_text.py"
SIZES = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "vocab_size": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer, and a text."""
    from mindgpt.checkpoints.gpt2_config import GPT2Config
    from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer

    folder = tmp_path_factory.mktemp("own")
    text = "tell me a fairy story: once upon a time a fox met a crow with a piece of cheese.\n" * 60
    (folder / "my.txt").write_text(text)
    GPT2Tokenizer.train([text], SIZES["vocab_size"]).save_pretrained(folder / "model")
    GPT2LMHeadModel(GPT2Config(**SIZES, seq_length=1024)).save_pretrained(folder / "model")
    return folder


def run(folder, *words):
    return programs.run([sys.executable, PROGRAM, *words], folder, programs.user_environment(), timeout=300)


def test_a_text_of_ones_own_is_learned(folder):
    options = [f"model.model_config.{name}={value}" for name, value in SIZES.items()]
    options += ["model.model_config.eos_token_id=299", "runner_config.epochs=2", "lr_schedule.learning_rate=0.01"]
    done = run(folder, "model", "my.txt", "output", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\ntell me a fairy story" in done.stdout
    assert list((folder / "output" / "checkpoint").rglob("*.ckpt"))


def test_a_missing_text_ends_it_with_a_line(folder):
    done = run(folder, "model", "nowhere.txt", "output2")
    assert done.returncode == 2
    assert "nowhere.txt" in done.stderr and "Traceback" not in done.stderr
