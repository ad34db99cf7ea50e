"""From hidden states to logits and losses: the language-model head, what it has to predict, the cross-entropy.

Shape letters: B batch, L row length as given, T = L - 1 tokens the network sees, H hidden, V vocabulary or classes.
As in `gpt2_modules.py`, every operator is an attribute of its cell, so that `gpt2_parallel.py` can shard it.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.data.blocks import IGNORED_LABEL
from mindgpt.models.random_weights import NormalWeights
from mindgpt.runtime.precision import Precision

_NO_TOKEN = -1e9
"""Added to the logits of padding: exp of it is 0 below any other logit, and unlike -inf it can be multiplied by 0."""


class LMHead(nn.Cell):
    """Logits, without a bias: by the token embedding itself (Press & Wolf 2017), which is passed in every call, or by
    `weight`, (V, H), if the config unties the two. Rows of padding after the tokens (`unpadded_vocab_size`) get a logit
    that no softmax, argmax or gradient sees."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        self.weight = None
        if not config.tie_word_embeddings:
            values = initializer(
                NormalWeights(config.initializer_range), (config.vocab_size, config.hidden_size), precision.param
            )
            self.weight = Parameter(values, name="weight")
        self.matmul = ops.MatMul(transpose_b=True)
        self.cast = ops.Cast()
        self.compute = precision.compute
        self.without_padding = None
        if config.token_count < config.vocab_size:
            is_padding = np.arange(config.vocab_size) >= config.token_count
            self.without_padding = Tensor(np.where(is_padding, _NO_TOKEN, 0.0).astype(np.float32))  # (V,)
        self.add = ops.Add()

    def table(self, embedding_table: Parameter) -> Parameter:
        """The matrix of the product, (V, H)."""
        return embedding_table if self.weight is None else self.weight

    def construct(self, x: Tensor, embedding_table: Tensor) -> Tensor:
        """x: (rows, H); embedding_table: (V, H) -> (rows, V) float32"""
        table = self.table(embedding_table)
        logits = self.matmul(self.cast(x, self.compute), self.cast(table, self.compute))
        logits = self.cast(logits, ms.float32)
        return logits if self.without_padding is None else self.add(logits, self.without_padding)


class NextTokens(nn.Cell):
    """What a language model is to predict: the labels moved by one, and which of them count."""

    def __init__(self):
        super().__init__()
        self.slice = ops.StridedSlice()
        self.reshape = ops.Reshape()
        self.not_equal = ops.NotEqual()
        self.both = ops.LogicalAnd()
        self.mul = ops.Mul()
        self.cast = ops.Cast()

    def inputs(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, T): all but the last, T = L - 1"""
        return self.slice(x, (0, 0), (x.shape[0], x.shape[1] - 1), (1, 1))

    def targets(self, x: Tensor) -> Tensor:
        """(B, L) -> (B*T,): all but the first"""
        return self.reshape(self.slice(x, (0, 1), x.shape, (1, 1)), (-1,))

    def construct(self, labels: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """labels: (B, L) int32, -100 where not counted; attention_mask: (B, L), 0 at padding -> ids (B*T,) int32, 0
        where not counted, and weights (B*T,) float32, 1 or 0"""
        targets = self.targets(labels)
        counted = self.not_equal(targets, IGNORED_LABEL)
        if attention_mask is not None:
            counted = self.both(counted, self.not_equal(self.targets(attention_mask), 0))
        return self.mul(targets, self.cast(counted, ms.int32)), self.cast(counted, ms.float32)


class CrossEntropy(nn.Cell):
    """-log softmax(logits)[target], in float32, for each row."""

    def __init__(self):
        super().__init__()
        self.by_one_hot = False  # where a layout shards the classes, no rank can gather by their number
        self.max = ops.ReduceMax(keep_dims=True)
        self.sum = ops.ReduceSum(keep_dims=True)
        self.sub = ops.Sub()
        self.exp = ops.Exp()
        self.log = ops.Log()
        self.pick = ops.GatherD()
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self.mul = ops.Mul()
        self.picked_sum = ops.ReduceSum(keep_dims=True)
        self.sub_picked = ops.Sub()
        self.reshape = ops.Reshape()

    def construct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits: (rows, V) float32; targets: (rows,) int32, all in [0, V) -> (rows,) float32"""
        shifted = self.sub(logits, ops.stop_gradient(self.max(logits, -1)))  # (rows, V)
        log_normaliser = self.log(self.sum(self.exp(shifted), -1))  # (rows, 1)
        if self.by_one_hot:
            chosen = self.one_hot(targets, logits.shape[1], self.on, self.off)  # (rows, V)
            picked = self.picked_sum(self.mul(shifted, chosen), -1)  # (rows, 1)
        else:
            picked = self.pick(shifted, 1, self.reshape(targets, (-1, 1)))  # (rows, 1)
        return self.reshape(self.sub_picked(log_normaliser, picked), (-1,))
