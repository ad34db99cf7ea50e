"""The layers of GPT-2: linear, layer norm, attention, feed-forward, block.

Shape letters: B batch, T query tokens, S key tokens, H hidden, N heads, D head size (H = N x D), F feed-forward width.

Every operator that a parallel layout has to cut is a primitive held by its cell, so that `gpt2_parallel.py` can
shard it from the outside. Parameter names, shapes and orientations are those of MindFormers 1.5 (`dense1..3` are
query, key, value and stored [out, in]; `projection`, `mapping` and `output.projection` are stored [in, out]).
"""

import math

import mindspore as ms
from mindspore import Parameter, Tensor, lazy_inline, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.models.dropout import dropout, mask_generator
from mindgpt.models.random_weights import NormalWeights
from mindgpt.runtime.precision import Precision

ROWS_WORTH_TURNING = 128
"""Fewer rows than this (a decoding step has one per text) cost less than turning a matrix round; see `Linear`."""


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
        # oneDNN's fp32 product is half as fast where the rows of an [in, out] matrix lie a multiple of 4 KiB apart
        # (docs/performance.md); there a CPU transposes the matrix first, if there are rows enough to be worth it. Not
        # one that is stored in half precision: MindSpore 2.10 fuses cast and transpose to a kernel that gives NaN.
        on_cpu = ms.get_context("device_target") == "CPU"
        self.turned = not transpose_b and out_size % 1024 == 0 and on_cpu and precision.param == ms.float32
        self.transpose = ops.Transpose()
        self.matmul = ops.MatMul(transpose_b=transpose_b)
        self.turned_matmul = ops.MatMul(transpose_b=True)
        self.matmul_is_out_in = transpose_b
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, x: Tensor) -> Tensor:
        """x: (rows, in_size) in any float dtype -> (rows, out_size) in the compute dtype."""
        weight = self.cast(self.weight, self.compute)
        x = self.cast(x, self.compute)
        if self.turned and x.shape[0] >= ROWS_WORTH_TURNING:
            y = self.turned_matmul(x, self.transpose(weight, (1, 0)))
        else:
            y = self.matmul(x, weight)
        return self.add(y, self.cast(self.bias, self.compute))


class LayerNorm(nn.Cell):
    """Layer normalisation (Ba et al. 2016) over the last axis, eps inside the root, biased variance.

    MindSpore's CPU kernel takes a power for every element of the gradient, and works on one core until it has tuned
    itself. There the formula is written out and graph-kernel fusion makes loops of it (docs/performance.md).
    """

    def __init__(self, size: int, eps: float, precision: Precision):
        super().__init__()
        self.gamma = Parameter(initializer("ones", (size,), precision.layernorm), name="gamma")
        self.beta = Parameter(initializer("zeros", (size,), precision.layernorm), name="beta")
        self.written_out = ms.get_context("device_target") == "CPU"
        self.layer_norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
        self.sum = ops.ReduceSum(keep_dims=True)  # fusion takes up a sum, but no mean
        self.rsqrt = ops.Rsqrt()
        self.cast = ops.Cast()
        self.dtype = precision.layernorm
        self.eps = eps
        self.per_value = 1.0 / size

    def construct(self, x: Tensor) -> Tensor:
        """x: (..., H) -> the same shape, in the layer-norm dtype."""
        x = self.cast(x, self.dtype)
        if self.written_out:
            centred = x - self.sum(x, -1) * self.per_value
            variance = self.sum(centred * centred, -1) * self.per_value  # (..., 1)
            return centred * self.rsqrt(variance + self.eps) * self.gamma + self.beta
        y, _, _ = self.layer_norm(x, self.gamma, self.beta)
        return y


