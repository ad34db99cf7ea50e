"""A tiny GPT-3 of ModelScope: the files of its tensor-parallel ranks, and the network computed by these ranks.

Sources of the formulas: Shoeybi et al. 2019 (section 3, how layers are sharded), Megatron-LM's `transformer.py`
for the order of rows in query_key_value.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from mindgpt.config.errors import UserError
from mindgpt.models.gpt2 import convert_weight

V, P, H, L, F, HEADS, EPS = 64, 12, 32, 2, 96, 8, 1e-3
SIZES = {
    "vocab_size": V, "hidden_size": H, "num_hidden_layers": L, "num_attention_heads": HEADS,
    "max_position_embeddings": P, "layernorm_epsilon": EPS,
}  # fmt: skip
PARALLEL = SIZES | {"ffn_hidden_size": F, "eod_id": 7}
BASE = SIZES | {"intermediate_size": 3072, "hidden_act": "gelu", "initializer_range": 0.02}
CONFIGURATION = """{
    "framework": "pytorch",
    "task": "text-generation",
    "preprocessor": {"type": "text-gen-jieba-tokenizer", "sequence_length": 512},  # not the default, "128"
    "model": {
        "type": "gpt3",
    },
    "pipeline": {"type": "gpt3-generation"},
    "megatron": {
        "checkpoint_tensor_model_parallel_size": 1, # leave at 1
        "world_size": 2,
        "seed": 42
    }
}
"""

State = dict[str, torch.Tensor]


def state(layout: str = "parallel", dtype: torch.dtype = torch.float32) -> State:
    """All weights of one rank, no two equal. `layout`: "parallel" (1.3B and up) or "base"."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int, mean: float = 0) -> torch.Tensor:
        return (mean + torch.randn(shape, generator=generator) * 0.3).to(dtype)

    parallel = layout == "parallel"
    tables = "language_model.embedding." if parallel else "language_model."
    stack = "language_model.encoder." if parallel else "language_model.transformer."
    attention, width = ("self_attention", F) if parallel else ("attention", 4 * H)
    held = {f"{tables}word_embeddings.weight": random(V, H), f"{tables}position_embeddings.weight": random(P, H)}
    linear = {
        f"{attention}.query_key_value": (3 * H, H),
        f"{attention}.dense": (H, H),
        "mlp.dense_h_to_4h": (width, H),
        "mlp.dense_4h_to_h": (H, width),
    }
    for i in range(L):
        layer = f"{stack}layers.{i}."
        for name, (out, wide) in linear.items():
            held |= {f"{layer}{name}.weight": random(out, wide), f"{layer}{name}.bias": random(out)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            held |= {f"{layer}{name}.weight": random(H, mean=1), f"{layer}{name}.bias": random(H)}
    return held | {
        f"{stack}final_layernorm.weight": random(H, mean=1),
        f"{stack}final_layernorm.bias": random(H),
    }


def ranks_of(held: State, count: int) -> list[State]:
    """The shards of `count` ranks: column-parallel layers by rows, row-parallel ones by columns."""
    by_rows = ("word_embeddings", "query_key_value", "dense_h_to_4h")
    by_columns = ("attention.dense.weight", "dense_4h_to_h.weight")

    def shards(name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if any(part in name for part in by_rows):
            return tensor.chunk(count, dim=0)
        return tensor.chunk(count, dim=1) if name.endswith(by_columns) else (tensor,) * count

    return [{name: shards(name, tensor)[rank].clone() for name, tensor in held.items()} for rank in range(count)]


def logits(
    ranks: list[State], ids: torch.Tensor, version: float | None = None, gelu: str = "tanh", head: str | None = None
) -> torch.Tensor:
    """What the ranks compute together: (B, T) ids -> (B, T, V). `version`: the checkpoint_version. `head`: the name of
    an output head of its own."""
    base = "language_model.word_embeddings.weight" in ranks[0]
    tables = "language_model." if base else "language_model.embedding."
    stack = "language_model.transformer." if base else "language_model.encoder."
    attention = "attention" if base else "self_attention"
    heads, size, rows = HEADS // len(ranks), H // HEADS, V // len(ranks)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (H,), ranks[0][f"{name}.weight"], ranks[0][f"{name}.bias"], EPS)

    def column(rank: State, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ rank[f"{name}.weight"].T + rank[f"{name}.bias"]

    def row(name: str, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Each rank has columns; the sum of all gets the bias, which every rank holds."""
        products = [x @ rank[f"{name}.weight"].T for rank, x in zip(ranks, inputs, strict=True)]
        return sum(products) + ranks[0][f"{name}.bias"]

    def query_key_value(mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if base or version == 0:
            three = [part.unflatten(-1, (heads, size)) for part in mixed.chunk(3, dim=-1)]
        elif version == 1:
            three = mixed.unflatten(-1, (heads, size, 3)).unbind(-1)
        else:
            three = mixed.unflatten(-1, (heads, 3 * size)).split(size, dim=-1)
        return tuple(part.transpose(1, 2) for part in three)

    def attend(rank: State, name: str, x: torch.Tensor) -> torch.Tensor:
        query, key, value = query_key_value(column(rank, f"{name}.query_key_value", x))
        future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = (query @ key.transpose(-1, -2) / math.sqrt(size)).masked_fill(future, -10000)
        return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(-2)

    x = ranks[0][f"{tables}position_embeddings.weight"][: ids.shape[1]]
    for number, rank in enumerate(ranks):  # each looks up its own range of the vocabulary
        own = (ids >= number * rows) & (ids < (number + 1) * rows)
        x = x + rank[f"{tables}word_embeddings.weight"][(ids - number * rows) * own] * own.unsqueeze(-1)
    for i in range(L):
        layer = f"{stack}layers.{i}."
        inside = norm(f"{layer}input_layernorm", x)
        x = x + row(f"{layer}{attention}.dense", [attend(rank, f"{layer}{attention}", inside) for rank in ranks])
        inside = norm(f"{layer}post_attention_layernorm", x)
        wide = [functional.gelu(column(rank, f"{layer}mlp.dense_h_to_4h", inside), approximate=gelu) for rank in ranks]
        x = x + row(f"{layer}mlp.dense_4h_to_h", wide)
    x = norm(f"{stack}final_layernorm", x)
    return torch.cat([x @ rank[head or f"{tables}word_embeddings.weight"].T for rank in ranks], dim=-1)


def write_ranks(
    folder: Path, ranks: list[State], config: Any = PARALLEL, key: str | None = None, **outside: Any
) -> Path:
    """ModelScope's folder. `key`: the state dicts are under it, beside what is `outside`."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for number, held in enumerate(ranks):
        content = held if key is None else {key: held, **outside}
        torch.save(content, folder / "model" / f"mp_rank_{number:02d}_model_states.pt")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration.json").write_text(CONFIGURATION)
    return folder


def write_base(folder: Path, content: Any, config: Any = BASE) -> Path:
    """The folder of base or large."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "pytorch_model.bin")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


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
