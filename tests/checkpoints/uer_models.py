"""A tiny GPT-2 of UER-py: its state dict under every generation of names, its network from the formulas, its files.

Source of the formulas: Radford et al. 2019, with the layer norm and the mask of UER-py's `layers/`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mindgpt.config.errors import UserError
from mindgpt.models.gpt2 import convert_weight

V, P, H, L, F, HEADS = 61, 16, 12, 2, 20, 3
JSON = {
    "emb_size": H, "feedforward_size": F, "hidden_size": H, "hidden_act": "gelu_fast", "heads_num": HEADS,
    "layers_num": L, "max_seq_length": P, "dropout": 0.1, "data_processor": "lm", "embedding": ["word", "pos"],
    "remove_embedding_layernorm": True, "encoder": "transformer", "mask": "causal", "layernorm_positioning": "pre",
    "target": ["lm"], "tie_weights": True,
}  # fmt: skip
GENERATIONS = {  # names of the tables and of the head
    "old": ("embedding.word_embedding.weight", "embedding.position_embedding.weight", "target.output_layer.weight"),
    "between": ("embedding.word.embedding.weight", "embedding.pos.embedding.weight", "target.output_layer.weight"),
    "new": ("embedding.word.embedding.weight", "embedding.pos.embedding.weight", "target.lm.output_layer.weight"),
}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", *(f"t{number}" for number in range(V - 5))]

State = dict[str, torch.Tensor]


def state(generation: str = "new", head: str = "tied", vocabulary: int = V) -> State:
    """All weights, no two equal. `head`: "tied", "untied" or "missing"."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    word, position, output = GENERATIONS[generation]
    held = {word: random(vocabulary, H), position: random(P, H)}
    for i in range(L):
        layer = f"encoder.transformer.{i}."
        for n in range(3):
            held |= _linear(f"{layer}self_attn.linear_layers.{n}", random(H, H), random(H))
        held |= _linear(f"{layer}self_attn.final_linear", random(H, H), random(H))
        held |= _linear(f"{layer}feed_forward.linear_1", random(F, H), random(F))
        held |= _linear(f"{layer}feed_forward.linear_2", random(H, F), random(H))
        for n in (1, 2):
            held |= {f"{layer}layer_norm_{n}.gamma": 1 + random(H), f"{layer}layer_norm_{n}.beta": random(H)}
    held |= {"encoder.layer_norm.gamma": 1 + random(H), "encoder.layer_norm.beta": random(H)}
    if head != "missing":
        held[output] = held[word] if head == "tied" else random(vocabulary, H)
    return held


def _linear(name: str, weight: torch.Tensor, bias: torch.Tensor) -> State:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def layer_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """UER-py's: the unbiased standard deviation, and epsilon added to it."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = torch.sqrt((centred**2).sum(-1, keepdim=True) / (x.shape[-1] - 1))
    return gamma * centred / (deviation + 1e-6) + beta


def logits(held: State, ids: torch.Tensor) -> torch.Tensor:
    """What UER-py computes with weights under today's names: (B, T) ids -> (B, T, V)."""
    length, size = ids.shape[1], H // HEADS

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ held[f"{name}.weight"].T + held[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, held[f"{name}.gamma"], held[f"{name}.beta"])

    x = held["embedding.word.embedding.weight"][ids] + held["embedding.pos.embedding.weight"][:length]
    future = torch.ones(length, length).triu(1) * -10000
    for i in range(L):
        layer = f"encoder.transformer.{i}"
        inside = norm(f"{layer}.layer_norm_1", x)
        query, key, value = (
            linear(f"{layer}.self_attn.linear_layers.{n}", inside).unflatten(-1, (HEADS, size)).transpose(1, 2)
            for n in range(3)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(size) + future, dim=-1)
        x = x + linear(f"{layer}.self_attn.final_linear", (weights @ value).transpose(1, 2).flatten(-2))
        wide = linear(f"{layer}.feed_forward.linear_1", norm(f"{layer}.layer_norm_2", x))
        gelu = wide / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        x = x + linear(f"{layer}.feed_forward.linear_2", gelu)
    head = held.get("target.lm.output_layer.weight", held["embedding.word.embedding.weight"])
    return norm("encoder.layer_norm", x) @ head.T


def write_model(folder: Path, held: State, config: Any = JSON, vocabulary: bool = True) -> Path:
    """`model.bin` with UER-py's config.json and vocab.txt beside it, unless these are None and False."""
    folder.mkdir(exist_ok=True)
    torch.save(held, folder / "model.bin")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return folder / "model.bin"


def convert(source, target, *more) -> None:
    """Run the conversion program."""
    convert_weight.main(["--input_path", str(source), "--output_path", str(target), *map(str, more)])


def refused(folder, source, target, *more) -> str:
    """The message of a conversion that must fail, and must leave the folder as it is."""
    before = sorted(os.walk(folder))
    with pytest.raises(UserError) as raised:
        convert(source, target, *more)
    assert sorted(os.walk(folder)) == before
    return str(raised.value)
