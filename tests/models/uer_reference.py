"""UER-py's GPT-2 in torch, from its formulas, on weights under our names; an untied head where there is one.

Shape letters: B batch, T tokens, V vocabulary, H hidden.
"""

import math

import torch
from torch.nn.functional import cross_entropy, gelu

from mindgpt.checkpoints.gpt2_config import GPT2Config

EPS = 1e-6
TABLE = "backbone.embedding.{}_embedding.embedding_table"


def layer_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """gamma (x - mean) / (unbiased standard deviation + eps) + beta"""
    return gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS) + beta


def hidden_states(w: dict[str, torch.Tensor], config: GPT2Config, ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, H), after the last layer norm"""
    batch, tokens = ids.shape

    def heads(x):  # (B, T, H) -> (B, N, T, D)
        return x.reshape(batch, tokens, config.num_heads, -1).transpose(1, 2)

    def norm(x, name):
        return layer_norm(x, w[f"{name}.gamma"], w[f"{name}.beta"])

    x = w[TABLE.format("word")][ids] + w[TABLE.format("position")][:tokens]
    above_diagonal = torch.ones(tokens, tokens).triu(1)
    for layer in range(config.num_layers):
        at = f"backbone.blocks.{layer}."
        y = norm(x, f"{at}layernorm1")
        q, k, v = (
            heads(y @ w[f"{at}attention.dense{n}.weight"].T + w[f"{at}attention.dense{n}.bias"]) for n in (1, 2, 3)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) - 10000.0 * above_diagonal
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + context @ w[f"{at}attention.projection.weight"] + w[f"{at}attention.projection.bias"]
        y = norm(x, f"{at}layernorm2") @ w[f"{at}output.mapping.weight"] + w[f"{at}output.mapping.bias"]
        y = gelu(y, approximate="tanh")
        x = x + y @ w[f"{at}output.projection.weight"] + w[f"{at}output.projection.bias"]
    return norm(x, "backbone.layernorm")


def logits(w: dict[str, torch.Tensor], config: GPT2Config, ids: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, T, V)"""
    return hidden_states(w, config, ids) @ w.get("head.weight", w[TABLE.format("word")]).T


def loss(w: dict[str, torch.Tensor], config: GPT2Config, ids: torch.Tensor) -> torch.Tensor:
    """The mean loss of predicting each token but the first: (B, T) -> scalar"""
    return cross_entropy(logits(w, config, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
