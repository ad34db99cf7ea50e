"""The cells of generation backed by the C++ kernels; see those of `gpt2.py`.

Shape letters: B rows of the cache, T tokens there is room for, n of them that are wanted, H hidden, V vocabulary. What
is called `rows` is how many of a cell's rows hold anything, (1,) int32.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindgpt.models.cpu import kernels
from mindgpt.models.cpu.kernel_layers import (
    KernelAttention,
    KernelEmbedding,
    KernelHead,
    KernelPostAttention,
    KernelTargetLosses,
)
from mindgpt.models.cpu.operators import align
from mindgpt.models.gpt2.gpt2_cache import InferenceCell, InferenceCells, KeyValueCache


class AlignedCache(KeyValueCache):
    """A `KeyValueCache` that begins on cache lines."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        align([*self.keys, *self.values])


class KernelModel(InferenceCell):
    """What `KernelDecode` and `KernelPrefill` have in common: embeddings, and all blocks but the last.

    Args:
        backbone: the model's.
        cache: that tokens are written to.
        attend: the blocks' attention, one of the kernels that write to the cache.
    """

    def __init__(self, backbone: nn.Cell, cache: KeyValueCache, attend: ops.Custom):
        super().__init__()
        self.embed = KernelEmbedding(backbone)
        blocks = list(backbone.blocks)[:-1]  # a slice of it would be cells that rename the weights
        self.attentions = nn.CellList([KernelAttention(block, attend) for block in blocks], auto_prefix=False)
        self.post_attention = nn.CellList([KernelPostAttention(block) for block in blocks], auto_prefix=False)
        self.cache = cache

    def to_last_block(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (B, T) int32 -> (B*T, H)"""
        x = self.embed(input_ids, positions, rows)
        for layer, attention in enumerate(self.attentions):
            context = attention(x, self.cache.keys[layer], self.cache.values[layer], positions, rows)
            x = self.post_attention[layer](x, context, rows)
        return x


class KernelDecode(KernelModel):
    """See `Decode`."""

    def __init__(self, backbone: nn.Cell, _head: nn.Cell, cache: KeyValueCache):
        attend = kernels.attention_of_next_tokens()
        super().__init__(backbone, cache, attend)
        self.last_attention = KernelAttention(backbone.blocks[-1], attend)
        self.last_post_attention = KernelPostAttention(backbone.blocks[-1])
        self.head = KernelHead(backbone)
        self.rows = Tensor([cache.batch], ms.int32)

    def construct(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32 -> (B, V): logits at these tokens"""
        x = self.to_last_block(input_ids, positions, self.rows)
        context = self.last_attention(x, self.cache.keys[-1], self.cache.values[-1], positions, self.rows)
        return self.head(self.last_post_attention(x, context, self.rows), self.rows)


class KernelPrefill(KernelModel):
    """Read texts, one after another, into the front of a cache of one row; see `Prefill`.

    Of the last block only keys and values are made: its result is wanted of few tokens, and `KernelLastLogits` and
    `KernelTargetLogProbs` make it of those.
    """

    def __init__(self, backbone: nn.Cell, cache: KeyValueCache):
        super().__init__(backbone, cache, kernels.attention_within_texts())
        self.tokens = cache.capacity
        self.depend = ops.Depend()
        self.keep = KernelAttention(backbone.blocks[-1], kernels.keep_keys_and_values(), ("dense2", "dense3"))

    def construct(self, input_ids: Tensor, positions: Tensor, _slots: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (1, T) int32 -> (T, H): the last block's input"""
        x = self.to_last_block(input_ids, positions, rows)
        return self.depend(x, self.keep(x, self.cache.keys[-1], self.cache.values[-1], rows))


class KernelLastBlock(nn.Cell):
    """The last block, for some of the tokens that `KernelPrefill` has read."""

    def __init__(self, backbone: nn.Cell, cache: KeyValueCache):
        super().__init__(auto_prefix=False)
        block = backbone.blocks[-1]
        self.keys, self.values = cache.keys[-1], cache.values[-1]
        self.attention = KernelAttention(block, kernels.attention_of_tokens(), ("dense1",))
        self.post_attention = KernelPostAttention(block)
        self.gather = ops.Gather()

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """x: (T, H), from `KernelPrefill`; slots: (n,) int32, which tokens; positions: (n,) int32, each one's in its
        text -> (n, H)"""
        x = self.gather(x, slots, 0)
        return self.post_attention(x, self.attention(x, self.keys, self.values, slots, positions, rows), rows)


class KernelLastLogits(InferenceCell):
    """See `LastLogits`."""

    def __init__(self, backbone: nn.Cell, _head: nn.Cell, cache: KeyValueCache):
        super().__init__()
        self.last_block = KernelLastBlock(backbone, cache)
        self.head = KernelHead(backbone)

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Arguments as of `KernelLastBlock` -> (n, V)"""
        return self.head(self.last_block(x, slots, positions, rows), rows)


class KernelTargetLogProbs(InferenceCell):
    """See `TargetLogProbs`."""

    def __init__(self, backbone: nn.Cell, _head: nn.Cell, cache: KeyValueCache):
        super().__init__()
        self.last_block = KernelLastBlock(backbone, cache)
        self.losses = KernelTargetLosses(backbone)
        self.neg = ops.Neg()

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """As `KernelLastLogits`; targets: (n,) int32, the tokens that follow -> (n,): log P of each"""
        return self.neg(self.losses(self.last_block(x, slots, positions, rows), targets, rows))


class KernelCopyRow(InferenceCell):
    """See `CopyRow`."""

    def __init__(self, source: KeyValueCache, target: KeyValueCache):
        super().__init__()
        self.source = source
        self.target = target
        self.copy = kernels.copy_row()
        self.concat = ops.Concat()
        self.sizes = Tensor([source.heads, source.capacity, target.capacity], ms.int32)

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor) -> Tensor:
        """source_row, first_slot, target_row: (1,) int32 -> (1,) int32: how many slots were copied"""
        source = [*self.source.keys, *self.source.values]
        target = [*self.target.keys, *self.target.values]
        return self.copy(*source, *target, self.concat((source_row, first_slot, target_row)), self.sizes)


KERNEL_CELLS = InferenceCells(
    AlignedCache, KernelDecode, KernelPrefill, KernelLastLogits, KernelTargetLogProbs, KernelCopyRow
)