class Activation(nn.Cell):
    """The nonlinearity of the feed-forward layer.

    `gelu` is the tanh form of Hendrycks & Gimpel 2016 (OpenAI's GPT-2), `gelu_erf` the exact form,
    `fast_gelu` is x * sigmoid(1.702 x), `relu` and `silu` as usual.

    MindSpore's own tanh on a CPU is off by 1e-4, which put a classifier's gradients off by 1e-3: there GELU is
    x * sigmoid(2u), which is the same, and its gradient exact to 2e-6. Fused, tanh is better and
    much quicker (docs/performance.md).
    """

    def __init__(self, name: str):
        super().__init__()
        self.kind = name
        self.tanh = ops.Tanh()
        self.erf = ops.Erf()
        self.sigmoid = ops.Sigmoid()
        self.relu = ops.ReLU()
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.mul_one = ops.Mul()  # by one number
        self.add_one = ops.Add()
        self.without_tanh = ms.get_context("device_target") == "CPU" and not ms.get_context("enable_graph_kernel")

    def construct(self, x: Tensor) -> Tensor:
        if self.kind == "gelu":
            cubic = self.mul(self.mul(x, x), self.mul_one(x, 0.044715))
            if self.without_tanh:
                return self.mul(x, self.sigmoid(self.mul_one(self.add(x, cubic), 2.0 * math.sqrt(2.0 / math.pi))))
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


