"""GPT-3's weights under Megatron's names, as ModelScope's Chinese GPT-3 has them.

Shape letters: V vocabulary, P positions, H hidden, F feed-forward width, n heads, d head size; L is the number of
layers.

Two layouts of names:

    part        parallel (1.3B and up)                      base (base and large)
    tables      language_model.embedding.word_embeddings    language_model.word_embeddings
    layers      language_model.encoder.layers.0             language_model.transformer.layers.0
    attention   self_attention                              attention

Their matrices are all [out, in], as torch.nn.Linear stores them. Ours are [out, in] for query, key and value, and
[in, out] for the others, which are transposed. Query, key and value are one tensor, query_key_value, whose 3H rows have
one of three orders. Sources: Megatron-LM's `checkpointing.py` and checkpoints, ModelScope's `models/nlp/gpt3`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mindgpt.checkpoints.gpt2_names import EMBEDDINGS, SymbolicShape
from mindgpt.checkpoints.gpt2_names import HEAD as OUR_HEAD

# The order of the rows of query_key_value, as the place of the 3 beside the dimensions [n, d].
THREE_BLOCKS = 0  # [3, n, d]: all of query, key, value. base and large; Megatron's checkpoint_version 0
PER_HEAD = 1  # [n, 3, d]: query, key, value of each head. checkpoint_version 2 and 3, and ModelScope, which has none
PER_VALUE = 2  # [n, d, 3]. checkpoint_version 1


class MegatronLayout(NamedTuple):
    """What the names of a layout begin with, and its module of attention."""

    tables: str
    layers: str
    attention: str


LAYOUTS = {
    "parallel": MegatronLayout("language_model.embedding.", "language_model.encoder.", "self_attention"),
    "base": MegatronLayout("language_model.", "language_model.transformer.", "attention"),
}


class MegatronRow(NamedTuple):
    """A tensor of Megatron's, and the one or three of ours that hold the same numbers.

    Attributes:
        name, shape: of theirs.
        ours: our names; three for query, key and value.
        our_shape: of each of ours.
        transposed: whether ours are transposed.
    """

    name: str
    shape: SymbolicShape
    ours: tuple[str, ...]
    our_shape: SymbolicShape
    transposed: bool = False

    def split(self, array: np.ndarray, part: int, order: int, heads: int) -> np.ndarray:
        """Our tensor number `part`, from theirs. `order`: of the rows of query_key_value."""
        if len(self.ours) == 1:
            return np.ascontiguousarray(array.T) if self.transposed else array
        hidden, rest = array.shape[0] // 3, array.shape[1:]
        sizes = [heads, hidden // heads]
        sizes.insert(order, 3)
        return np.ascontiguousarray(array.reshape(*sizes, *rest).take(part, axis=order)).reshape(hidden, *rest)

    def fuse(self, parts: list[np.ndarray], order: int, heads: int) -> np.ndarray:
        """Their tensor, from ours: the inverse of `split`."""
        if len(parts) == 1:
            return np.ascontiguousarray(parts[0].T) if self.transposed else parts[0]
        hidden, rest = parts[0].shape[0], parts[0].shape[1:]
        by_head = [part.reshape(heads, hidden // heads, *rest) for part in parts]
        return np.stack(by_head, axis=order).reshape(3 * hidden, *rest)


_LINEAR = {  # theirs -> ours, [out, in] there; query_key_value apart
    "{attention}.dense": ("attention.projection", ("H", "H")),
    "mlp.dense_h_to_4h": ("output.mapping", ("F", "H")),
    "mlp.dense_4h_to_h": ("output.projection", ("H", "F")),
}
_NORM_PARTS = {"weight": "gamma", "bias": "beta"}
_OUR_QKV = ("attention.dense1", "attention.dense2", "attention.dense3")
HEAD_NAMES = (  # of an output head beside the token table, in versions of Megatron; tied in all models of ModelScope
    "language_model.output_layer.weight",
    "word_embeddings_for_head.weight",
    "lm_head.weight",
)
HEAD = HEAD_NAMES[0]

MEGATRON_LAYER = re.compile(r"language_model\.(?:encoder|transformer)\.layers\.(\d{1,4})\.")
_PREFIX = re.compile(r"(?:module\.|model\.)+(?=language_model\.|word_embeddings_for_head\.|lm_head\.)")
_OF_MEGATRON = re.compile(
    r"language_model\.(?:(?:embedding\.)?(?:word|position)_embeddings\.|(?:encoder|transformer)\.layers\.\d+\.\w*norm\.)"
)


def megatron_table(layout: str, num_layers: int, untied: bool) -> list[MegatronRow]:
    """All tensors of a GPT-3 in the order of ModelScope's state dict; an output head only if it is `untied`.

    `layout`: a key of `LAYOUTS`.
    """
    where = LAYOUTS[layout]
    rows = []
    for name, ours in zip(("word_embeddings", "position_embeddings"), EMBEDDINGS, strict=True):
        rows.append(MegatronRow(f"{where.tables}{name}.weight", ours.hf_shape, ours.mf_names, ours.mf_shape))
    for i in range(num_layers):
        rows += _layer(where, f"{where.layers}layers.{i}", f"backbone.blocks.{i}")
    rows += _norm(f"{where.layers}final_layernorm", "backbone.layernorm")
    return [*rows, MegatronRow(HEAD, ("V", "H"), OUR_HEAD.mf_names, ("V", "H"))] if untied else rows


def are_megatron(names: Iterable[str]) -> bool:
    """Whether weights have Megatron's names."""
    return any(_OF_MEGATRON.match(without_prefix(name)) for name in names)


def without_prefix(name: str) -> str:
    """A stored name without `module.` and `model.` before it."""
    return _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name


def layout_of(names: Iterable[str]) -> str:
    """The key of `LAYOUTS` by which names without prefix are formed."""
    tables, layers, _ = LAYOUTS["parallel"]
    return "parallel" if any(name.startswith((tables, layers)) for name in names) else "base"


def _layer(where: MegatronLayout, theirs: str, ours: str) -> list[MegatronRow]:
    rows = _norm(f"{theirs}.input_layernorm", f"{ours}.layernorm1")
    for part, shape in (("weight", ("3H", "H")), ("bias", ("3H",))):
        name = f"{theirs}.{where.attention}.query_key_value.{part}"
        rows.append(MegatronRow(name, shape, tuple(f"{ours}.{qkv}.{part}" for qkv in _OUR_QKV), ("H", *shape[1:])))
    dense, *of_mlp = _LINEAR
    rows += _linear(where, theirs, ours, dense)
    rows += _norm(f"{theirs}.post_attention_layernorm", f"{ours}.layernorm2")
    for name in of_mlp:
        rows += _linear(where, theirs, ours, name)
    return rows


def _linear(where: MegatronLayout, theirs: str, ours: str, name: str) -> list[MegatronRow]:
    (our_name, shape), there = _LINEAR[name], f"{theirs}.{name.format(attention=where.attention)}"
    return [
        MegatronRow(f"{there}.weight", shape, (f"{ours}.{our_name}.weight",), shape[::-1], transposed=True),
        MegatronRow(f"{there}.bias", shape[:1], (f"{ours}.{our_name}.bias",), shape[:1]),
    ]


def _norm(theirs: str, ours: str) -> list[MegatronRow]:
    return [
        MegatronRow(f"{theirs}.{part}", ("H",), (f"{ours}.{our_part}",), ("H",))
        for part, our_part in _NORM_PARTS.items()
    ]
