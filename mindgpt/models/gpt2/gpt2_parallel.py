"""The parallel layout of a model: shard strategies, pipeline stages and recompute, applied to a built model.

A layout is data_parallel x model_parallel x pipeline_stage ranks. Within a stage, rows (tokens of all sequences) are
sharded over data_parallel, and heads and widths over model_parallel, as in Megatron-LM (Shoeybi et al. 2019, section
3): query, key, value and `mapping` by columns, `projection` by rows, so that a block costs two AllReduce forward and
two backward. With sequence parallelism (Korthikanti et al. 2022, section 4.2) layer norm, dropout and residual are
sharded by rows over both, and each AllReduce becomes a ReduceScatter and an AllGather. The head and the loss are
sharded by vocabulary over model_parallel or, where it cannot be divided or is to stay whole, by rows over both. Stages
hold consecutive blocks; the token embedding is on the first and, unless the head is untied, as the head on the last.

The strategies are those of MindSpore's semi-automatic parallelism: one tuple for each input, and in it for each
dimension the number of shards.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mindspore import Parameter, nn, ops

from mindgpt.models.dropout import MaskedDropout, seed_shard
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel, GPT2Model
from mindgpt.models.gpt2.gpt2_classifier import GPT2ForSequenceClassification
from mindgpt.models.gpt2.gpt2_heads import CrossEntropy
from mindgpt.models.gpt2.gpt2_masks import AttentionMask, Documents
from mindgpt.models.gpt2.gpt2_modules import (
    Activation,
    Attention,
    Block,
    FlashAttention,
    GPT2Embedding,
    GPT2MLBlock,
    LayerNorm,
    Linear,
    PlainAttention,
)
from mindgpt.runtime.ranks import rank

_COMPRESSED_MASK = (1, 1)
"""The strategy of the compressed causal mask: it is the same for all rows and heads."""


@dataclass(frozen=True)
class Layout:
    """How a model is sharded.

    Attributes:
        data_parallel, model_parallel: their product is the number of ranks of a pipeline stage.
        blocks: of each pipeline stage; not needed for one.
        sequence_parallel: shard layer norm, dropout and residual over model_parallel too.
        vocab_parallel: shard the token embedding, the head and the loss by vocabulary over model_parallel.
        head_by_rows: shard the rows of the language-model head and its loss over model_parallel too; not with
            `vocab_parallel`.
        padding: whether every row has a mask of its own: the model will be called with an attention mask, or each
            document of a row sees only itself.
        own_positions: whether every row has positions of its own, which begin anew in each document.
    """

    data_parallel: int = 1
    model_parallel: int = 1
    blocks: tuple[int, ...] = ()
    sequence_parallel: bool = False
    vocab_parallel: bool = False
    head_by_rows: bool = False
    padding: bool = True
    own_positions: bool = False

    @property
    def pipeline_stages(self) -> int:
        """The number of pipeline stages."""
        return max(1, len(self.blocks))

    @property
    def row_shards(self) -> int:
        """The number of shards of rows between the blocks' products."""
        return self.data_parallel * (self.model_parallel if self.sequence_parallel else 1)

    @property
    def head_strategy(self) -> tuple[int, int]:
        """The strategy of the logits, (rows, vocabulary): one of the two is sharded over model_parallel, or none."""
        assert not (self.vocab_parallel and self.head_by_rows), "logits are sharded once over model_parallel"
        rows = self.data_parallel * (self.model_parallel if self.head_by_rows else 1)
        return rows, self.model_parallel if self.vocab_parallel else 1

    def shard_number(self, strategy: tuple[int, ...]) -> int:
        """Which shard of a tensor this rank holds. MindSpore counts shards in the order of ranks; where there are fewer
        shards than ranks of a stage, neighbours hold the same."""
        ranks = self.data_parallel * self.model_parallel
        return rank() % ranks * math.prod(strategy) // ranks

    @property
    def mask_strategy(self) -> tuple[int, int, int, int]:
        """The strategy of an attention mask that is not compressed."""
        return (self.data_parallel if self.padding else 1, 1, 1, 1)


