"""Prediction and scoring with a WordPiece or a SentencePiece tokenizer, as a user types them, against transformers."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from mindgpt.tasks.main import main
from mindgpt.tasks.score import score_texts  # noqa: F401  (the program below calls it)
from tests import programs
from tests.generation.chinese_folder import CLS, SEP, greedy, publish

PROMPTS = ["这是很久之前的事情了", "GPT2模型 is 好的, Hello World!", "hello"]
NEW = 10


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    """A published folder in `zh`, beside its YAML."""
    base = tmp_path_factory.mktemp("chinese")
    network = publish(base / "zh", shared_data / "zh" / "google_zh_vocab.txt", positions=64)
    (base / "zh.yaml").write_text(
        "run_mode: predict\n"
        "model:\n  model_config: {seq_length: 64, vocab_size: 21128, hidden_size: 32, num_layers: 2, num_heads: 2,"
        f" max_new_tokens: {NEW}}}\n"
    )
    base.network = network
    return base
