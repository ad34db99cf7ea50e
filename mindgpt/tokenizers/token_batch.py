"""Rows of token ids as a batch: truncation of pairs, padding, and tensors of three libraries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindgpt.config.errors import UserError

TENSORS = (None, "np", "ms", "pt")
TRUNCATIONS = (False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")


class TokenBatch(dict):
    """What a tokenizer returns: `input_ids`, `attention_mask` and so on, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no {name}; it has {', '.join(self)}") from None


def truncate_pair(first: list[int], second: list[int], room: int, strategy: str | bool) -> tuple[list[int], list[int]]:
    """Truncate two texts' ids to `room` in total: the longer one at a time, or one of them only.

    Args:
        first, second: ids.
        room: tokens that both may have together.
        strategy: a value of `TRUNCATIONS`.

    Raises:
        UserError: the text to truncate is too short.
    """
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    lengths = [len(first), len(second)]
    if strategy in (True, "longest_first"):
        if room < 0:
            raise UserError("max_length is too short for the special tokens that this tokenizer adds.")
        for _ in range(excess):
            lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    else:
        lengths[strategy == "only_second"] -= excess
    if min(lengths) < 0:
        raise UserError(f"truncation={strategy!r}: that text has fewer than the {excess} tokens to drop.")
    return first[: lengths[0]], second[: lengths[1]]


def pad_rows(rows: list[list[int]], width: int, value: int, side: str) -> list[list[int]]:
    """Rows padded with `value` to `width`, on the right or on the left."""
    fillings = [[value] * (width - len(row)) for row in rows]
    if side == "right":
        return [row + filling for row, filling in zip(rows, fillings, strict=True)]
    return [filling + row for row, filling in zip(rows, fillings, strict=True)]


def as_tensor(rows: Sequence[list[int]], kind: str) -> Any:
    """Rows as a tensor of shape (rows, length): int32 NumPy ("np") or MindSpore ("ms"), or int64 PyTorch ("pt").

    Raises:
        UserError: the rows have unequal lengths, or PyTorch is not installed.
    """
    if len({len(row) for row in rows}) > 1:
        raise UserError("The texts have unequal numbers of tokens: tensors need padding=True (or 'max_length').")
    array = np.asarray(rows, dtype=np.int32).reshape(len(rows), -1)
    if kind == "np":
        return array
    # Both libraries are imported only where they are needed.
    if kind == "ms":
        import mindspore

        return mindspore.Tensor(array)
    try:
        import torch
    except ImportError as error:
        raise UserError("return_tensors='pt' needs PyTorch, which is not installed: pip install torch.") from error
    return torch.from_numpy(array.astype(np.int64))
