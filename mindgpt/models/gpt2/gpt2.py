"""GPT-2 (Radford et al. 2019): the transformer and its language-model head.

Shape letters: B batch, L row length as given, T tokens the network sees, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.config.errors import UserError
from mindgpt.models.gpt2.gpt2_heads import CrossEntropy, LMHead, NextTokens
from mindgpt.models.gpt2.gpt2_modules import (
    AttentionMask,
    GPT2Embedding,
    LayerNorm,
    block_class,
    use_flash_kernel,
)
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.runtime.alignment import align
from mindgpt.runtime.precision import precision_of

if TYPE_CHECKING:
    from pathlib import Path

    from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer


class GPT2Model(nn.Cell):
    """The transformer without a head: embeddings, pre-norm blocks, a last layer norm."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        precision = precision_of(config)
        positions = config.max_position_embeddings
        self.config = config
        self.embedding = GPT2Embedding(config, precision)
        self.attention_mask = AttentionMask(precision, use_flash_kernel(config))
        block = block_class()
        self.blocks = nn.CellList([block(config, precision, layer) for layer in range(config.num_layers)])
        self.layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon, precision)
        self.hidden_size = config.hidden_size
        self.max_positions = positions
        self.causal = Tensor(np.tril(np.ones((1, 1, positions, positions), np.bool_)))
        self.position_ids = Tensor(np.arange(positions, dtype=np.int32).reshape(1, positions))
        self.reshape = ops.Reshape()
        if ms.get_context("device_target") == "CPU":
            align(self.get_parameters())

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
        visible = self.causal[:, :, :tokens, :tokens]  # (1, 1, T, T)
        if attention_mask is not None:
            visible = self.attention_mask.without_padding(visible, attention_mask)  # (B, 1, T, T)
        mask = self.attention_mask(visible)
        x = self.reshape(self.embedding(input_ids, self.position_ids[:, :tokens]), (-1, self.hidden_size))  # (B*T, H)
        for block in self.blocks:
            x = block(x, mask)
        return self.reshape(self.layernorm(x), (batch, tokens, self.hidden_size))


class GPT2LMHeadModel(PretrainedCell):
    """GPT-2 as a language model; the head is the token embedding.

    In training mode (`set_train(True)`) it returns the loss, otherwise the logits.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.backbone = GPT2Model(config)
        self.head = LMHead(precision_of(config))
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
        seen = None if attention_mask is None else self.next_tokens.inputs(attention_mask)  # (B, T) with T = L - 1
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
        tokenizer: "GPT2Tokenizer | str | Path | None" = None,
        pad_token_id: int | None = None,
        input_mask: Tensor | np.ndarray | Sequence | None = None,
        **settings: Any,
    ) -> Tensor | list[list[int]]:
        """Continue texts, under the names of Hugging Face transformers.

        Args:
            input_ids: the prompts: (B, T) or (T,) integers, or a list of ids or of such lists. Also as `inputs`.
            attention_mask: of the same shape, 1, and 0 at padding before or behind each prompt; None: no padding.
            streamer: told of the tokens of a single text as they come, such as `generation.streaming.TextStreamer`.
            tokenizer: needed for `stop_strings`; or its folder.
            input_mask: MindFormers' name of `attention_mask`.
            pad_token_id: what fills rows behind their end; None: the config's, or the end-of-text token.
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
