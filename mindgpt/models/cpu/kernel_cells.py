"""The cells of generation backed by the C++ kernels; see those of `gpt2.py`.

Shape letters: B rows of the cache, T tokens there is room for, n of them that are wanted, H hidden, V vocabulary. What
is called `rows` is how many of a cell's rows hold anything, (1,) int32.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindgpt.models.cpu import kernels
from mindgpt.models.cpu.kernel_layers import (
    KernelAttention,
    KernelBlock,
    KernelEmbedding,
    KernelHead,
    KernelTargetLosses,
)
from mindgpt.models.cpu.operators import align
from mindgpt.models.gpt2.gpt2 import InferenceCell, InferenceCells
from mindgpt.models.gpt2.gpt2_cache import KeyValueCache
from mindgpt.models.gpt2.gpt2_heads import LMHead


class AlignedCache(KeyValueCache):
    """A `KeyValueCache` that begins on cache lines."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        align([*self.keys, *self.values])


class KernelModel(InferenceCell):
    """Embeddings and blocks, up to the final layer norm.

    Args:
        backbone: the model's.
        cache: that tokens are written to.
        attend: the blocks' attention, one of the kernels that write to the cache.
        layers: how many of the blocks.
    """

    def __init__(self, backbone: nn.Cell, cache: KeyValueCache, attend: ops.Custom, layers: int):
        super().__init__()
        self.embed = KernelEmbedding(backbone)
        blocks = list(backbone.blocks)[:layers]  # a slice of it would be cells that rename the weights
        self.blocks = nn.CellList([KernelBlock(block, attend) for block in blocks], auto_prefix=False)
        self.cache = cache

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (B, T) int32 -> (B*T, H)"""
        x = self.embed(input_ids, positions, rows)
        for layer, block in enumerate(self.blocks):
            x = block(x, self.cache.keys[layer], self.cache.values[layer], positions, rows)
        return x


class KernelDecode(KernelModel):
    """See `Decode`."""

    def __init__(self, backbone: nn.Cell, head: LMHead, cache: KeyValueCache):
        super().__init__(backbone, cache, kernels.attention_of_next_tokens(), len(backbone.blocks))
        self.head = KernelHead(backbone, head)

    def construct(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32 -> (B, V): logits at these tokens"""
        return self.head(self.forward(input_ids, positions, rows), rows)


class KernelPrefill(KernelModel):
    """See `Prefill`; the texts begin at slot 0.

    Of the last block only keys and values are computed: its result is wanted of few tokens, for which
    `KernelLastLogits` and `KernelTargetLogProbs` compute it.
    """

    def __init__(self, backbone: nn.Cell, cache: KeyValueCache):
        super().__init__(backbone, cache, kernels.attention_within_texts(), len(backbone.blocks) - 1)
        self.tokens = cache.capacity
        self.depend = ops.Depend()
        self.keep = KernelAttention(backbone.blocks[-1], kernels.keep_keys_and_values(), ("dense2", "dense3"))

    def construct(self, input_ids: Tensor, positions: Tensor, _slots: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (1, T) int32 -> (T, H): the last block's input"""
        x = self.forward(input_ids, positions, rows)
        return self.depend(x, self.keep(x, self.cache.keys[-1], self.cache.values[-1], rows))


class KernelLastLogits(InferenceCell):
    """See `LastLogits`."""

    def __init__(self, backbone: nn.Cell, head: LMHead, cache: KeyValueCache):
        super().__init__()
        self.keys, self.values = cache.keys[-1], cache.values[-1]
        self.block = KernelBlock(backbone.blocks[-1], kernels.attention_of_tokens(), ("dense1",))
        self.head = KernelHead(backbone, head)
        self.gather = ops.Gather()

    def last_block(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """x: (T, H), from `KernelPrefill`; slots: (n,) int32, which tokens; positions: (n,) int32, each one's in its
        text -> (n, H)"""
        return self.block(self.gather(x, slots, 0), self.keys, self.values, slots, positions, rows)

    def construct(self, x: Tensor, slots: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Arguments as of `last_block` -> (n, V)"""
        return self.head(self.last_block(x, slots, positions, rows), rows)


class KernelTargetLogProbs(KernelLastLogits):
    """See `TargetLogProbs`."""

    def __init__(self, backbone: nn.Cell, head: LMHead, cache: KeyValueCache):
        super().__init__(backbone, head, cache)
        self.losses = KernelTargetLosses(backbone, head)
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

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor, slots: Tensor) -> Tensor:
        """source_row, first_slot, target_row, slots: (1,) int32 -> (1,) int32: how many slots were copied"""
        source = [*self.source.keys, *self.source.values]
        target = [*self.target.keys, *self.target.values]
        return self.copy(*source, *target, self.concat((source_row, first_slot, target_row, slots)), self.sizes)


KERNEL_CELLS = InferenceCells(
    AlignedCache, KernelDecode, KernelPrefill, KernelLastLogits, KernelTargetLogProbs, KernelCopyRow
)
