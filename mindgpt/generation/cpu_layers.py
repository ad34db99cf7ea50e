"""The cells of `cached_model.py` by the C++ kernels: the same function of the model's own weights, on a CPU.

Shape letters: B rows of the cache, T tokens there is room for, n of them that are wanted, M rows, C slots of the cache,
H hidden, F feed-forward width, N heads, D head size, V vocabulary. A cell is told how many of its rows hold anything.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindgpt.generation.cached_model import Graph, KeyValueCache
from mindgpt.models.cpu import kernels
from mindgpt.models.cpu.gpt2_layers import (
    KernelAttention,
    KernelBehindAttention,
    KernelEmbedding,
    KernelHead,
    KernelTargetLosses,
)
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_heads import LMHead


class KernelModel(Graph):
    """What `KernelDecode` and `KernelPrefill` have in common: embeddings, and all blocks but the last.

    Args:
        backbone: the model's.
        cache: that tokens are written to.
        attend: the blocks' attention, one of the kernels that write to the cache.
    """

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache, attend: ops.Custom):
        super().__init__()
        self.embed = KernelEmbedding(backbone)
        blocks = list(backbone.blocks)[:-1]  # a slice of it would be cells that rename the weights
        self.attentions = nn.CellList([KernelAttention(block, attend) for block in blocks], auto_prefix=False)
        self.behind = nn.CellList([KernelBehindAttention(block) for block in blocks], auto_prefix=False)
        self.cache = cache

    def to_last_block(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (B, T) int32 -> (B*T, H)"""
        x = self.embed(input_ids, positions, rows)
        for layer, attention in enumerate(self.attentions):
            context = attention(x, self.cache.keys[layer], self.cache.values[layer], positions, rows)
            x = self.behind[layer](x, context, rows)
        return x


class KernelDecode(KernelModel):
    """Read one more token of each row; see `Decode`."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        attend = kernels.attention_of_next_tokens()
        super().__init__(backbone, cache, attend)
        self.last_attention = KernelAttention(backbone.blocks[-1], attend)
        self.behind_last = KernelBehindAttention(backbone.blocks[-1])
        self.head = KernelHead(backbone)
        self.rows = Tensor([cache.shape[0]], ms.int32)

    def construct(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32 -> (B, V): logits at these tokens"""
        x = self.to_last_block(input_ids, positions, self.rows)
        context = self.last_attention(x, self.cache.keys[-1], self.cache.values[-1], positions, self.rows)
        return self.head(self.behind_last(x, context, self.rows), self.rows)


class KernelPrefill(KernelModel):
    """Read texts, one behind the other, into the front of a cache of one row.

    Of the last block only keys and values are made: its result is wanted of few tokens, and `KernelLastLogits` and
    `KernelTargetLogProbs` make it of those.
    """

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache):
        super().__init__(backbone, cache, kernels.attention_within_texts())
        self.keep = KernelAttention(backbone.blocks[-1], kernels.keep_keys_and_values(), ("dense2", "dense3"))

    def construct(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, positions: (1, T) int32; rows: (1,) int32, how many tokens there are -> (T, H): the last block's
        input; (1,) int32: how many tokens are in the cache now"""
        x = self.to_last_block(input_ids, positions, rows)
        return x, self.keep(x, self.cache.keys[-1], self.cache.values[-1], rows)


class KernelLastBlock(nn.Cell):
    """The last block, for some of the tokens that `KernelPrefill` has read."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache):
        super().__init__(auto_prefix=False)
        block = backbone.blocks[-1]
        self.keys, self.values = cache.keys[-1], cache.values[-1]
        self.attention = KernelAttention(block, kernels.attention_of_tokens(), ("dense1",))
        self.behind = KernelBehindAttention(block)
        self.gather = ops.Gather()

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """x: (T, H), from `KernelPrefill`; slots: (n,) int32, which tokens; positions: (n,) int32, each one's in its
        text -> (n, H)"""
        x = self.gather(x, slots, 0)
        return self.behind(x, self.attention(x, self.keys, self.values, slots, positions, rows), rows)


class KernelLastLogits(Graph):
    """What comes behind some of the tokens that `KernelPrefill` has read."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache):
        super().__init__()
        self.last_block = KernelLastBlock(backbone, cache)
        self.head = KernelHead(backbone)

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Arguments as of `KernelLastBlock` -> (n, V)"""
        return self.head(self.last_block(x, slots, positions, rows), rows)


class KernelTargetLogProbs(Graph):
    """How likely what comes behind some of the tokens was."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache):
        super().__init__()
        self.last_block = KernelLastBlock(backbone, cache)
        self.losses = KernelTargetLosses(backbone)
        self.neg = ops.Neg()

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """As `KernelLastLogits`; targets: (n,) int32, the tokens behind -> (n,): log P of each"""
        return self.neg(self.losses(self.last_block(x, slots, positions, rows), targets, rows))


class KernelCopyRow(Graph):
    """See `CopyRow`."""

    def __init__(self, source: KeyValueCache, target: KeyValueCache):
        super().__init__()
        self.source = source
        self.target = target
        self.copy = kernels.copy_row()
        self.concat = ops.Concat()
        _, heads, slots, _ = source.shape
        self.sizes = Tensor([heads, slots, target.shape[2]], ms.int32)

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor) -> Tensor:
        """source_row, first_slot, target_row: (1,) int32 -> (1,) int32: how many slots were copied"""
        source = [*self.source.keys, *self.source.values]
        target = [*self.target.keys, *self.target.values]
        return self.copy(*source, *target, self.concat((source_row, first_slot, target_row)), self.sizes)
