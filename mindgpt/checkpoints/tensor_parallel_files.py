"""The whole weights of a model that was sharded over tensor-parallel ranks, and the shards of whole weights.

The models are GPT-2 of TencentPretrain, and GPT-3 under Megatron's names.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.config.errors import UserError

_FUSED = re.compile(r".*\.query_key_value\.(weight|bias)")

# The dimension that a tensor is sharded along; those that match none are whole in every rank. Names decide, not
# shapes: with 4 ranks, the shards of Megatron's dense_h_to_4h and dense_4h_to_h are both square.
_SHARDED = (
    (re.compile(r"(.*\.)?embedding\.word(\.embedding|_embedding)\.weight"), 0),
    (re.compile(r"(.*\.)?target\.(lm\.)?output_layer\.weight"), 0),
    (re.compile(r".*\.self_attn\.linear_layers\.\d\.(weight|bias)"), 0),
    (re.compile(r".*\.feed_forward\.linear_1\.(weight|bias)"), 0),
    (re.compile(r".*\.self_attn\.final_linear\.weight"), 1),
    (re.compile(r".*\.feed_forward\.linear_2\.weight"), 1),
    # Megatron's from here on
    (re.compile(r"(.*\.)?word_embeddings(_for_head)?\.weight"), 0),
    (re.compile(r"(.*\.)?(language_model\.output_layer|lm_head)\.weight"), 0),
    (_FUSED, 0),
    (re.compile(r".*\.mlp\.dense_h_to_4h\.(weight|bias)"), 0),
    (re.compile(r".*\.(self_)?attention\.dense\.weight"), 1),
    (re.compile(r".*\.mlp\.dense_4h_to_h\.weight"), 1),
)


class TensorParallelRanks:
    """The sources of all tensor-parallel ranks as one `TensorSource`.

    Args:
        path: of the checkpoint, for messages, and beside which a config may lie.
        ranks: their sources, in the order of the ranks.
        in_blocks: whether each rank's query_key_value holds its rows of query, then of key, then of value, so that the
            whole one is no plain concatenation (Megatron's checkpoint_version 0).
        compares: whether to check that tensors which every rank has whole are equal. They are read for it.

    Attributes:
        path, entries: as in `TensorSource`.
        notes: sentences for the user.
        tensor_parallel_size: the number of ranks.

    Raises:
        UserError: the ranks do not have the same tensors, or their shapes or values do not fit together.
    """

    def __init__(
        self, path: Path, ranks: Sequence[TensorSource], in_blocks: bool = False, compares: bool = False
    ) -> None:
        self.path = path
        self._ranks, self._in_blocks = ranks, in_blocks
        self.tensor_parallel_size = len(ranks)
        self.checkpoint_version: object = None
        self.notes = [f"{path}: merged from {len(ranks)} tensor-parallel ranks"]
        self.notes += dict.fromkeys(note for rank in ranks for note in getattr(rank, "notes", ()))
        names = [set(rank.entries) for rank in ranks]
        if differing := sorted(set().union(*names) - names[0].intersection(*names)):
            raise UserError(f"{path}: not all tensor-parallel ranks hold {', '.join(differing[:5])}. Copy them again.")
        self.entries = {name: self._info(name) for name in ranks[0].entries}
        if compares:
            self._compare()

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        axis, shape = _axis(name), self.entries[name].shape
        if axis is None:
            return self._ranks[0].read(name)
        if self._in_blocks and _FUSED.fullmatch(name):
            blocks = [rank.read(name) for rank in self._ranks]
            blocks = [block.reshape(3, -1, *shape[1:]) for block in blocks]
            return np.concatenate(blocks, axis=1).reshape(shape)
        whole, end = None, 0
        for rank in self._ranks:  # one after another: memory for the whole tensor and one shard
            shard = rank.read(name)
            whole = np.empty(shape, shard.dtype) if whole is None else whole
            begin, end = end, end + shard.shape[axis]
            whole[(slice(None),) * axis + (slice(begin, end),)] = shard
        assert whole is not None  # there is a rank
        return whole

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

    def _compare(self) -> None:
        """Raise a UserError if ranks disagree about a tensor that all of them hold whole."""
        for name in self.entries:
            if _axis(name) is not None:
                continue
            first = self._ranks[0].read(name).reshape(-1).view(np.uint8)
            for number, rank in enumerate(self._ranks[1:], 1):
                if not np.array_equal(first, rank.read(name).reshape(-1).view(np.uint8)):
                    raise UserError(
                        f"{self.path}: {name} is not the same in ranks 0 and {number}, and every tensor-parallel rank "
                        "must hold it whole. The files are of different checkpoints, or damaged: copy all of them "
                        "again."
                    )


def shard_of(name: str, array: np.ndarray, rank: int, count: int) -> np.ndarray:
    """The shard of a whole tensor that rank `rank` of `count` holds; the whole tensor if it is not sharded."""
    axis = _axis(name)
    return array if axis is None else np.ascontiguousarray(np.split(array, count, axis)[rank])


def shard_shape(name: str, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of each of `count` shards of a tensor."""
    axis = _axis(name)
    return tuple(size // count if number == axis else size for number, size in enumerate(shape))


def _axis(name: str) -> int | None:
    return next((axis for pattern, axis in _SHARDED if pattern.fullmatch(name)), None)