def apply_layout(model: GPT2LMHeadModel | GPT2ForSequenceClassification, layout: Layout) -> None:
    """Set the shard strategies and pipeline stages of `model`, before its first call."""
    backbone = model.backbone
    _shard_mask(backbone.attention_mask, layout, backbone.reset_attention_mask)
    if backbone.documents is not None:
        _shard_documents(backbone.documents, layout)
    _shard_embedding(backbone.embedding, layout)
    for block in backbone.blocks:
        _shard_block(block, layout)
    for linear, by_column in linear_layers(backbone):
        _shard_linear(linear, layout, by_column)
    if backbone.layernorm is not None:
        _shard_layer_norm(backbone.layernorm, layout)
    if isinstance(model, GPT2LMHeadModel):
        _shard_language_head(model, layout)
    else:
        _shard_classification_head(model, layout)
    if layout.pipeline_stages > 1:
        _set_stages(model, layout.blocks)


def stage_of_blocks(blocks: Sequence[int]) -> list[int]:
    """The pipeline stage of each block. blocks: the number of blocks of each stage, which are consecutive."""
    return [stage for stage, number in enumerate(blocks) for _ in range(number)]


def parameters_of_stage(model: nn.Cell, blocks: Sequence[int], stage: int) -> list[Parameter]:
    """The trained parameters that a pipeline stage holds and updates; each is of one stage. blocks: of each stage.

    The token embedding is the first stage's. Unless the head is untied, MindSpore sends it to the last stage in every
    step, where it is the head, and its gradient back (see `has_tied_copy`).
    """
    backbone: GPT2Model = model.backbone
    cells = [backbone.embedding] if stage == 0 else []
    of_blocks = zip(backbone.blocks, stage_of_blocks(blocks), strict=True)
    cells += [block for block, its_stage in of_blocks if its_stage == stage]
    if stage == len(blocks) - 1:
        cells += [] if backbone.layernorm is None else [backbone.layernorm]
        cells += [model.head if isinstance(model, GPT2LMHeadModel) else model.score]
    held = {id(parameter) for cell in cells for parameter in cell.get_parameters()}
    return [parameter for parameter in model.trainable_params() if id(parameter) in held]


def has_tied_copy(model: nn.Cell, stages: int, stage: int, parameter: Parameter) -> bool:
    """Whether this stage has a tied copy of a parameter of another stage, and computes a part of its gradient."""
    is_head = is_tied(model) and parameter is model.backbone.embedding.word_embedding.embedding_table
    return is_head and stage == stages - 1 > 0


def is_tied(model: nn.Cell) -> bool:
    """Whether a model's head is its token embedding."""
    return isinstance(model, GPT2LMHeadModel) and model.head.weight is None


def _set_stages(model: nn.Cell, blocks: Sequence[int]) -> None:
    backbone: GPT2Model = model.backbone
    stages = len(blocks)
    backbone.embedding.pipeline_stage = 0
    for block, stage in zip(backbone.blocks, stage_of_blocks(blocks), strict=True):
        block.pipeline_stage = stage
    if backbone.layernorm is not None:
        backbone.layernorm.pipeline_stage = stages - 1
    head = model.head if isinstance(model, GPT2LMHeadModel) else model.score
    head.pipeline_stage = stages - 1
    if is_tied(model):
        table = backbone.embedding.word_embedding.embedding_table
        for stage in (0, stages - 1):
            table.add_pipeline_stage(stage)
        if not table.requires_grad:  # LoRA's: MindSpore 2.10 sends a shard of it and does not gather on arrival
            table.parallel_optimizer = False


def _shard_documents(cell: Documents, layout: Layout) -> None:
    tokens, mask = (layout.data_parallel, 1), (layout.data_parallel, 1, 1, 1)
    cell.is_end.shard((tokens, ()))
    cell.to_number.shard((tokens,))
    cell.count_ends.shard((tokens,))
    cell.sub.shard((tokens, tokens))
    cell.same.shard((mask, mask))
    cell.both.shard(((1, 1, 1, 1), mask))
    cell.to_one.shard((mask,))
    cell.count_seen.shard((mask,))
    cell.sub_one.shard((tokens, ()))


