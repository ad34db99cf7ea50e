"""The layers of GPT-2: linear, layer norm, attention, feed-forward, block.

Shape letters: B batch, T query tokens, S key tokens, H hidden, N heads, D head size (H = N x D), F feed-forward width.

Every operator is an attribute of its cell, so that it can be changed from the outside: `gpt2_parallel.py` shards it,
`models/cpu` replaces some. Parameter names, shapes and orientations are those of MindFormers 1.5 (`dense1..3` are
query, key, value and stored [out, in]; `projection`, `mapping` and `output.projection` are stored [in, out]).
"""

import math
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, lazy_inline, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.models.dropout import dropout, mask_generator
from mindgpt.models.random_weights import NormalWeights
from mindgpt.runtime.precision import Precision

LayerCache = tuple[Parameter, Parameter, Tensor]
"""Of one layer: the keys and the values of a `KeyValueCache`, (B*N*S, D) each, and the rows where the keys and values
of the tokens at hand are written, (B*N*T,) int32."""


class Linear(nn.Cell):
    """y = x W + b over the last axis.

    Args:
        in_size, out_size: widths of input and output.
        transpose_b: True stores W as [out, in], False as [in, out].
        precision: `param` is the dtype of W and b, `compute` that of the product.
        std: standard deviation of the normal initialisation of W; b starts at 0.
    """

    def __init__(self, in_size: int, out_size: int, transpose_b: bool, precision: Precision, std: float):
        super().__init__()
        shape = (out_size, in_size) if transpose_b else (in_size, out_size)
        self.in_size = in_size
        self.out_size = out_size
        self.weight = Parameter(initializer(NormalWeights(std), shape, precision.param), name="weight")
        self.bias = Parameter(initializer("zeros", (out_size,), precision.param), name="bias")
        self.matmul = ops.MatMul(transpose_b=transpose_b)
        self.matmul_is_out_in = transpose_b
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, x: Tensor) -> Tensor:
        """x: (rows, in_size) in any float dtype -> (rows, out_size) in the compute dtype."""
        y = self.matmul(self.cast(x, self.compute), self.cast(self.weight, self.compute))
        return self.add(y, self.cast(self.bias, self.compute))


def layer_norm(eps: float) -> ops.LayerNorm:
    """Layer normalisation (Ba et al. 2016) over the last axis: biased variance, eps inside the root.

    The operator takes x, gamma and beta; the first of its results is the normalised x.
    """
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)


class UnbiasedLayerNorm(nn.Cell):
    """gamma (x - mean) / (standard deviation + eps) + beta over the last axis, with the unbiased standard deviation.

    It is the layer norm of UER-py and TencentPretrain (`layers/layer_norm.py`), called and sharded like the operator of
    `layer_norm`. It computes in float32, as that does inside. Where all values of a row are equal, the gradient of the
    standard deviation is 0 here, not NaN.
    """

    def __init__(self, eps: float):
        super().__init__()
        self.sum = ops.ReduceSum(keep_dims=True)  # graph-kernel fusion on CPU takes up a sum, but no mean
        self.square, self.sqrt = ops.Square(), ops.Sqrt()
        self.sub, self.div = ops.Sub(), ops.RealDiv()  # by one number a row
        self.mul, self.add = ops.Mul(), ops.Add()  # by gamma, beta
        self.mul_one, self.add_one = ops.Mul(), ops.Add()  # by one number
        self.cast, self.cast_vector = ops.Cast(), ops.Cast()
        self.eps = eps

    def shard(self, strategy: tuple[tuple[int, ...], ...]) -> None:
        """As `ops.LayerNorm.shard`: the shards of x, gamma and beta; a row of x is never sharded."""
        x, vector, _ = strategy
        column = (*x[:-1], 1)
        for operator in (self.sum, self.square, self.cast):
            operator.shard((x,))
        self.sqrt.shard((column,))
        self.cast_vector.shard((vector,))
        for operator in (self.mul_one, self.add_one):
            operator.shard((column, ()))
        for operator in (self.sub, self.div):
            operator.shard((x, column))
        for operator in (self.mul, self.add):
            operator.shard((x, vector))

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        """x: (..., H); gamma, beta: (H,) -> the normalised x, of the same shape and dtype"""
        dtype = x.dtype
        if dtype != ms.float32:
            x = self.cast(x, ms.float32)
            gamma, beta = self.cast_vector(gamma, ms.float32), self.cast_vector(beta, ms.float32)
        width = x.shape[-1]
        centred = self.sub(x, self.mul_one(self.sum(x, -1), 1 / width))
        variance = self.mul_one(self.sum(self.square(centred), -1), 1 / (width - 1))  # (..., 1)
        deviation = self.sqrt(self.add_one(variance, _ABOVE_ZERO))
        y = self.div(centred, self.add_one(deviation, self.eps))
        y = self.add(self.mul(y, gamma), beta)
        return (y if dtype == ms.float32 else self.cast(y, dtype),)


