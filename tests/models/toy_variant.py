"""A second variant of GPT-2, as those of other families: a config, a block class and a naming table, and nothing else.

Its blocks are post-norm, r = h + Attention(h), h = LN2(r + FeedForward(LN1(r))); there is a layer norm after the
embeddings and none after the last block; GELU is exact; a layer norm divides by the unbiased standard deviation + eps.

Shape letters: B batch, T tokens, V vocabulary, P positions, H hidden, N heads, F feed-forward width.
"""

import math
from typing import ClassVar

import numpy as np
from mindspore import Tensor, nn, ops

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import Row
from mindgpt.models.gpt2.gpt2_modules import BLOCKS, Block, LayerCache

EPS = 1e-3


class ToyConfig(GPT2Config):
    """Two layers of the variant."""

    variant: ClassVar[str] = "toy"
    embedding_norm: ClassVar[bool] = True
    final_norm: ClassVar[bool] = False

    def __init__(self, **settings):
        rates = dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), 0.0)
        sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 60, "seq_length": 24}
        super().__init__(**sizes | rates | {"hidden_act": "gelu_erf", "layernorm_epsilon": EPS} | settings)


class StandardDeviationNorm(nn.Cell):
    """gamma (x - mean) / (unbiased standard deviation + eps) + beta"""

    def __init__(self, eps: float):
        super().__init__()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.square = ops.Square()
        self.sqrt = ops.Sqrt()
        self.sub, self.div, self.mul, self.add = ops.Sub(), ops.Div(), ops.Mul(), ops.Add()
        self.mul_one, self.add_one = ops.Mul(), ops.Add()  # by one number
        self.eps = eps

    def shard(self, strategy):
        """As `ops.LayerNorm.shard`: of x, gamma and beta"""
        x, vector, _ = strategy
        column = (*x[:-1], 1)
        for operator in (self.mean, self.square):
            operator.shard((x,))
        self.sqrt.shard((column,))
        for operator in (self.mul_one, self.add_one):
            operator.shard((column, ()))
        for operator in (self.sub, self.div):
            operator.shard((x, column))
        for operator in (self.mul, self.add):
            operator.shard((x, vector))

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        """x: (..., H); gamma, beta: (H,) -> the normalised x"""
        width = x.shape[-1]
        centred = self.sub(x, self.mean(x, -1))
        variance = self.mul_one(self.mean(self.square(centred), -1), width / (width - 1))
        y = self.div(centred, self.add_one(self.sqrt(variance), self.eps))
        return (self.add(self.mul(y, gamma), beta),)


class PostNormBlock(Block):
    """See the module's docstring."""

    layer_norm = StandardDeviationNorm

    def construct(self, x: Tensor, mask: Tensor, cache: LayerCache | None = None) -> Tensor:
        """As of `Block`."""
        x = self.add1(x, self.dropout1(self.attention(x, mask, cache)))
        return self.layernorm2(self.add2(x, self.dropout2(self.output(self.layernorm1(x)))))


BLOCKS["toy"] = PostNormBlock


def table(num_layers: int) -> list[Row]:
    """All tensors, by the names of a file of this family and by ours."""
    rows = [
        Row("tokens", ("V", "H"), ("backbone.embedding.word_embedding.embedding_table",), ("V", "H")),
        Row("positions", ("P", "H"), ("backbone.embedding.position_embedding.embedding_table",), ("P", "H")),
        Row("norm.g", ("H",), ("backbone.embedding.layernorm.gamma",), ("H",)),
        Row("norm.b", ("H",), ("backbone.embedding.layernorm.beta",), ("H",)),
    ]
    for i in range(num_layers):
        qkv = [f"backbone.blocks.{i}.attention.dense{part}" for part in (1, 2, 3)]
        rows.append(Row(f"{i}.qkv.w", ("H", "3H"), tuple(f"{name}.weight" for name in qkv), ("H", "H")))
        rows.append(Row(f"{i}.qkv.b", ("3H",), tuple(f"{name}.bias" for name in qkv), ("H",)))
        for name, shape, ours in (
            ("out", ("H", "H"), "attention.projection"),
            ("up", ("H", "F"), "output.mapping"),
            ("down", ("F", "H"), "output.projection"),
        ):
            path = f"backbone.blocks.{i}.{ours}"
            rows.append(Row(f"{i}.{name}.w", shape, (f"{path}.weight",), shape))
            rows.append(Row(f"{i}.{name}.b", shape[1:], (f"{path}.bias",), shape[1:]))
        for part in (1, 2):
            path = f"backbone.blocks.{i}.layernorm{part}"
            rows.append(Row(f"{i}.norm{part}.g", ("H",), (f"{path}.gamma",), ("H",)))
            rows.append(Row(f"{i}.norm{part}.b", ("H",), (f"{path}.beta",), ("H",)))
    return rows


def random_weights(config: GPT2Config) -> dict[str, np.ndarray]:
    """Under the file's names, float32: large enough that every part of the network counts."""
    h, f = config.hidden_size, config.ffn_hidden_size
    sizes = {"V": config.vocab_size, "P": config.max_position_embeddings, "H": h, "3H": 3 * h, "F": f}
    random = np.random.default_rng(0)
    weights = {}
    for row in table(config.num_layers):
        values = random.normal(0, 0.3, [sizes[letter] for letter in row.hf_shape])
        weights[row.hf_name] = (values + row.hf_name.endswith(".g")).astype(np.float32)
    return weights


def renamed(weights: dict[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    """Under our names."""
    return {
        name: row.split(weights[row.hf_name], part)
        for row in table(num_layers)
        for part, name in enumerate(row.mf_names)
    }


def reference_logits(weights: dict[str, np.ndarray], config: GPT2Config, ids: np.ndarray) -> np.ndarray:
    """The network in NumPy, float64: (B, T) -> (B, T, V)"""
    w = {name: values.astype(float) for name, values in weights.items()}
    batch, tokens = ids.shape

    def norm(x, name):
        deviation = x.std(-1, ddof=1, keepdims=True)
        return w[f"{name}.g"] * (x - x.mean(-1, keepdims=True)) / (deviation + EPS) + w[f"{name}.b"]

    def heads(x):  # (B, T, H) -> (B, N, T, D)
        return x.reshape(batch, tokens, config.num_heads, -1).transpose(0, 2, 1, 3)

    erf = np.vectorize(math.erf)
    h = norm(w["tokens"][ids] + w["positions"][:tokens], "norm")
    for i in range(config.num_layers):
        q, k, v = map(heads, np.split(h @ w[f"{i}.qkv.w"] + w[f"{i}.qkv.b"], 3, axis=-1))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        scores = np.exp(np.where(np.tri(tokens, dtype=bool), scores, -np.inf))
        context = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(h.shape)
        r = h + context @ w[f"{i}.out.w"] + w[f"{i}.out.b"]
        inner = norm(r, f"{i}.norm1") @ w[f"{i}.up.w"] + w[f"{i}.up.b"]
        inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
        h = norm(r + inner @ w[f"{i}.down.w"] + w[f"{i}.down.b"], f"{i}.norm2")
    return h @ w["tokens"].T
