"""A tiny GPT-2 in other tools' file formats, made without their libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.gpt2_views import MindFormersView
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.safetensors_format import SafetensorsFile, write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo

V, P, H, L, F = 60, 16, 8, 2, 32
CONFIG = {"model_type": "gpt2", "vocab_size": V, "n_positions": P, "n_embd": H, "n_layer": L, "n_head": 2}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"


def tensors(prefix: str = "transformer.", vocabulary: int = V) -> dict[str, np.ndarray]:
    """The weights under Hugging Face's names; no two are equal."""
    shapes = {"wte.weight": (vocabulary, H), "wpe.weight": (P, H)}
    for i in range(L):
        shapes |= {
            f"h.{i}.ln_1.weight": (H,), f"h.{i}.ln_1.bias": (H,),
            f"h.{i}.attn.c_attn.weight": (H, 3 * H), f"h.{i}.attn.c_attn.bias": (3 * H,),
            f"h.{i}.attn.c_proj.weight": (H, H), f"h.{i}.attn.c_proj.bias": (H,),
            f"h.{i}.ln_2.weight": (H,), f"h.{i}.ln_2.bias": (H,),
            f"h.{i}.mlp.c_fc.weight": (H, F), f"h.{i}.mlp.c_fc.bias": (F,),
            f"h.{i}.mlp.c_proj.weight": (F, H), f"h.{i}.mlp.c_proj.bias": (H,),
        }  # fmt: skip
    shapes |= {"ln_f.weight": (H,), "ln_f.bias": (H,)}
    random = np.random.default_rng(0)
    return {prefix + name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(file: Path, held: dict[str, np.ndarray]) -> Path:
    """A `.safetensors` of these tensors."""
    entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in held.items()}
    write_safetensors(file, entries, held.items())
    return file


def folder(
    path: Path,
    held: dict[str, np.ndarray] | None = None,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """A folder as transformers saves a model; `config` changes the keys of config.json."""
    write(path / "model.safetensors", tensors() if held is None else held)
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def ours(scratch: Path) -> dict[str, np.ndarray]:
    """The same weights under MindFormers' names."""
    view = MindFormersView(SafetensorsFile(write(scratch / "named.safetensors", tensors())))
    return {name: view.read(name) for name in view.entries}


def write_ours(file: Path, scratch: Path, **more: Any) -> Path:
    """A `.ckpt` of them, with other entries beside."""
    write_checkpoint(file, [*ours(scratch).items(), *more.items()])
    return file