def _shard_mask(cell: AttentionMask, layout: Layout, of_documents: bool) -> None:
    """of_documents: whether rows have masks of their own before padding is taken out."""
    dp = layout.data_parallel
    cell.not_equal.shard(((dp, 1, 1, 1), ()))
    cell.both.shard(((dp if of_documents else 1, 1, 1, 1), (dp, 1, 1, 1)))
    cell.logical_not.shard((layout.mask_strategy,))
    cell.mul.shard((layout.mask_strategy, ()))
    cell.cast.shard((layout.mask_strategy,))


def _shard_embedding(cell: GPT2Embedding, layout: Layout) -> None:
    dp, mp = layout.data_parallel, layout.model_parallel
    cell.word_embedding.gather.shard(((mp, 1), (dp, 1)) if layout.vocab_parallel else ((1, 1), (dp, 1)))
    of_positions = dp if layout.own_positions else 1
    cell.position_embedding.gather.shard(((1, 1), (of_positions, 1)))
    cell.add.shard(((dp, 1, 1), (of_positions, 1, 1)))
    if cell.layernorm is not None:
        cell.layernorm.layer_norm.shard(((dp, 1, 1), (1,), (1,)))
    shard_dropout(cell.dropout, layout, (dp, 1, 1))


def _shard_block(block: Block, layout: Layout) -> None:
    rows = layout.row_shards
    _shard_layer_norm(block.layernorm1, layout)
    _shard_attention(block.attention, layout)
    _shard_layer_norm(block.layernorm2, layout)
    _shard_activation(block.output.activation, layout)
    if isinstance(block, GPT2MLBlock) and layout.sequence_parallel:
        # MindSpore 2.10 gathers the input of a block once for each of query, key and value, and in the backward pass
        # does not merge their three ReduceScatter. After an operator it is one of each, as after GPT-2's layer norm.
        block.gather_rows = ops.Identity().shard(((layout.data_parallel, 1),))
    for residual in (block.add1, block.add2):
        residual.shard(((rows, 1), (rows, 1)))
    for dropout in (block.dropout1, block.dropout2):
        shard_dropout(dropout, layout, (rows, 1))


def _shard_layer_norm(cell: LayerNorm, layout: Layout) -> None:
    cell.layer_norm.shard(((layout.row_shards, 1), (1,), (1,)))


def _shard_attention(cell: Attention, layout: Layout) -> None:
    dp, mp = layout.data_parallel, layout.model_parallel
    cell.transpose.shard(((dp, 1, mp, 1),))
    cell.transpose_back.shard(((dp, mp, 1, 1),))
    heads = (dp, mp, 1, 1)
    if isinstance(cell.attend, FlashAttention):
        cell.attend.flash.shard((heads, heads, heads, layout.mask_strategy))
        cell.attend.flash_with_dropout.shard((heads, heads, heads, heads, layout.mask_strategy))
        cell.attend.causal.shard((heads, heads, heads, _COMPRESSED_MASK))
        cell.attend.causal_with_dropout.shard((heads, heads, heads, heads, _COMPRESSED_MASK))
        cell.attend.draw_mask.shard((heads,))  # MindSpore adds the rank to its seed
        return
    attend: PlainAttention = cell.attend
    attend.scores.shard((heads, heads))
    attend.context.shard((heads, heads))
    attend.mul.shard((heads, ()))
    attend.add.shard((heads, layout.mask_strategy))
    attend.softmax.shard((heads,))
    shard_dropout(attend.dropout, layout, heads)


def linear_layers(backbone: GPT2Model) -> Iterator[tuple[Linear, bool]]:
    """Every linear layer of the blocks, and whether it is sharded by column."""
    for block in backbone.blocks:
        attention = block.attention
        for dense in (attention.dense1, attention.dense2, attention.dense3):
            yield dense, True
        yield attention.projection, False
        yield block.output.mapping, True
        yield block.output.projection, False


