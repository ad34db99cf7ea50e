"""The whole weights of a GPT-2 of TencentPretrain that was sharded over tensor-parallel ranks."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.config.errors import UserError

# The dimension that a tensor is sharded along; those that match none are whole in every rank.
_SHARDED = (
    (re.compile(r"(.*\.)?embedding\.word(\.embedding|_embedding)\.weight"), 0),
    (re.compile(r"(.*\.)?target\.(lm\.)?output_layer\.weight"), 0),
    (re.compile(r".*\.self_attn\.linear_layers\.\d\.(weight|bias)"), 0),
    (re.compile(r".*\.feed_forward\.linear_1\.(weight|bias)"), 0),
    (re.compile(r".*\.self_attn\.final_linear\.weight"), 1),
    (re.compile(r".*\.feed_forward\.linear_2\.weight"), 1),
)


class TensorParallelRanks:
    """The sources of all tensor-parallel ranks as one `TensorSource`.

    Args:
        path: of the checkpoint, for messages, and beside which a config may lie.
        ranks: their sources, in the order of the ranks.

    Attributes:
        path, entries: as in `TensorSource`.
        notes: sentences for the user.

    Raises:
        UserError: the ranks do not have the same tensors, or their shapes do not fit together.
    """

    def __init__(self, path: Path, ranks: Sequence[TensorSource]):
        self.path = path
        self._ranks = ranks
        self.notes = [f"{path}: merged from {len(ranks)} tensor-parallel ranks"]
        self.notes += dict.fromkeys(note for rank in ranks for note in getattr(rank, "notes", ()))
        names = [set(rank.entries) for rank in ranks]
        if differing := sorted(set.union(*names) - set.intersection(*names)):
            raise UserError(f"{path}: not all tensor-parallel ranks hold {', '.join(differing[:5])}. Copy them again.")
        self.entries = {name: self._info(name) for name in ranks[0].entries}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        axis = _axis(name)
        if axis is None:
            return self._ranks[0].read(name)
        return np.concatenate([rank.read(name) for rank in self._ranks], axis=axis)

    def _info(self, name: str) -> TensorInfo:
        infos = [rank.entries[name] for rank in self._ranks]
        if len(set(infos)) > 1:
            shapes = ", ".join(str(list(info.shape)) for info in infos)
            raise UserError(f"{self.path}: {name} has other shapes in other tensor-parallel ranks: {shapes}.")
        axis, shape = _axis(name), infos[0].shape
        if axis is None or len(shape) <= axis:
            return infos[0]
        whole = tuple(size * len(infos) if number == axis else size for number, size in enumerate(shape))
        return TensorInfo(whole, infos[0].dtype)


def _axis(name: str) -> int | None:
    return next((axis for pattern, axis in _SHARDED if pattern.fullmatch(name)), None)
