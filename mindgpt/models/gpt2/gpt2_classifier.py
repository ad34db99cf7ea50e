"""GPT-2 with a classification head on the last token of each row.

Shape letters: B batch, T tokens, H hidden, C classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import HEAD
from mindgpt.config.errors import UserError
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.models.gpt2.gpt2 import GPT2Model
from mindgpt.models.gpt2.gpt2_heads import CrossEntropy
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.models.random_weights import NormalWeights
from mindgpt.runtime.precision import Precision, precision_of


class Score(nn.Cell):
    """The head: one row of weights a class, no bias."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        shape = (config.num_labels, config.hidden_size)
        self.weight = Parameter(
            initializer(NormalWeights(config.initializer_range), shape, precision.param), name="weight"
        )
        self.matmul = ops.MatMul(transpose_b=True)
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, x: Tensor) -> Tensor:
        """x: (B, H) -> (B, C) float32"""
        return self.cast(self.matmul(self.cast(x, self.compute), self.cast(self.weight, self.compute)), ms.float32)


class GPT2ForSequenceClassification(PretrainedCell):
    """GPT-2 that gives each row one of `config.num_labels` labels, read from the row's last real token.

    In training mode (`set_train(True)`) it returns the loss, otherwise the logits. Positions are counted from the
    first column, padding included, as in transformers' class of the same name; the last real token is found by the
    attention mask, where transformers compares ids with that of padding.

    Args:
        config: sizes and settings.
        class_weights: one factor a label for the losses of its rows; None: all 1.

    Raises:
        UserError: there is not one positive factor a label.
    """

    may_be_new = (r"^score\.weight$",)
    leaves_out: ClassVar = {HEAD.mf_names[0]: "output head of a language model"}

    def __init__(self, config: GPT2Config, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.config = config
        self.backbone = GPT2Model(config)
        self.score = Score(config, precision_of(config))
        self.cross_entropy = CrossEntropy()
        self.hidden_size = config.hidden_size
        self.columns = Tensor(np.arange(config.max_position_embeddings, dtype=np.int32).reshape(1, -1))
        self.reshape = ops.Reshape()
        self.gather = ops.Gather()
        self.not_padding = ops.NotEqual()
        self.column_of_real = ops.Mul()
        self.last = ops.ReduceMax(keep_dims=False)
        self.pool = ops.Gather()
        self.not_equal = ops.NotEqual()
        self.valid = ops.Mul()
        self.mul = ops.Mul()
        self.weigh = ops.Mul()
        self.sum_losses = ops.ReduceSum()
        self.sum_weights = ops.ReduceSum()
        self.cast = ops.Cast()
        self.set_class_weights(class_weights)

    def set_class_weights(self, class_weights: Sequence[float] | None) -> None:
        """Weigh the labels' losses; before the first step, since the factors are constants of the compiled graph."""
        factors = np.ones(self.config.num_labels) if class_weights is None else np.asarray(class_weights, np.float64)
        if factors.shape != (self.config.num_labels,) or not np.all(np.isfinite(factors) & (factors > 0)):
            raise UserError(
                f"class weights must be {self.config.num_labels} positive numbers, one a label; got {class_weights}"
            )
        self.class_weights = Tensor(factors.astype(np.float32))

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The loss of rows in training mode, else their logits.

        Args:
            input_ids: (B, T) int32, T at most `max_position_embeddings`.
            attention_mask: (B, T) integers, 0 at padding, on either side. None: no padding. A row needs one real token.
            labels: (B,) or (B, 1) int32 in [0, C); -100 takes a row out of the loss. Needed in training mode, else
                unused.

        Returns:
            The weighted mean of the rows' cross-entropies, as `torch.nn.CrossEntropyLoss(weight)` computes it, a
            float32 scalar; or logits, (B, C) float32.
        """
        if self.training:
            total, weight = self.summed_loss(input_ids, attention_mask, labels)
            return total / ops.maximum(weight, 1e-12)
        return self.score(self.pooled(self.backbone(input_ids, attention_mask), attention_mask))  # (B, C)

    def summed_loss(self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the rows' losses, and the sum of their weights, both float32 scalars; see `construct`."""
        logits = self.score(self.pooled(self.backbone(input_ids, attention_mask), attention_mask))  # (B, C)
        labels = self.reshape(labels, (-1,))  # (B,)
        counted = self.not_equal(labels, IGNORED_LABEL)
        labels = self.valid(labels, self.cast(counted, ms.int32))
        weights = self.mul(self.gather(self.class_weights, labels, 0), self.cast(counted, ms.float32))
        losses = self.weigh(self.cross_entropy(logits, labels), weights)
        return self.sum_losses(losses), self.sum_weights(weights)

    def pooled(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The last real token of each row: (B, T, H), (B, T) -> (B, H)"""
        batch, tokens, _ = hidden.shape
        if attention_mask is None:
            return hidden[:, tokens - 1, :]
        real = self.cast(self.not_padding(attention_mask, 0), ms.int32)  # (B, T)
        last = self.last(self.column_of_real(self.columns[:, :tokens], real), 1)  # (B,), the column
        first_of_row = Tensor(np.arange(batch, dtype=np.int32)) * tokens
        return self.pool(self.reshape(hidden, (-1, self.hidden_size)), first_of_row + last, 0)
