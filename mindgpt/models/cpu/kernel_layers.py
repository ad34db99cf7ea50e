"""GPT-2 layers backed by the C++ kernels: the same functions of the model's own weights.

Shape letters: M rows, H hidden, F feed-forward width, V vocabulary; B texts of T tokens. What is called `rows` is how
many of the M rows hold anything, (1,) int32.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.models.cpu import kernels
from mindgpt.models.cpu.operators import TransposedMatMul
from mindgpt.models.gpt2.gpt2_heads import LMHead, NextTokens
from mindgpt.models.gpt2.gpt2_modules import Block, LayerNorm, Linear, PlainAttention, UnbiasedLayerNorm


def divisor(norm: LayerNorm) -> Tensor:
    """What the kernels have to know about a layer norm besides gamma and beta."""
    return kernels.number(norm.eps, isinstance(norm.layer_norm, UnbiasedLayerNorm))


class KernelEmbedding(nn.Cell):
    """Token and position embeddings."""

    def __init__(self, backbone: nn.Cell):
        super().__init__(auto_prefix=False)
        self.words = backbone.embedding.word_embedding
        self.positions = backbone.embedding.position_embedding
        self.embed = kernels.embedding()

    def construct(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids, positions: (B, T) int32 -> (B*T, H)"""
        return self.embed(self.words.embedding_table, self.positions.embedding_table, input_ids, positions, rows)


class KernelAttention(nn.Cell):
    """The first half of a model's block, without the output projection.

    Args:
        block: the model's.
        attend: one of the attentions of `kernels`.
        names: of the linear layers in the block's attention that it takes.
    """

    def __init__(self, block: Block, attend: ops.Custom, names: Sequence[str] = ("dense1", "dense2", "dense3")):
        super().__init__(auto_prefix=False)
        self.norm, self.divisor = block.layernorm1, divisor(block.layernorm1)
        self.linears = nn.CellList([getattr(block.attention, name) for name in names], auto_prefix=False)
        self.scale = (kernels.number(block.attention.attend.scale),) if "dense1" in names else ()
        self.attend = attend

    def construct(self, x: Tensor, *rest: Tensor) -> Tensor:
        """x: (M, H); what the kernel takes after projections and scale -> what it gives"""
        weights = ()
        for linear in self.linears:
            weights += (linear.weight, linear.bias)
        return self.attend(x, self.norm.gamma, self.norm.beta, self.divisor, *weights, *self.scale, *rest)


class KernelBlock(nn.Cell):
    """A model's block; arguments as of `KernelAttention`."""

    def __init__(self, block: Block, attend: ops.Custom, names: Sequence[str] = ("dense1", "dense2", "dense3")):
        super().__init__(auto_prefix=False)
        self.attention = KernelAttention(block, attend, names)
        self.projection = block.attention.projection
        self.norm, self.divisor = block.layernorm2, divisor(block.layernorm2)
        self.mapping, self.contraction = block.output.mapping, block.output.projection
        self.activation = Tensor([kernels.ACTIVATIONS.index(block.output.activation.kind)], ms.int32)
        self.finish = kernels.post_attention()

    def construct(self, x: Tensor, *rest: Tensor) -> Tensor:
        """x: (M, H); what the attention's kernel takes after projections and scale, the last of it `rows` -> (M, H)"""
        context = self.attention(x, *rest)
        norm = (self.norm.gamma, self.norm.beta, self.divisor)
        first = (self.mapping.weight, self.mapping.bias, self.activation)
        second = (self.contraction.weight, self.contraction.bias)
        return self.finish(context, self.projection.weight, self.projection.bias, x, *norm, *first, *second, rest[-1])


class KernelHead(nn.Cell):
    """What follows the last block: layer norm, and logits by the token embedding or an untied head."""

    def __init__(self, backbone: nn.Cell, head: LMHead):
        super().__init__(auto_prefix=False)
        self.norm, self.divisor = backbone.layernorm, divisor(backbone.layernorm)
        self.table = head.table(backbone.embedding.word_embedding.embedding_table)
        self.logits = kernels.logits()

    def construct(self, x: Tensor, rows: Tensor) -> Tensor:
        """(M, H) -> (M, V)"""
        return self.logits(x, self.norm.gamma, self.norm.beta, self.divisor, self.table, rows)


