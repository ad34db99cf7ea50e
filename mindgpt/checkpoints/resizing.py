"""Resized embedding tables, for a network with another number of positions or tokens than its weights.

- Fewer positions: the first rows. What the model computes for the remaining positions does not change.
- More positions: the old rows repeated as often as needed (Beltagy et al. 2020, "Longformer", section 5). Trained
  positions attend to their neighbours, and so do copies; random rows would have to learn this again.
- More tokens: the old rows, and new ones that are the mean of the old plus a little noise. The table is the output head
  too: rows near zero would get logits near 0, far above GPT-2's usual logits, and nearly all of the probability. With
  the mean, a new token is as likely as an average one (Hewitt 2021, "Initializing New Word Embeddings for Pretrained
  Language Models"; transformers does the same). An untied head gets new rows in the same way. Rows that are to be no
  tokens are padding, which is zero and takes no part in the softmax: `padded_vocabulary.py`.
- Fewer tokens: refused. The highest ids would lose their rows, among them GPT-2's end-of-text token.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import HEAD, MF_EMBEDDING
from mindgpt.checkpoints.padded_vocabulary import VocabularyRows, config_with_rows
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.checkpoints.weights import Weights
from mindgpt.config.errors import UserError

TOKENS = MF_EMBEDDING
POSITIONS = "backbone.embedding.position_embedding.embedding_table"
UNTIED_HEAD = HEAD.mf_names[0]
_SIZES = ("seq_length", "max_position_embeddings", "vocab_size")
_NOISE = 0.01  # times the standard deviation of a column of the old rows


class ResizedEmbeddings:
    """A `TensorSource` with the embedding tables of another one resized.

    Attributes:
        path, entries, skipped: the source's, but for the shapes of the tables.
        changes: what was resized, one sentence a table; empty if nothing was.

    Args:
        source: weights under our names.
        positions, tokens: new numbers of rows of the tables; those of tokens are one, or with an untied head two.
        seed: of the noise in the rows of new tokens.

    Raises:
        UserError: the source has more tokens.
    """

    def __init__(self, source: TensorSource, positions: int, tokens: int, seed: int = 0):
        self._source, self._seed = source, seed
        self.path = source.path
        self.skipped: Mapping[str, str] = getattr(source, "skipped", {})
        self.entries = dict(source.entries)
        self.changes: list[str] = []
        for name, rows in ((POSITIONS, positions), (TOKENS, tokens), (UNTIED_HEAD, tokens)):
            info = source.entries.get(name)
            if info is None or len(info.shape) != 2 or info.shape[0] == rows:  # loading reports a wrong shape
                continue
            if name != POSITIONS and rows < info.shape[0]:
                raise UserError(
                    f"{self.path}: its vocabulary of {info.shape[0]} tokens cannot be cut to {rows}: the tokens from "
                    f"id {rows} on would be lost. Set vocab_size to {info.shape[0]}; ids that no text uses do no harm."
                )
            self.entries[name] = TensorInfo((rows, info.shape[1]), info.dtype)
            self.changes.append(_change(name, info.shape[0], rows))

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        array, shape = self._source.read(name), self.entries[name].shape
        if array.shape == shape:
            return array
        return _other_positions(array, shape[0]) if name == POSITIONS else _more_tokens(array, shape[0], self._seed)


def fit_to(weights: Weights, changes: Mapping[str, Any], resize: bool) -> tuple[GPT2Config, Weights]:
    """The config of `weights` with `changes`, and the weights with the embedding tables that it needs.

    If only one of `max_position_embeddings` and `seq_length` is given and does not fit the other, the other follows.

    Raises:
        UserError: another number of positions or tokens is asked for and `resize` is False; a smaller vocabulary; or
            settings that are not allowed.
    """
    config, names = weights.config, GPT2Config.other_names
    assert config is not None, "weights without config fit any"
    sizes = {names.get(key, key): value for key, value in changes.items() if names.get(key, key) in _SIZES}
    others = {key: value for key, value in changes.items() if names.get(key, key) not in _SIZES}
    length, positions = sizes.get("seq_length"), sizes.get("max_position_embeddings")
    if positions is None and isinstance(length, int) and length > config.max_position_embeddings:
        sizes["max_position_embeddings"] = length
    elif length is None and isinstance(positions, int) and positions < config.seq_length:
        sizes["seq_length"] = positions
    kept = config.model_dump()
    if others.get("layer_norm", config.layer_norm) != config.layer_norm:
        del kept["layernorm_epsilon"]  # is another number in the other arithmetic
    new = GPT2Config(**{**kept, **sizes, **others}) if changes else config
    if new.vocab_size != config.vocab_size and new.token_count == config.token_count:  # padding alone
        config = config_with_rows(config, new.vocab_size)
        weights = replace(weights, source=VocabularyRows(weights.source, new.vocab_size), config=config)
    differing = [
        f"{name} is {getattr(config, name)} there and {getattr(new, name)} here"
        for name in ("max_position_embeddings", "vocab_size")
        if getattr(config, name) != getattr(new, name)
    ]
    if not differing:
        return new, weights
    if not resize:
        raise UserError(
            f"{weights.source.path} has another size: {'; '.join(differing)}. resize_embeddings=True resizes the "
            f"embedding tables. Rows shorter than {config.max_position_embeddings} tokens need no resizing."
        )
    return new, resized(weights, new)[0]


def resized(weights: Weights, config: GPT2Config, seed: int = 0) -> tuple[Weights, list[str]]:
    """`weights` with the embedding tables that `config` needs, and a sentence for each resized table.

    Raises:
        UserError: `config` has a smaller vocabulary.
    """
    source = ResizedEmbeddings(weights.source, config.max_position_embeddings, config.vocab_size, seed)
    return replace(weights, source=source), source.changes


def _change(name: str, old: int, new: int) -> str:
    if name == UNTIED_HEAD:
        return f"untied output head: from {old} to {new} rows, as the vocabulary"
    if name == TOKENS:
        return f"vocabulary: from {old} to {new} tokens; new rows are the mean of the old ones with a little noise"
    how = f"the first {new} rows" if new < old else "new rows are copies of the old ones, from the first on"
    return f"positions: from {old} to {new}; {how}"


def _other_positions(table: np.ndarray, rows: int) -> np.ndarray:
    """(P, H) -> (rows, H): truncated, or repeated."""
    return np.ascontiguousarray(np.tile(table, (math.ceil(rows / len(table)), 1))[:rows])


def _more_tokens(table: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """(V, H) -> (rows, H), rows > V: the new rows are the mean of the old ones plus normal noise, see `_NOISE`."""
    mean, deviation = table.mean(axis=0, dtype=np.float64), table.std(axis=0, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal((rows - len(table), table.shape[1]))
    return np.concatenate([table, (mean + _NOISE * deviation * noise).astype(table.dtype)])