class FlashAttention(nn.Cell):
    """The same function by Ascend's fused kernel, which never holds the T x S scores (Dao et al. 2022)."""

    def __init__(self, config: GPT2Config, precision: Precision, scale: float):
        super().__init__()
        self.rate = config.attention_dropout_rate
        options = {"head_num": config.num_heads, "scale_value": scale, "input_layout": "BNSD"}
        self.flash = FlashAttentionScore(keep_prob=1.0, **options)
        self.flash_with_dropout = FlashAttentionScore(keep_prob=1.0 - self.rate, **options)
        self.draw_mask = mask_generator()
        self.reshape = ops.Reshape()
        self.keep = Tensor(1.0 - self.rate, ms.float32)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """As `PlainAttention`, but for `mask`: (B, 1, T, S) or (1, 1, T, S) uint8, 0 where seen and 1 where not."""
        if self.training and self.rate > 0:
            batch, heads, tokens, keys = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
            kept = self.draw_mask((batch, heads, tokens, keys), self.keep)  # bits, 8 to a byte
            kept = self.reshape(kept, (batch, heads, tokens, keys // 8))
            return self.flash_with_dropout(q, k, v, None, kept, None, mask, None)[3]
        return self.flash(q, k, v, None, None, None, mask, None)[3]


class AttentionMask(nn.Cell):
    """Which keys a query may see, in the form that the attention kernel takes."""

    def __init__(self, precision: Precision, flash: bool):
        super().__init__()
        self.flash = flash
        self.reshape = ops.Reshape()
        self.not_equal = ops.NotEqual()
        self.both = ops.LogicalAnd()
        self.logical_not = ops.LogicalNot()
        self.mul = ops.Mul()
        self.cast = ops.Cast()
        self.dtype = precision.softmax
        # Half of the lowest number: a score added to it stays finite, so a row that sees nothing is uniform, not NaN.
        self.lowest = -32000.0 if precision.softmax == ms.float16 else -1.5e38

    def without_padding(self, causal: Tensor, attention_mask: Tensor) -> Tensor:
        """causal: (1, 1, T, T) bool; attention_mask: (B, T) integers, 0 at padding -> (B, 1, T, T) bool"""
        batch, tokens = attention_mask.shape
        real = self.not_equal(self.reshape(attention_mask, (batch, 1, 1, tokens)), 0)
        return self.both(causal, real)

    def construct(self, visible: Tensor) -> Tensor:
        """visible: (B or 1, 1, T, S) bool -> the same shape; see `PlainAttention` and `FlashAttention`."""
        hidden = self.logical_not(visible)
        if self.flash:
            return self.cast(hidden, ms.uint8)
        return self.mul(self.cast(hidden, self.dtype), self.lowest)


def use_flash_kernel(config: GPT2Config) -> bool:
    """Whether a model built now uses the fused kernel: asked for, and not on CPU, which has none."""
    return config.use_flash_attention and ms.get_context("device_target") == "Ascend"


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What scores are multiplied by: 1/sqrt(D), and 1/(layer + 1) if `scale_attn_by_inverse_layer_idx`."""
    scale = 1.0 / math.sqrt(config.head_size) if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class Attention(nn.Cell):
    """Multi-head causal self-attention."""

    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__()
        hidden, std = config.hidden_size, config.initializer_range
        self.num_heads = config.num_heads
        self.head_size = config.head_size
        self.dense1 = Linear(hidden, hidden, True, precision, std)
        self.dense2 = Linear(hidden, hidden, True, precision, std)
        self.dense3 = Linear(hidden, hidden, True, precision, std)
        self.projection = Linear(hidden, hidden, False, precision, std / math.sqrt(2 * config.num_layers))
        kernel = FlashAttention if use_flash_kernel(config) else PlainAttention
        self.attend = kernel(config, precision, attention_scale(config, layer))
        self.reshape = ops.Reshape()
        self.transpose = ops.Transpose()
        self.transpose_back = ops.Transpose()

    def split_heads(self, x: Tensor, tokens: int) -> Tensor:
        """(B*T, H) -> (B, N, T, D)"""
        x = self.reshape(x, (-1, tokens, self.num_heads, self.head_size))  # (B, T, N, D)
        return self.transpose(x, (0, 2, 1, 3))

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, N, T, D) -> (B*T, H)"""
        x = self.transpose_back(x, (0, 2, 1, 3))  # (B, T, N, D)
        return self.reshape(x, (-1, self.num_heads * self.head_size))

    def heads(self, x: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B*T, H) -> query, key, value: (B, N, T, D) each"""
        q = self.split_heads(self.dense1(x), tokens)
        k = self.split_heads(self.dense2(x), tokens)
        v = self.split_heads(self.dense3(x), tokens)
        return q, k, v

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B*T, H); mask: (B or 1, 1, T, T) from `AttentionMask` -> (B*T, H)"""
        q, k, v = self.heads(x, mask.shape[2])
        return self.projection(self.merge_heads(self.attend(q, k, v, mask)))


class FeedForward(nn.Cell):
    """The two-layer perceptron of a block: H -> F -> H."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        hidden, ffn, std = config.hidden_size, config.ffn_hidden_size, config.initializer_range
        self.mapping = Linear(hidden, ffn, False, precision, std)
        self.projection = Linear(ffn, hidden, False, precision, std / math.sqrt(2 * config.num_layers))
        self.activation = Activation(config.hidden_act)

    def construct(self, x: Tensor) -> Tensor:
        """x: (B*T, H) -> (B*T, H)"""
        return self.projection(self.activation(self.mapping(x)))


class Block(nn.Cell):
    """One pre-norm transformer block: x += Attention(LN1 x); x += FeedForward(LN2 x)."""

    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__()
        self.layernorm1 = LayerNorm(config.hidden_size, config.layernorm_epsilon, precision)
        self.attention = Attention(config, precision, layer)
        self.layernorm2 = LayerNorm(config.hidden_size, config.layernorm_epsilon, precision)
        self.output = FeedForward(config, precision)
        self.dropout1 = dropout(config.hidden_dropout_rate)
        self.dropout2 = dropout(config.hidden_dropout_rate)
        self.add1 = ops.Add()
        self.add2 = ops.Add()

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B*T, H); mask: (B or 1, 1, T, T) from `AttentionMask` -> (B*T, H)"""
        x = self.add1(x, self.dropout1(self.attention(self.layernorm1(x), mask)))
        return self.add2(x, self.dropout2(self.output(self.layernorm2(x))))


class SharedGraphBlock(Block):
    """The same block, compiled once and called by all layers: what pipeline stages and compile time want on Ascend."""

    @lazy_inline
    def __init__(self, config: GPT2Config, precision: Precision, layer: int):
        super().__init__(config, precision, layer)


def block_class() -> type[Block]:
    """The block for the current device. The CPU back end cannot run a graph that is called by several layers."""
    return SharedGraphBlock if ms.get_context("device_target") == "Ascend" else Block


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
    """The sum of a token's embedding and its position's."""

    def __init__(self, config: GPT2Config, precision: Precision):
        super().__init__()
        hidden, std = config.hidden_size, config.initializer_range
        self.word_embedding = Embedding(config.vocab_size, hidden, precision, std)
        self.position_embedding = Embedding(config.max_position_embeddings, hidden, precision, std)
        self.dropout = dropout(config.embedding_dropout_rate)
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.compute = precision.compute

    def construct(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """input_ids: (B, T); position_ids: (B, T) or (1, T) -> (B, T, H) in the compute dtype"""
        words = self.cast(self.word_embedding(input_ids), self.compute)
        positions = self.cast(self.position_embedding(position_ids), self.compute)
        return self.dropout(self.add(words, positions))
