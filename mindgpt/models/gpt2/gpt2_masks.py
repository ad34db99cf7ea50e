"""Masks of attention: who sees whom.

Shape letters: B batch, T query tokens, S key tokens.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.runtime.precision import Precision

_SIDE_OF_COMPRESSED = 2048  # what `FlashAttentionScore` asks for in its causal mode


class AttentionMask(nn.Cell):
    """Which keys a query may see, in the form that the attention kernel takes.

    `compressed` is the causal mask for a flash kernel, (2048, 2048) whatever the length of the rows; None without one.
    """

    def __init__(self, precision: Precision, flash: bool):
        super().__init__()
        self.flash = flash
        self.reshape = ops.Reshape()
        self.not_equal = ops.NotEqual()
        self.both = ops.LogicalAnd()
        self.logical_not = ops.LogicalNot()
        self.mul = ops.Mul()
        self.cast = ops.Cast()
        self.dtype = precision.softmax
        # Half of the lowest number: a score added to it stays finite, so a row that sees nothing is uniform, not NaN.
        self.lowest = -32000.0 if precision.softmax == ms.float16 else -1.5e38
        side = (_SIDE_OF_COMPRESSED, _SIDE_OF_COMPRESSED)
        self.compressed = Tensor(np.triu(np.ones(side, np.uint8), 1)) if flash else None

    def causal(self, tokens: int) -> Tensor:
        """(1, 1, T, T) bool: a token sees itself and those before it. A constant of the graph that asks for it."""
        return Tensor(np.tril(np.ones((1, 1, tokens, tokens), np.bool_)))

    def without_padding(self, causal: Tensor, attention_mask: Tensor) -> Tensor:
        """causal: (B or 1, 1, T, T) bool; attention_mask: (B, T) integers, 0 at padding -> (B, 1, T, T) bool"""
        batch, tokens = attention_mask.shape
        real = self.not_equal(self.reshape(attention_mask, (batch, 1, 1, tokens)), 0)
        return self.both(causal, real)

    def construct(self, visible: Tensor) -> Tensor:
        """visible: (B or 1, 1, T, S) bool -> the same shape; see `PlainAttention` and `FlashAttention`."""
        hidden = self.logical_not(visible)
        if self.flash:
            return self.cast(hidden, ms.uint8)
        return self.mul(self.cast(hidden, self.dtype), self.lowest)


class Documents(nn.Cell):
    """Which tokens of a packed row are of one document, and their positions in it.

    A document ends with the token `end`, which is part of it. Elsewhere masks never come from comparing ids: padding
    and the end-of-text token are often one. Here that does no harm: padding becomes documents of one token each, which
    nothing sees, as before.
    """

    def __init__(self, end: int):
        super().__init__()
        self.end = end
        self.is_end = ops.Equal()
        self.to_number = ops.Cast()
        self.count_ends = ops.CumSum()
        self.sub = ops.Sub()
        self.reshape = ops.Reshape()
        self.same = ops.Equal()
        self.both = ops.LogicalAnd()
        self.to_one = ops.Cast()
        self.count_seen = ops.ReduceSum()
        self.sub_one = ops.Sub()

    def construct(self, input_ids: Tensor, causal: Tensor) -> Tensor:
        """input_ids: (B, T); causal: (1, 1, T, T) bool -> (B, 1, T, T) bool: itself and what is before it in its
        document"""
        batch, tokens = input_ids.shape
        ends = self.to_number(self.is_end(input_ids, self.end), ms.int32)
        document = self.sub(self.count_ends(ends, 1), ends)  # (B, T): how many have ended before this token
        column = self.reshape(document, (batch, 1, tokens, 1))
        return self.both(causal, self.same(column, self.reshape(document, (batch, 1, 1, tokens))))

    def positions(self, visible: Tensor) -> Tensor:
        """visible: as of `construct` -> (B, T) int32, from 0 in each document"""
        batch, _, tokens, _ = visible.shape
        seen = self.count_seen(self.to_one(visible, ms.int32), -1)  # (B, 1, T)
        return self.sub_one(self.reshape(seen, (batch, tokens)), 1)