def _shard_linear(cell: Linear, layout: Layout, by_column: bool) -> None:
    """Shard a product by columns of its weight (every rank computes some of the outputs) or by rows (every rank takes
    some of the inputs, and the ranks' outputs are summed)."""
    dp, mp, rows = layout.data_parallel, layout.model_parallel, layout.row_shards
    out_in = cell.matmul_is_out_in
    if by_column:
        cell.matmul.shard(((dp, 1), (mp, 1) if out_in else (1, mp)))
        cell.add.shard(((dp, mp), (mp,)))
    else:
        weight = (1, mp) if out_in else (mp, 1)
        if layout.sequence_parallel:
            cell.matmul.shard(((dp, mp), weight), ((rows, 1),))
        else:
            cell.matmul.shard(((dp, mp), weight))
        cell.add.shard(((rows, 1), (1,)))


def _shard_activation(cell: Activation, layout: Layout) -> None:
    dp, mp = layout.data_parallel, layout.model_parallel
    for operator in (cell.tanh, cell.erf, cell.sigmoid, cell.relu, *([] if cell.fused is None else [cell.fused])):
        operator.shard(((dp, mp),))
    for operator in (cell.mul_one, cell.add_one):
        operator.shard(((dp, mp), ()))
    for operator in (cell.mul, cell.add):
        operator.shard(((dp, mp), (dp, mp)))


def shard_dropout(cell: nn.Cell, layout: Layout, strategy: tuple[int, ...]) -> None:
    """Shard the dropout of Ascend; each shard has masks of its own."""
    if isinstance(cell, MaskedDropout):
        cell.apply_mask.shard((strategy,))
        seed_shard(cell.draw_mask, layout.shard_number(strategy))


def _shard_cross_entropy(cell: CrossEntropy, rows: int, classes: int) -> None:
    cell.by_one_hot = classes > 1
    cell.max.shard(((rows, classes),))
    cell.sum.shard(((rows, classes),))
    cell.sub.shard(((rows, classes), (rows, 1)))
    cell.exp.shard(((rows, classes),))
    cell.log.shard(((rows, 1),))
    cell.pick.shard(((rows, 1), (rows, 1)))
    cell.one_hot.shard(((rows, classes), (), ()))
    cell.mul.shard(((rows, classes), (rows, classes)))
    cell.picked_sum.shard(((rows, classes),))
    cell.sub_picked.shard(((rows, 1), (rows, 1)))


def _shard_language_head(model: GPT2LMHeadModel, layout: Layout) -> None:
    dp = layout.data_parallel
    rows, classes = layout.head_strategy
    model.head.matmul.shard(((rows, 1), (classes, 1)))
    model.head.add.shard(((rows, classes), (classes,)))
    _shard_cross_entropy(model.cross_entropy, rows, classes)
    targets = model.next_tokens
    targets.slice.shard(((dp, 1),))
    targets.not_equal.shard(((dp,), ()))
    targets.both.shard(((dp,), (dp,)))
    targets.mul.shard(((dp,), (dp,)))
    targets.cast.shard(((dp,),))
    model.mul.shard(((rows,), (rows,)))
    for operator in (model.sum_losses, model.sum_weights):
        operator.shard(((rows,),))


def _shard_classification_head(model: GPT2ForSequenceClassification, layout: Layout) -> None:
    dp = layout.data_parallel
    model.score.matmul.shard(((dp, 1), (1, 1)))
    _shard_cross_entropy(model.cross_entropy, dp, 1)
    model.not_padding.shard(((dp, 1), ()))
    model.column_of_real.shard(((1, 1), (dp, 1)))
    model.last.shard(((dp, 1),))
    model.pool.shard(((1, 1), (dp,)))
    model.not_equal.shard(((dp,), ()))
    model.valid.shard(((dp,), (dp,)))
    model.gather.shard(((1,), (dp,)))
    model.mul.shard(((dp,), (dp,)))
    model.weigh.shard(((dp,), (dp,)))
    for operator in (model.sum_losses, model.sum_weights):
        operator.shard(((dp,),))
