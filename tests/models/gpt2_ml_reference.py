"""GPT2_ML in PyTorch, from its formulas, with weights under the names of its TensorFlow checkpoints.

    h = LN_embed(word + position);  per layer  r = h + Attention(h),  h = LN1(r + FFN(LN0(r)));  logits = h word^T

Sources: `train/modeling.py` and `train/utils.py` of imcaspar/gpt2-ml.

Shape letters: B batch, T tokens, V vocabulary, P positions, H hidden, N heads, D head size, F feed-forward width.
"""

import math

import numpy as np
import torch

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_ml_names import tensorflow_table

EPS = 1e-5


def toy_config(**settings) -> GPT2Config:
    """Two layers, without dropout."""
    rates = dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), 0.0)
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "vocab_size": 60, "seq_length": 24}
    return GPT2Config(**{"variant": "gpt2_ml", **sizes, **rates, **settings})


def random_weights(config: GPT2Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Under TensorFlow's names, float32: large enough that every part of the network counts."""
    h, f = config.hidden_size, config.ffn_hidden_size
    sizes = {"V": config.vocab_size, "P": config.max_position_embeddings, "H": h, "F": f}
    random = np.random.default_rng(seed)
    weights = {}
    for row in tensorflow_table(config.num_layers):
        values = random.normal(0, 0.3, [sizes[letter] for letter in row.shape])
        weights[row.name] = (values + row.name.endswith("gamma")).astype(np.float32)
    return weights


def under_our_names(weights: dict[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    """Weights or gradients of the reference, under mindgpt's names."""
    return {
        name: row.split(weights[row.name], part)
        for row in tensorflow_table(num_layers)
        for part, name in enumerate(row.ours)
    }


def logits(weights: dict[str, torch.Tensor], num_heads: int, ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, V), in the dtype of the weights."""
    w = {name.removeprefix("newslm/"): values for name, values in weights.items()}
    batch, tokens = ids.shape

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return w[f"{name}/gamma"] * centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + EPS) + w[f"{name}/beta"]

    def dense(x, name):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def heads(x):  # (B, T, H) -> (B, N, T, D)
        return x.view(batch, tokens, num_heads, -1).transpose(1, 2)

    seen = torch.tril(torch.ones(tokens, tokens, dtype=torch.bool))
    h = norm(w["embeddings/word_embed"][ids] + w["embeddings/pos_embed"][:tokens], "embeddings/LayerNorm_embed_norm")
    layer = 0
    while (scope := f"layer{layer:02d}") + "/query_layer/kernel" in w:
        q, k, v = (heads(dense(h, f"{scope}/{part}_layer")) for part in ("query", "key", "value"))
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -1e10)
        context = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(h.shape)
        r = h + dense(context, f"{scope}/context_projection_layer")
        inner = dense(norm(r, f"{scope}/LayerNorm_mlp_ln0"), f"{scope}/intermediate")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        h = norm(r + dense(inner, f"{scope}/output"), f"{scope}/LayerNorm_mlp_ln1")
        layer += 1
    return h @ w["embeddings/word_embed"].T


def reference_logits(weights: dict[str, np.ndarray], config: GPT2Config, ids: np.ndarray) -> np.ndarray:
    """`logits` in float64: (B, T) -> (B, T, V)"""
    exact = {name: torch.from_numpy(values.astype(np.float64)) for name, values in weights.items()}
    return logits(exact, config.num_heads, torch.from_numpy(ids.astype(np.int64))).numpy()


def loss_and_gradients(
    weights: dict[str, np.ndarray], config: GPT2Config, ids: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss of rows of T + 1 tokens, and the gradient of every weight, in float64."""
    exact = {name: torch.from_numpy(values.astype(np.float64)).requires_grad_() for name, values in weights.items()}
    rows = torch.from_numpy(ids.astype(np.int64))
    computed = logits(exact, config.num_heads, rows[:, :-1])
    loss = torch.nn.functional.cross_entropy(computed.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: values.grad.numpy() for name, values in exact.items()}
