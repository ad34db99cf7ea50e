"""Writes ModelScope's folder of a GPT-3: weights, `config.json` and `configuration.json`."""

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config
from mindgpt.checkpoints.locations import file_beside, holds_weights
from mindgpt.checkpoints.modelscope_format import MODEL_FOLDER
from mindgpt.checkpoints.tensor_parallel_files import shard_of, shard_shape
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_archive import StateDictWriter
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES
from mindgpt.config.errors import UserError
from mindgpt.io.commented_json import read_commented_json
from mindgpt.io.files import atomic_write, make_folder, read_json

CONFIGURATION_FILE = "configuration.json"
BASE_FILE = "pytorch_model.bin"
_OF_FILES = (".ckpt", ".safetensors", *TORCH_SUFFIXES)
_NEW_CONFIGURATION = {  # of a model that was none of ModelScope's
    "parallel": {
        "framework": "pytorch",
        "task": "text-generation",
        "preprocessor": {"type": "text-gen-jieba-tokenizer"},
        "model": {"type": "gpt3"},
        "pipeline": {"type": "gpt3-generation"},
    },
    "base": {
        "framework": "pytorch",
        "task": "text-generation",
        "preprocessor": {"type": "text-gen-tokenizer"},
        "model": {"type": "gpt3"},
        "pipeline": {"type": "text-generation"},
    },
}


def layout_to_write(config: GPT2Config, ranks: int | None) -> str:
    """The layout of names that a model is written in: "base" for the network of base and large (the exact gelu, and
    feed-forward layers of 4 x hidden_size), unless a number of tensor-parallel ranks is asked for."""
    of_base = config.hidden_act == "gelu_erf" and config.ffn_hidden_size == 4 * config.hidden_size
    return "base" if of_base and ranks is None else "parallel"


def check_ranks(config: GPT2Config, ranks: int) -> None:
    """Raise a UserError if a model cannot be sharded over so many tensor-parallel ranks; it lists the numbers that
    fit."""
    keys = ("num_heads", "hidden_size", "ffn_hidden_size", "vocab_size")
    fitting = math.gcd(*(getattr(config, key) for key in keys))
    if ranks >= 1 and fitting % ranks == 0:
        return
    allowed = ", ".join(str(number) for number in range(1, fitting + 1) if fitting % number == 0)
    if ranks < 1:
        raise UserError(f"--tensor_parallel {ranks}: must be a number of ranks. Allowed for this model: {allowed}.")
    wrong = ", ".join(f"{key} {getattr(config, key)}" for key in keys if getattr(config, key) % ranks)
    raise UserError(
        f"--tensor_parallel {ranks}: does not divide {wrong}. Allowed for this model: {allowed}. (resize_embeddings "
        "makes the vocabulary larger.)"
    )


def weight_files(folder: Path, layout: str, ranks: int) -> list[Path]:
    """The files of weights in ModelScope's folder, by rank."""
    if layout == "base":
        return [folder / BASE_FILE]
    return [folder / MODEL_FOLDER / f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks)]


def check_modelscope_folder(folder: Path, files: list[Path], config: Mapping[str, Any]) -> None:
    """Raise a UserError for a folder that the model cannot be written to; else make it.

    Args:
        folder: to be written.
        files: of weights in it.
        config: the content of its config.json.
    """
    if folder.is_file() or (folder.suffix in _OF_FILES and not folder.is_dir()):
        what = "is a file" if folder.is_file() else "is the name of a file"
        raise UserError(f"{folder}: {what}, and ModelScope's weights are a folder. Name a folder.")
    existing = folder / CONFIG_FILE
    if existing.exists() and read_json(existing) != config:
        raise UserError(f"{existing}: is the config of another model. Choose another folder, or remove it.")
    model = folder / MODEL_FOLDER
    there = sorted(entry for entry in model.iterdir() if entry not in files) if model.is_dir() else []
    if there and files[0].parent == model:
        raise UserError(
            f"{model}: holds {', '.join(entry.name for entry in there)}, and ModelScope counts every file there as a "
            "shard. Choose another folder, or remove them."
        )
    if (files[0].parent == model and holds_weights(folder)) or (files[0].parent == folder and there):
        raise UserError(f"{folder}: holds other weights, and nothing would say which are meant. Choose another folder.")
    make_folder(files[0].parent)


def write_shards(files: list[Path], entries: Mapping[str, TensorInfo], items: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write whole tensors as the shards of as many ranks as there are files; all appear when they are whole.

    Args:
        files: to be written, by rank.
        entries: name -> whole shape, and dtype in the files.
        items: the tensors in the order of `entries`; bfloat16 as float32.
    """
    count = len(files)
    shards = {name: TensorInfo(shard_shape(name, info.shape, count), info.dtype) for name, info in entries.items()}
    with ExitStack() as stack:
        # A writer ends before its file does: the last to be entered ends first.
        writers = [
            stack.enter_context(StateDictWriter(stack.enter_context(atomic_write(file)), shards)) for file in files
        ]
        for name, array in items:
            for rank, writer in enumerate(writers):
                writer.write(name, shard_of(name, array, rank, count))


def configuration(weights: Path, target: Path, layout: str, ranks: int) -> dict[str, Any]:
    """The content of configuration.json: that of the target or of the weights, if there is one, with the number of
    ranks.

    Raises:
        UserError: it is broken.
    """
    own = target / CONFIGURATION_FILE
    file = own if own.is_file() else file_beside(weights, CONFIGURATION_FILE)
    content = _NEW_CONFIGURATION[layout] if file is None else read_commented_json(file)
    if layout == "base":
        return {key: value for key, value in content.items() if key != "megatron"}
    megatron = content.get("megatron")
    sizes = dict.fromkeys(("checkpoint_tensor_model_parallel_size", "world_size", "tensor_model_parallel_size"), ranks)
    return {**content, "megatron": {**(megatron if isinstance(megatron, Mapping) else {}), **sizes}}