class KernelTargetLosses(nn.Cell):
    """What follows the last block, to the cross-entropy: logits are never all in memory."""

    def __init__(self, backbone: nn.Cell, head: LMHead):
        super().__init__(auto_prefix=False)
        self.norm, self.divisor = backbone.layernorm, divisor(backbone.layernorm)
        self.table = head.table(backbone.embedding.word_embedding.embedding_table)
        self.losses = kernels.target_losses()

    def construct(self, x: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """x: (M, H); targets: (M,) int32 in [0, V) -> (M,): -log P of each"""
        return self.losses(x, self.norm.gamma, self.norm.beta, self.divisor, self.table, targets, rows)


class KernelLosses(nn.Cell):
    """`GPT2LMHeadModel.summed_loss` by the kernels.

    What padding predicts, should a real token follow it and count, differs: here padding sees itself and real tokens
    before it. An id or a label outside the vocabulary raises a RuntimeError.
    """

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        backbone = network.backbone
        self.next_tokens = NextTokens()
        self.embed = KernelEmbedding(backbone)
        attend = kernels.attention_of_rows()
        self.blocks = nn.CellList([KernelBlock(block, attend) for block in backbone.blocks], auto_prefix=False)
        self.losses = KernelTargetLosses(backbone, network.head)
        self.heads = Tensor([backbone.config.num_heads], ms.int32)
        self.max_positions = backbone.max_positions
        self.mul = ops.Mul()
        self.sum = ops.ReduceSum()
        self.cast = ops.Cast()

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Arguments and results as of `GPT2LMHeadModel.summed_loss`."""
        targets, weights = self.next_tokens(input_ids if labels is None else labels, attention_mask)  # (B*T,)
        targets = self.cast(targets, ms.int32)  # the kernels take what they get for int32
        input_ids = self.cast(self.next_tokens.inputs(input_ids), ms.int32)  # (B, T)
        batch, tokens = input_ids.shape
        if tokens < 1:
            raise ValueError("rows of one token: there is nothing to predict")
        if tokens > self.max_positions:
            raise ValueError(f"{tokens} tokens in a row, but the position table holds {self.max_positions}")
        if attention_mask is None:
            mask = Tensor(np.ones((batch, tokens), np.int32))
        else:
            mask = self.cast(self.next_tokens.inputs(attention_mask), ms.int32)
        positions = Tensor(np.tile(np.arange(tokens, dtype=np.int32), (batch, 1)))
        rows = Tensor(np.array([batch * tokens], np.int32))
        x = self.embed(input_ids, positions, rows)
        for block in self.blocks:
            x = block(x, mask, self.heads, rows)
        return self.sum(self.mul(self.losses(x, targets, rows), weights)), self.sum(weights)


def kernels_fit(backbone: nn.Cell) -> bool:
    """Whether these cells can stand in for those of a `GPT2Model`: the block of GPT-2, weights in float32, no other
    layers in the place of its own (LoRA, tensor parallelism), and no padding in its vocabulary."""
    if any(weight.dtype != ms.float32 for weight in backbone.get_parameters()):
        return False
    if backbone.config.token_count < backbone.config.vocab_size:
        return False
    if backbone.embedding.layernorm is not None or backbone.layernorm is None:
        return False
    if any(type(block) is not Block or not _layers_fit(block) for block in backbone.blocks):
        return False
    return kernels.library() is not None


def _layers_fit(block: Block) -> bool:
    attention, output = block.attention, block.output
    linears = [attention.dense1, attention.dense2, attention.dense3, attention.projection]
    linears += [output.mapping, output.projection]
    return type(attention.attend) is PlainAttention and all(
        type(linear) is Linear and isinstance(linear.matmul, ops.MatMul | TransposedMatMul) for linear in linears
    )