_ABOVE_ZERO = 1e-30  # far below any variance that is not 0, but its root can be divided by

LAYER_NORMS: dict[str, Callable[[float], Any]] = {"standard": layer_norm, "uer": UnbiasedLayerNorm}
"""The values of `GPT2Config.layer_norm`: eps -> the arithmetic."""


class LayerNorm(nn.Cell):
    """A layer norm and its parameters.

    Args:
        size: H.
        eps: keeps the divisor above zero.
        precision: `layernorm` is the dtype of the parameters and of the computation.
        arithmetic: one of `LAYER_NORMS`, or another that is called and sharded like them.
    """

    def __init__(self, size: int, eps: float, precision: Precision, arithmetic: Callable[[float], Any] = layer_norm):
        super().__init__()
        self.gamma = Parameter(initializer("ones", (size,), precision.layernorm), name="gamma")
        self.beta = Parameter(initializer("zeros", (size,), precision.layernorm), name="beta")
        self.layer_norm = arithmetic(eps)
        self.cast = ops.Cast()
        self.dtype = precision.layernorm
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        """x: (..., H) -> the same shape, in the layer-norm dtype."""
        return self.layer_norm(self.cast(x, self.dtype), self.gamma, self.beta)[0]


FUSED_ACTIVATIONS: dict[str, Callable[[], Any]] = {"gelu": ops.GeLU, "fast_gelu": ops.FastGeLU}
"""Activations that Ascend computes by one kernel, which keeps only its input for the backward pass. `ops.GeLU` is the
tanh form (what `mindspore.ops.gelu` calls for `approximate="tanh"`)."""


class Activation(nn.Cell):
    """The nonlinearity of the feed-forward layer.

    `gelu` is the tanh form of Hendrycks & Gimpel 2016 (OpenAI's GPT-2), `gelu_erf` the exact form,
    `fast_gelu` is x * sigmoid(1.702 x), `relu` and `silu` as usual. On Ascend some are fused.
    """

    def __init__(self, name: str):
        super().__init__()
        self.kind = name
        fused = name in FUSED_ACTIVATIONS and ms.get_context("device_target") == "Ascend"
        self.fused = FUSED_ACTIVATIONS[name]() if fused else None
        self.tanh = ops.Tanh()
        self.erf = ops.Erf()
        self.sigmoid = ops.Sigmoid()
        self.relu = ops.ReLU()
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.mul_one = ops.Mul()  # by one number
        self.add_one = ops.Add()

    def construct(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x)
        if self.kind == "gelu":
            cubic = self.mul(self.mul(x, x), self.mul_one(x, 0.044715))
            inner = self.mul_one(self.add(x, cubic), math.sqrt(2.0 / math.pi))
            return self.mul(self.mul_one(x, 0.5), self.add_one(self.tanh(inner), 1.0))
        if self.kind == "gelu_erf":
            return self.mul(self.mul_one(x, 0.5), self.add_one(self.erf(self.mul_one(x, math.sqrt(0.5))), 1.0))
        if self.kind == "fast_gelu":
            return self.mul(x, self.sigmoid(self.mul_one(x, 1.702)))
        if self.kind == "silu":
            return self.mul(x, self.sigmoid(x))
        return self.relu(x)


