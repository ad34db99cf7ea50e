"""The formats that weights are stored in, and how a path is opened. A new format adds a module and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mindgpt.checkpoints.deepspeed_format import is_deepspeed, open_deepspeed
from mindgpt.checkpoints.indexed_format import IndexedFiles, is_index
from mindgpt.checkpoints.locations import holds_weights, weights_in
from mindgpt.checkpoints.mindspore_format import CheckpointFile
from mindgpt.checkpoints.modelscope_format import is_modelscope, open_modelscope
from mindgpt.checkpoints.safetensors_format import SafetensorsFile
from mindgpt.checkpoints.sharded_checkpoint import ShardedCheckpoint, holds_shards, refuse_shard
from mindgpt.checkpoints.tensor_source import TensorSource, existing_file
from mindgpt.checkpoints.tensorflow_format import TensorBundle, is_hdf5, is_tensorflow, refuse_hdf5
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES, TorchFile, is_torch_file
from mindgpt.config.errors import UserError


class WeightFormat(NamedTuple):
    """How weights of a format are recognised by their path, and opened."""

    matches: Callable[[Path], bool]
    open: Callable[[Path], TensorSource]


FORMATS = {  # the first that matches is used
    "sharded checkpoint": WeightFormat(holds_shards, ShardedCheckpoint),
    "modelscope": WeightFormat(is_modelscope, open_modelscope),
    "deepspeed": WeightFormat(lambda path: is_deepspeed(path) and not holds_weights(path), open_deepspeed),
    "folder": WeightFormat(Path.is_dir, lambda folder: open_source(weights_in(folder))),
    "tensorflow": WeightFormat(is_tensorflow, TensorBundle),
    "keras": WeightFormat(is_hdf5, refuse_hdf5),
    "index": WeightFormat(is_index, lambda path: IndexedFiles(path, open_source)),
    "safetensors": WeightFormat(lambda path: path.suffix == ".safetensors", SafetensorsFile),
    "torch": WeightFormat(is_torch_file, TorchFile),
    "mindspore": WeightFormat(lambda path: path.suffix == ".ckpt", CheckpointFile),
}


def open_source(path: str | Path) -> TensorSource:
    """Open the weights at a path, under the names that they are stored with. No tensor is read yet.

    Raises:
        UserError: there are none, a folder holds two kinds of them, they are damaged, the file is one rank's shard, or
            PyTorch is needed and not installed.
    """
    path = Path(path)
    refuse_shard(path)
    if not (path.is_dir() or is_tensorflow(path)):  # a prefix of TensorFlow is the name of no file
        existing_file(path)
    for known in FORMATS.values():
        if known.matches(path):
            return known.open(path)
    suffixes = ", ".join((".ckpt", ".safetensors", *TORCH_SUFFIXES))
    raise UserError(
        f"{path}: not a file of weights, by its name. Allowed: a folder, a file whose name ends in {suffixes} or "
        ".index.json, or the prefix of a TensorFlow checkpoint."
    )
