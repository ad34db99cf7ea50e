"""A tiny GPT2_ML and its files: TensorFlow's checkpoint with optimizer slots, its JSON, its vocabulary.

As in the published model of 15 GB of text, the token table has two rows more than the vocabulary has lines.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindgpt.config.errors import UserError
from mindgpt.models.gpt2 import convert_weight
from tests.checkpoints.tensorflow_files import write_bundle
from tests.models.gpt2_ml_reference import random_weights, toy_config

CONFIG = toy_config()
V, P, H, F, L = CONFIG.vocab_size, CONFIG.max_position_embeddings, CONFIG.hidden_size, CONFIG.ffn_hidden_size, 2
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{number}" for number in range(V - 7))]

WEIGHTS = random_weights(CONFIG, seed=4)
WEIGHTS["newslm/embeddings/word_embed"][len(TOKENS) :] = 0  # never the likeliest next token

JSON = {  # with the keys of GPT2_ML's configs, mega.json for one
    "vocab_size": V, "hidden_size": H, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1,
    "hidden_act": "gelu", "initializer_range": 0.014142135623731, "intermediate_size": F,
    "max_position_embeddings": P, "num_attention_heads": CONFIG.num_heads, "num_hidden_layers": L,
}  # fmt: skip
PORT_JSON = {  # of the torch port's mega.json
    "vocab_size": V, "n_embd": H, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "activation_function": "gelu",
    "initializer_range": 0.014142135623731, "n_positions": P, "n_head": CONFIG.num_heads, "n_layer": L,
}  # fmt: skip


def slots(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What AdaFactor of GPT2_ML keeps of each weight."""
    made = {}
    for name, array in weights.items():
        parts = zip(("vr", "vc"), array.shape, strict=True) if array.ndim == 2 else [("v", array.shape)]
        made |= {f"{name}/adafactor_{part}": np.ones(size, np.float32) for part, size in parts}
    return made


def write_vocabulary(folder: Path, tokens: list[str] = TOKENS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    return folder / "vocab.txt"


def write_model(folder: Path, config: Any = JSON, weights: Mapping[str, Any] = WEIGHTS, **options) -> Path:
    """`model.ckpt-100000` with mega.json and vocab.txt beside it; returns the prefix. `options`: of `write_bundle`."""
    more = slots(WEIGHTS) | {"global_step": np.array(100000, np.int64)}
    write_vocabulary(folder)
    if config is not None:
        (folder / "mega.json").write_text(json.dumps(config))
    return write_bundle(folder / "model.ckpt-100000", more | dict(weights), **{"snappy": True, **options})


def convert(source: Path, target: Path, *more: object) -> None:
    """Run the conversion program."""
    convert_weight.main(["--input_path", str(source), "--output_path", str(target), *map(str, more)])


def refused(source: Path, target: Path, *more: object) -> str:
    """The message of a conversion that must fail and must write nothing."""
    with pytest.raises(UserError) as raised:
        convert(source, target, *more)
    assert not target.exists() and not target.parent.joinpath("config.json").exists()
    return str(raised.value)
