"""GPT-2 (Radford et al. 2019): the transformer, its language-model head, and the cells that generate with them.

Shape letters: B batch, L row length as given, T tokens the network sees, C slots of a row of the key/value cache,
H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError
from mindgpt.models.acceleration import accelerate
from mindgpt.models.gpt2.gpt2_cache import KeyValueCache, ModelCache
from mindgpt.models.gpt2.gpt2_heads import CrossEntropy, LMHead, NextTokens
from mindgpt.models.gpt2.gpt2_masks import AttentionMask, Documents
from mindgpt.models.gpt2.gpt2_modules import (
    GPT2Embedding,
    block_class,
    new_layer_norm,
    use_flash_kernel,
)
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.runtime.precision import precision_of

if TYPE_CHECKING:
    from pathlib import Path

    from mindgpt.tokenizers.tokenizer import BaseTokenizer


class GPT2Model(nn.Cell):
    """The transformer without a head: embeddings, blocks, and a last layer norm if the config has a `final_norm`.

    With `reset_attention_mask` a row is several documents, each of which ends with `eos_token_id` and sees only itself;
    with `reset_position_ids` positions begin anew in each. Generation, which calls `forward`, takes a row for one text.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        precision = precision_of(config)
        positions = config.max_position_embeddings
        self.config = config
        self.embedding = GPT2Embedding(config, precision)
        self.attention_mask = AttentionMask(precision, use_flash_kernel(config))
        packed = config.reset_attention_mask or config.reset_position_ids
        self.documents = Documents(config.eos_token_ids[0]) if packed else None
        self.reset_attention_mask = config.reset_attention_mask
        self.reset_position_ids = config.reset_position_ids
        block = block_class(config.variant)
        self.blocks = nn.CellList([block(config, precision, layer) for layer in range(config.num_layers)])
        self.layernorm = new_layer_norm(config, precision) if config.final_norm else None
        self.hidden_dtype = precision.layernorm if config.final_norm else precision.compute
        self.hidden_size = config.hidden_size
        self.max_positions = positions
        self.position_ids = Tensor(np.arange(positions, dtype=np.int32).reshape(1, positions))
        self.reshape = ops.Reshape()
        accelerate(self)

    def construct(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            input_ids: (B, T) int32, T at most `max_position_embeddings`.
            attention_mask: (B, T) integers, 0 at padding, which no token sees; None: no padding.

        Returns:
            (B, T, H), in the layer-norm dtype.

        Raises:
            ValueError: T is more than the position table holds.
        """
        batch, tokens = input_ids.shape
        if tokens > self.max_positions:
            raise ValueError(f"{tokens} tokens in a row, but the position table holds {self.max_positions}")
        positions, visible = self.position_ids[:, :tokens], None
        if attention_mask is not None or not self.attention_mask.flash:
            visible = self.attention_mask.causal(tokens)  # (1, 1, T, T)
        if self.documents is not None:
            of_document = self.documents(input_ids, self.attention_mask.causal(tokens))  # (B, 1, T, T)
            if self.reset_position_ids:
                positions = self.documents.positions(of_document)  # (B, T)
            if self.reset_attention_mask:
                visible = of_document
        if attention_mask is not None:
            visible = self.attention_mask.without_padding(visible, attention_mask)  # (B, 1, T, T)
        x = self.forward(input_ids, positions, visible)
        return self.reshape(x, (batch, tokens, self.hidden_size))

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, visible: Tensor | None, cache: ModelCache | None = None
    ) -> Tensor:
        """The forward pass of training, evaluation, prefill and decode.

        Args:
            input_ids: (B, T) int32.
            position_ids: (B, T) or (1, T) int32.
            visible: (B or 1, 1, T, C) bool, the slots of its row of the cache that each token sees; without a cache
                (B or 1, 1, T, T), the tokens. None, for flash attention without a cache: itself and all before it; no
                tensor of T x T is made.
            cache: what `KeyValueCache.at` returns; the tokens are written to it.

        Returns:
            (B*T, H), in `hidden_dtype`.
        """
        mask = self.attention_mask.compressed if visible is None else self.attention_mask(visible)
        tokens = input_ids.shape[1]
        x = self.reshape(self.embedding(input_ids, position_ids), (-1, self.hidden_size))
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, tokens) if cache is None else block(x, mask, tokens, cache[layer])
        return x if self.layernorm is None else self.layernorm(x)


class GPT2LMHeadModel(PretrainedCell):
    """GPT-2 as a language model; the head is the token embedding, unless the config unties the two.

    In training mode (`set_train(True)`) it returns the loss, otherwise the logits.

    `padded_on_right`, to be set before the first call: the rows that losses are computed of have padding only after
    their last token. No token sees it there, whatever mask there is, so `attention_mask` only says what is predicted,
    and attention is causal. For flash attention on Ascend, whose causal mask takes no T x T tensor.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.backbone = GPT2Model(config)
        self.head = LMHead(config, precision_of(config))
        accelerate(self.head)
        self.padded_on_right = False
        self.next_tokens = NextTokens()
        self.cross_entropy = CrossEntropy()
        self.hidden_size = config.hidden_size
        self.reshape = ops.Reshape()
        self.mul = ops.Mul()
        self.sum_losses = ops.ReduceSum()
        self.sum_weights = ops.ReduceSum()

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The loss of rows in training mode, else the logits of tokens.

        Args:
            input_ids: (B, L) int32. For logits L is at most `max_position_embeddings`; for the loss it may be one more,
                since the last token of a row is only a target.
            attention_mask: (B, L) integers, 0 at padding: neither seen nor predicted. None: no padding.
            labels: (B, L) int32, `input_ids` if None. They are shifted inside: position i is predicted from the tokens
                before i. -100 takes a position out of the loss. Used in training mode only.

        Returns:
            The mean loss per predicted token, a float32 scalar; or logits, (B, L, V) float32.
        """
        if self.training:
            total, count = self.summed_loss(input_ids, attention_mask, labels)
            return total / ops.maximum(count, 1.0)
        return self.logits(self.backbone(input_ids, attention_mask))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (B, T, H) from the backbone -> (B, T, V) float32"""
        batch, tokens, _ = hidden.shape
        rows = self.reshape(hidden, (-1, self.hidden_size))  # (B*T, H)
        logits = self.head(rows, self.backbone.embedding.word_embedding.embedding_table)
        return self.reshape(logits, (batch, tokens, -1))

    def summed_loss(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses of all predicted tokens, and their number, both float32 scalars; see `construct`."""
        targets, weights = self.next_tokens(input_ids if labels is None else labels, attention_mask)  # (B*T,)
        seen = None
        if attention_mask is not None and not self.padded_on_right:
            seen = self.next_tokens.inputs(attention_mask)  # (B, T) with T = L - 1
        hidden = self.backbone(self.next_tokens.inputs(input_ids), seen)  # (B, T, H)
        rows = self.reshape(hidden, (-1, self.hidden_size))  # (B*T, H)
        logits = self.head(rows, self.backbone.embedding.word_embedding.embedding_table)  # (B*T, V)
        losses = self.mul(self.cross_entropy(logits, targets), weights)
        return self.sum_losses(losses), self.sum_weights(weights)

    def generate(
        self,
        input_ids: Tensor | np.ndarray | Sequence | None = None,
        attention_mask: Tensor | np.ndarray | Sequence | None = None,
        *,
        streamer: Any = None,
        tokenizer: "BaseTokenizer | str | Path | None" = None,
        pad_token_id: int | None = None,
        input_mask: Tensor | np.ndarray | Sequence | None = None,
        **settings: Any,
    ) -> Tensor | list[list[int]]:
        """Continue texts, under the names of Hugging Face transformers.

        Args:
            input_ids: the prompts: (B, T) or (T,) integers, or a list of ids or of such lists. Also as `inputs`.
            attention_mask: of the same shape, 1, and 0 at padding before or after each prompt; None: no padding.
            streamer: gets the tokens of a single text as they come, such as `generation.streaming.TextStreamer`.
            tokenizer: needed for `stop_strings`; or its folder.
            input_mask: MindFormers' name of `attention_mask`.
            pad_token_id: what fills rows after their end; None: the config's, or the end-of-text token.
            settings: `max_new_tokens`, `do_sample`, `top_k`...: see `mindgpt.generation.GenerationSettings`. What is
                not named is as in the config.

        Returns:
            Prompts and what they were continued with. For a tensor or an array (B * num_return_sequences, longest), a
            tensor of int64 if `input_ids` is, else of int32; padding on the left of a prompt stays there. For lists a
            list of lists, each as long as its text.

        Raises:
            UserError: an unknown argument, a value that is not allowed, or prompts that cannot be continued.
        """
        from mindgpt.generation.ids import generate_ids  # the one import upwards: the method people look for is here

        if input_mask is not None:
            if attention_mask is not None:
                raise UserError("input_mask and attention_mask mean the same; give one of them")
            attention_mask = input_mask
        return generate_ids(self, input_ids, attention_mask, streamer, tokenizer, pad_token_id, **settings)


class InferenceCell(nn.Cell):
    """A cell of others' layers that is always called with tensors of the same shapes.

    At every call of a graph MindSpore checks anew whether it fits, for GPT-2 small in 1 to 3 ms; but not for cells in
    the phase that it calls "increment".
    """

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.phase = "increment"
        self.called_with: list[tuple[int, ...]] | None = None

    def __call__(self, *args: Tensor) -> Tensor:
        shapes = [value.shape for value in args]
        assert self.called_with in (None, shapes), f"{type(self).__name__} has one graph for one set of shapes"
        self.called_with = shapes
        return super().__call__(*args)


class Decode(InferenceCell):
    """Read one more token of each row, which attends to all of its row up to itself."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        super().__init__()
        self.backbone, self.head, self.cache = backbone, head, cache

    def construct(self, input_ids: Tensor, positions: Tensor, _rows: Tensor) -> Tensor:
        """input_ids, positions: (B, 1) int32; _rows: (1,) int32, how many count, for kernels that leave out the rest ->
        (B, V) float32: logits at these tokens"""
        x = self.backbone.forward(input_ids, positions, self.cache.up_to(positions), self.cache.at(positions))
        return self.head(x, self.backbone.embedding.word_embedding.embedding_table)


CHUNK = 64
"""Tokens of a prompt that `Prefill` reads at once."""


class Prefill(InferenceCell):
    """Read `tokens` tokens at once into a cache of one row, which several texts may share, one after another."""

    def __init__(self, backbone: GPT2Model, cache: KeyValueCache):
        super().__init__()
        self.backbone, self.cache = backbone, cache
        self.tokens = min(CHUNK, cache.capacity)
        self.sub = ops.Sub()
        self.both = ops.LogicalAnd()

    def construct(self, input_ids: Tensor, positions: Tensor, slots: Tensor, _rows: Tensor) -> Tensor:
        """input_ids, positions, slots: (1, T) int32 -> (T, H). A token sees the slots from the start of its text."""
        visible = self.both(self.cache.up_to(slots), self.cache.since(self.sub(slots, positions)))
        return self.backbone.forward(input_ids, positions, visible, self.cache.at(slots))


class LastLogits(InferenceCell):
    """The logits after some of the tokens that `Prefill` has read."""

    def __init__(self, backbone: GPT2Model, head: LMHead, _cache: KeyValueCache):
        super().__init__()
        self.word_embedding, self.head = backbone.embedding.word_embedding, head
        self.gather = ops.Gather()

    def construct(self, x: Tensor, tokens: Tensor, _positions: Tensor, _rows: Tensor) -> Tensor:
        """x: (T, H) from `Prefill`; tokens: (n,) int32, which of them -> (n, V) float32"""
        return self.head(self.gather(x, tokens, 0), self.word_embedding.embedding_table)


class TargetLogProbs(LastLogits):
    """The log-probabilities of what follows some of the tokens that `Prefill` has read."""

    def __init__(self, backbone: GPT2Model, head: LMHead, cache: KeyValueCache):
        super().__init__(backbone, head, cache)
        self.cross_entropy = CrossEntropy()
        self.neg = ops.Neg()

    def construct(self, x: Tensor, tokens: Tensor, _positions: Tensor, _rows: Tensor, targets: Tensor) -> Tensor:
        """x, tokens: as of `LastLogits`; targets: (n,) int32, the tokens that follow -> (n,) float32: log P of each"""
        logits = self.head(self.gather(x, tokens, 0), self.word_embedding.embedding_table)
        return self.neg(self.cross_entropy(logits, targets))


class CopyRow(InferenceCell):
    """Copy one row of a cache, from some slot on, to the front of a row of another cache or of the same.

    As many slots are copied as the smaller cache has.
    """

    def __init__(self, source: KeyValueCache, target: KeyValueCache):
        super().__init__()
        self.source = source
        self.target = target
        self.slots = Tensor(np.arange(min(source.capacity, target.capacity), dtype=np.int32))
        self.last = Tensor(source.capacity - 1, ms.int32)
        self.gather = ops.Gather()
        self.scatter = ops.ScatterUpdate()
        self.add = ops.Add()
        self.minimum = ops.Minimum()

    def construct(self, source_row: Tensor, first_slot: Tensor, target_row: Tensor, _slots: Tensor) -> None:
        """source_row, first_slot, target_row: (1,) int32; _slots: (1,) int32, how many are wanted at least"""
        taken = self.minimum(self.add(self.slots, first_slot), self.last)  # after the end there is no text
        taken = self.source.rows_of(source_row, taken)
        written = self.target.rows_of(target_row, self.slots)
        for layer in range(len(self.source.keys)):
            keys = self.gather(self.source.keys[layer], taken, 0)  # (N*slots, D)
            values = self.gather(self.source.values[layer], taken, 0)
            self.scatter(self.target.keys[layer], written, keys)
            self.scatter(self.target.values[layer], written, values)


class InferenceCells(NamedTuple):
    """The cells of generation by one implementation, MindSpore's operators or a device's kernels.

    All are built and called alike, as `OPERATOR_CELLS`. `tokens` of a `prefill` cell is how many tokens it reads at
    once; the last argument of `decode` and `prefill`, and the fourth of the two after them, tell how many of the rows
    count, (1,) int32. What comes out of the others is undefined.
    """

    cache: type[KeyValueCache]
    decode: type[InferenceCell]
    prefill: type[InferenceCell]
    last_logits: type[InferenceCell]
    target_log_probs: type[InferenceCell]
    copy_row: type[InferenceCell]


OPERATOR_CELLS = InferenceCells(KeyValueCache, Decode, Prefill, LastLogits, TargetLogProbs, CopyRow)