class PlainAttention(nn.Cell):
    """softmax(q k^T * scale + mask) v, written out (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: GPT2Config, precision: Precision, scale: float):
        super().__init__()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.context = ops.BatchMatMul()
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.softmax = ops.Softmax(axis=-1)
        self.dropout = dropout(config.attention_dropout_rate)
        self.cast = ops.Cast()
        self.scale = scale
        self.softmax_dtype = precision.softmax
        self.compute = precision.compute

    def construct(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            q: (B, N, T, D).
            k, v: (B, N, S, D).
            mask: (B, 1, T, S) or (1, 1, T, S) in the softmax dtype, 0 where seen and very negative where not.

        Returns:
            (B, N, T, D), in the compute dtype.
        """
        scores = self.scores(self.mul(q, self.scale), k)  # (B, N, T, S)
        scores = self.add(self.cast(scores, self.softmax_dtype), mask)
        probabilities = self.dropout(self.cast(self.softmax(scores), self.compute))
        return self.context(probabilities, v)


_COMPRESSED_CAUSAL = 2
"""The `sparse_mode` of `FlashAttentionScore` in which a token sees itself and those before it, and the mask is
`AttentionMask.compressed` for rows of any length."""


class FlashAttention(nn.Cell):
    """The same function by Ascend's fused kernel, which never holds the T x S scores (Dao et al. 2022)."""

    def __init__(self, config: GPT2Config, precision: Precision, scale: float):
        super().__init__()
        self.rate = config.attention_dropout_rate
        options = {"head_num": config.num_heads, "scale_value": scale, "input_layout": "BNSD"}
        self.flash = FlashAttentionScore(keep_prob=1.0, **options)
        self.flash_with_dropout = FlashAttentionScore(keep_prob=1.0 - self.rate, **options)
        self.causal = FlashAttentionScore(keep_prob=1.0, sparse_mode=_COMPRESSED_CAUSAL, **options)
        self.causal_with_dropout = FlashAttentionScore(
            keep_prob=1.0 - self.rate, sparse_mode=_COMPRESSED_CAUSAL, **options
        )
        self.kernels = (self.flash, self.flash_with_dropout, self.causal, self.causal_with_dropout)
        self.draw_mask = mask_generator()
        self.reshape = ops.Reshape()
        self.keep = Tensor(1.0 - self.rate, ms.float32)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """As `PlainAttention`, but for `mask`: uint8, 0 where seen and 1 where not; (B, 1, T, S) or (1, 1, T, S), or
        `AttentionMask.compressed`, which is for rows of any length."""
        compressed = len(mask.shape) == 2
        if self.training and self.rate > 0:
            batch, heads, tokens, keys = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
            kept = self.draw_mask((batch, heads, tokens, keys), self.keep)  # bits, 8 to a byte
            kept = self.reshape(kept, (batch, heads, tokens, keys // 8))
            if compressed:
                return self.causal_with_dropout(q, k, v, None, kept, None, mask, None)[3]
            return self.flash_with_dropout(q, k, v, None, kept, None, mask, None)[3]
        if compressed:
            return self.causal(q, k, v, None, None, None, mask, None)[3]
        return self.flash(q, k, v, None, None, None, mask, None)[3]


def use_flash_kernel(config: GPT2Config) -> bool:
    """Whether a model built now uses the fused kernel: asked for, and not on CPU, which has none."""
    return config.use_flash_attention and ms.get_context("device_target") == "Ascend"


def projection_std(config: GPT2Config) -> float:
    """The standard deviation of the initial weights of a projection into the residual: divided by the square root of
    the number of these projections (Radford et al. 2019, section 2.3), unless every block normalises the residual."""
    std = config.initializer_range
    return std / math.sqrt(2 * config.num_layers) if config.variant == "gpt2" else std


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What scores are multiplied by: 1/sqrt(D), and 1/(layer + 1) if `scale_attn_by_inverse_layer_idx`."""
    scale = 1.0 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class Attention(nn.Cell):
    """Multi-head causal self-attention, over the tokens at hand or over a key/value cache that they are added to."""

    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__()
        hidden, std = config.hidden_size, config.initializer_range
        self.num_heads = config.num_heads
        self.head_size = config.head_size
        self.dense1 = Linear(hidden, hidden, True, precision, std)
        self.dense2 = Linear(hidden, hidden, True, precision, std)
        self.dense3 = Linear(hidden, hidden, True, precision, std)
        self.projection = Linear(hidden, hidden, False, precision, projection_std(config))
        kernel = FlashAttention if use_flash_kernel(config) else PlainAttention
        self.attend = kernel(config, precision, attention_scale(config, layer))
        self.reshape = ops.Reshape()
        self.transpose = ops.Transpose()
        self.transpose_back = ops.Transpose()
        self.write = ops.ScatterUpdate()

    def split_heads(self, x: Tensor, tokens: int) -> Tensor:
        """(B*T, H) -> (B, N, T, D)"""
        x = self.reshape(x, (-1, tokens, self.num_heads, self.head_size))  # (B, T, N, D)
        return self.transpose(x, (0, 2, 1, 3))

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, N, T, D) -> (B*T, H)"""
        x = self.transpose_back(x, (0, 2, 1, 3))  # (B, T, N, D)
        return self.reshape(x, (-1, self.num_heads * self.head_size))

    def cached(self, x: Tensor, cache: Parameter, rows: Tensor) -> Tensor:
        """Write keys or values to the rows of their cache: (B, N, T, D) -> all that it holds, (B, N, S, D)"""
        batch, heads, _, size = x.shape
        cache = self.write(cache, rows, self.reshape(x, (-1, size)))  # (B*N*S, D)
        return self.reshape(cache, (batch, heads, -1, size))

    def construct(self, x: Tensor, mask: Tensor, tokens: int, cache: LayerCache | None = None) -> Tensor:
        """x: (B*T, H); mask: from `AttentionMask`, (B or 1, 1, T, S), where S is T without a cache, or `compressed`;
        tokens: T -> (B*T, H)"""
        q = self.split_heads(self.dense1(x), tokens)
        k = self.split_heads(self.dense2(x), tokens)
        v = self.split_heads(self.dense3(x), tokens)
        if cache is not None:
            keys, values, rows = cache
            k, v = self.cached(k, keys, rows), self.cached(v, values, rows)
        return self.projection(self.merge_heads(self.attend(q, k, v, mask)))


class FeedForward(nn.Cell):
    """The two-layer perceptron of a block: H -> F -> H."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        hidden, ffn, std = config.hidden_size, config.ffn_hidden_size, config.initializer_range
        self.mapping = Linear(hidden, ffn, False, precision, std)
        self.projection = Linear(ffn, hidden, False, precision, projection_std(config))
        self.activation = Activation(config.hidden_act)

    def construct(self, x: Tensor) -> Tensor:
        """x: (B*T, H) -> (B*T, H)"""
        return self.projection(self.activation(self.mapping(x)))


class Block(nn.Cell):
    """A pre-norm transformer block: x += Attention(LN1 x); x += FeedForward(LN2 x).

    A variant of GPT-2 is a subclass with another order in `construct`; see `BLOCKS`.
    """

    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__()
        self.layernorm1 = new_layer_norm(config, precision)
        self.attention = Attention(config, precision, layer)
        self.layernorm2 = new_layer_norm(config, precision)
        self.output = FeedForward(config, precision)
        self.dropout1 = dropout(config.hidden_dropout_rate)
        self.dropout2 = dropout(config.hidden_dropout_rate)
        self.add1 = ops.Add()
        self.add2 = ops.Add()

    def construct(self, x: Tensor, mask: Tensor, tokens: int, cache: LayerCache | None = None) -> Tensor:
        """x: (B*T, H); mask, tokens and cache as of `Attention` -> (B*T, H)"""
        x = self.add1(x, self.dropout1(self.attention(self.layernorm1(x), mask, tokens, cache)))
        return self.add2(x, self.dropout2(self.output(self.layernorm2(x))))


class GPT2MLBlock(Block):
    """The block of GPT2_ML: r = x + Attention(x); x = LN2(r + FeedForward(LN1 r)).

    Both layer norms are around the feed-forward, and the residual of a block is normalised. Source: `train/modeling.py`
    of imcaspar/gpt2-ml, where they are `mlp_ln0` and `mlp_ln1`.
    """

    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__(config, precision, layer)
        self.gather_rows: ops.Primitive | None = None  # sequence parallelism has one
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, x: Tensor, mask: Tensor, tokens: int, cache: LayerCache | None = None) -> Tensor:
        """x: (B*T, H) in the compute dtype; mask, tokens and cache as of `Attention` -> the same shape and dtype"""
        rows = x if self.gather_rows is None else self.gather_rows(x)
        x = self.add1(x, self.dropout1(self.attention(rows, mask, tokens, cache)))
        x = self.add2(x, self.dropout2(self.output(self.layernorm1(x))))
        return self.cast(self.layernorm2(x), self.compute)


BLOCKS: dict[str, type[Block]] = {"gpt2": Block, "gpt2_ml": GPT2MLBlock}
"""The values of `GPT2Config.variant`."""


def new_layer_norm(config: GPT2Config, precision: Precision) -> LayerNorm:
    """A layer norm of the config's arithmetic."""
    return LayerNorm(config.hidden_size, config.layernorm_epsilon, precision, LAYER_NORMS[config.layer_norm])


def block_class(variant: str) -> type[Block]:
    """The block of a variant for the current device: on Ascend under `lazy_inline`, which pipeline stages and compile
    time both want. The CPU back end cannot run a graph that is called by several layers."""
    block = BLOCKS[variant]
    if ms.get_context("device_target") != "Ascend":
        return block

    class SharedGraphBlock(block):
        @lazy_inline
        def __init__(self, config: GPT2Config, precision: Precision, layer: int):
            super().__init__(config, precision, layer)

    return SharedGraphBlock


class Embedding(nn.Cell):
    """A table of rows, one for each id."""

    def __init__(self, rows: int, width: int, precision: Precision, std: float):
        super().__init__()
        self.embedding_table = Parameter(
            initializer(NormalWeights(std), (rows, width), precision.param), "embedding_table"
        )
        self.gather = ops.Gather()

    def construct(self, ids: Tensor) -> Tensor:
        """ids: (...) integers -> (..., width) in the dtype of the table"""
        return self.gather(self.embedding_table, ids, 0)


class GPT2Embedding(nn.Cell):
    """The sum of a token's embedding and its position's; normalised if the config has an `embedding_norm`."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        hidden, std = config.hidden_size, config.initializer_range
        self.word_embedding = Embedding(config.vocab_size, hidden, precision, std)
        self.position_embedding = Embedding(config.max_position_embeddings, hidden, precision, std)
        self.layernorm = new_layer_norm(config, precision) if config.embedding_norm else None
        self.dropout = dropout(config.embedding_dropout_rate)
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """input_ids: (B, T); position_ids: (B, T) or (1, T) -> (B, T, H) in the compute dtype"""
        words = self.cast(self.word_embedding(input_ids), self.compute)
        positions = self.cast(self.position_embedding(position_ids), self.compute)
        x = self.add(words, positions)
        if self.layernorm is not None:
            x = self.cast(self.layernorm(x), self.compute)
        return self.dropout(x)
