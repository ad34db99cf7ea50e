"""Weights in several files that an index lists: Hugging Face's `*.index.json`, MindSpore's `param_name_map.json`."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindgpt.checkpoints.tensor_source import Box, TensorSource, read_box
from mindgpt.config.errors import UserError
from mindgpt.io.files import read_json

NAME_MAP = "param_name_map.json"  # of MindSpore and MindFormers, beside their safetensors: {tensor name: file name}
_MASK = re.compile(r"\.attn\.(masked_)?bias$")  # a constant
_TIED = ("lm_head.weight", "wte.weight")  # one matrix in GPT-2, so an index may list a name that no file holds


def is_index(path: Path) -> bool:
    """Whether a file is an index of weights, by its name."""
    return path.name.endswith(".index.json") or path.name == NAME_MAP


class IndexedFiles:
    """The files that an index lists, as one `TensorSource`. The index is `{"weight_map": {tensor name: file name}}`, or
    the inner object alone in MindSpore's.

    Of the token embedding and the output head tied to it, one may be listed and missing.

    Args:
        index: the index file.
        open_shard: opens one of the files.

    Raises:
        UserError: the index is broken, a file or tensor is missing, or a tensor is in two files.
    """

    def __init__(self, index: Path, open_shard: Callable[[Path], TensorSource]):
        self.path = index
        weight_map = self._weight_map()
        shards = {name: open_shard(self._shard(name)) for name in sorted(set(weight_map.values()))}
        self._source: dict[str, TensorSource] = {}
        for shard in shards.values():
            for name in shard.entries:
                if name in self._source:
                    raise UserError(
                        f"{index}: {name} is in two shards, {self._source[name].path.name} and {shard.path.name}."
                    )
                self._source[name] = shard
        absent = [
            f"{name} (in {file})"
            for name, file in weight_map.items()
            if name not in shards[file].entries and not (_MASK.search(name) or self._is_tied_to_another(name))
        ]
        if absent:
            raise UserError(f"{index}: its files do not hold all that it lists. Missing: {', '.join(absent)}.")
        self.entries = {name: shard.entries[name] for name, shard in self._source.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._source[name].read(name)

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`."""
        return read_box(self._source[name], name, box)

    def _is_tied_to_another(self, name: str) -> bool:
        """Whether a shard holds the tensor under the name that it is tied to."""
        others = tuple(other for other in _TIED if not name.endswith(other))
        return len(others) < len(_TIED) and any(held.endswith(others) for held in self._source)

    def _weight_map(self) -> dict[str, str]:
        try:
            content = read_json(self.path)
            flat = self.path.name == NAME_MAP and "weight_map" not in content  # MindSpore writes it either way
            weight_map = content if flat else content["weight_map"]
        except (ValueError, KeyError, TypeError):
            weight_map = None
        is_map = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
        if not (is_map and weight_map):
            raise UserError(
                f'{self.path}: not an index of weights, which is JSON like {{"weight_map": {{name: file}}}}.'
            )
        return weight_map

    def _shard(self, name: str) -> Path:
        shard = self.path.parent / name
        if Path(name).name != name or name.endswith(".index.json"):
            raise UserError(f"{self.path}: names the shard {name!r}; a shard is a file of weights in the same folder.")
        if not shard.exists():
            raise UserError(f"{self.path}: its shard {name} is missing. Copy or download all of them.")
        return shard
