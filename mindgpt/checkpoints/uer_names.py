"""GPT-2's weights under the names of UER-py and TencentPretrain.

Shape letters: V vocabulary, P positions, H hidden, F feed-forward width; L is the number of layers.

Their matrices are all [out, in], as torch.nn.Linear stores them. Ours are [out, in] for query, key and value, and
[in, out] for the others, which are transposed.

The names of the tables and of the head have changed; those below `encoder.` never have:

    tensor    until 2022 (TencentPretrain), 2023 (UER-py)   today
    tokens    embedding.word_embedding.weight               embedding.word.embedding.weight
    positions embedding.position_embedding.weight           embedding.pos.embedding.weight
    head      target.output_layer.weight                    target.lm.output_layer.weight

Between the two, UER-py wrote today's tables with either head. Sources: checkpoints of both, and their `models/`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mindgpt.checkpoints.gpt2_names import EMBEDDINGS, SymbolicShape
from mindgpt.checkpoints.gpt2_names import HEAD as OUR_HEAD


class UERRow(NamedTuple):
    """A tensor of UER-py, and ours that holds the same numbers, possibly transposed."""

    names: tuple[str, ...]  # today's first, then earlier ones
    shape: SymbolicShape
    ours: str
    transposed: bool = False

    @property
    def name(self) -> str:
        """Today's name."""
        return self.names[0]

    @property
    def our_shape(self) -> SymbolicShape:
        """The shape of our tensor."""
        return self.shape[::-1] if self.transposed else self.shape


TOKENS = UERRow(
    ("embedding.word.embedding.weight", "embedding.word_embedding.weight"),
    ("V", "H"),
    EMBEDDINGS[0].mf_names[0],
)
POSITIONS = UERRow(
    ("embedding.pos.embedding.weight", "embedding.position_embedding.weight"),
    ("P", "H"),
    EMBEDDINGS[1].mf_names[0],
)
HEAD = UERRow(("target.lm.output_layer.weight", "target.output_layer.weight"), ("V", "H"), OUR_HEAD.mf_names[0])

_LINEAR = {  # UER-py's layer -> ours, [out, in] there, whether ours is [in, out]
    "self_attn.linear_layers.0": ("attention.dense1", ("H", "H"), False),
    "self_attn.linear_layers.1": ("attention.dense2", ("H", "H"), False),
    "self_attn.linear_layers.2": ("attention.dense3", ("H", "H"), False),
    "self_attn.final_linear": ("attention.projection", ("H", "H"), True),
    "feed_forward.linear_1": ("output.mapping", ("F", "H"), True),
    "feed_forward.linear_2": ("output.projection", ("H", "F"), True),
}
_NORMS = {"layer_norm_1": "layernorm1", "layer_norm_2": "layernorm2"}
LINEARS = {theirs: ours for theirs, (ours, _, _) in _LINEAR.items()}
"""UER-py's name of a linear layer within a block -> ours."""

UER_LAYER = re.compile(r"encoder\.transformer\.(\d{1,4})\.")
LORA_FACTOR = re.compile(r"encoder\.transformer\.(\d{1,4})\.([\w.]+)\.lora_([AB])")
PREFIX = "module."  # of DistributedDataParallel and DeepSpeed


def uer_table(num_layers: int, untied: bool) -> list[UERRow]:
    """All tensors of a GPT-2 in the order of UER-py's state dict; the head only if it is `untied`."""
    rows = [TOKENS, POSITIONS]
    for i in range(num_layers):
        theirs, ours = f"encoder.transformer.{i}", f"backbone.blocks.{i}"
        for name, (our_name, shape, transposed) in _LINEAR.items():
            rows.append(UERRow((f"{theirs}.{name}.weight",), shape, f"{ours}.{our_name}.weight", transposed))
            rows.append(UERRow((f"{theirs}.{name}.bias",), shape[:1], f"{ours}.{our_name}.bias"))
        for name, our_name in _NORMS.items():
            for part in ("gamma", "beta"):
                rows.append(UERRow((f"{theirs}.{name}.{part}",), ("H",), f"{ours}.{our_name}.{part}"))
    for part in ("gamma", "beta"):
        rows.append(UERRow((f"encoder.layer_norm.{part}",), ("H",), f"backbone.layernorm.{part}"))
    return [*rows, HEAD] if untied else rows


def are_uer(names: Iterable[str]) -> bool:
    """Whether weights have the names of UER-py or TencentPretrain."""
    tables = {*TOKENS.names, *POSITIONS.names}
    plain = [name.removeprefix(PREFIX) for name in names]
    return any(UER_LAYER.match(name) or name in tables for name in plain)


def without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Each stored name -> the name without `module.`, if all have it."""
    names = list(names)
    common = PREFIX if names and all(name.startswith(PREFIX) for name in names) else ""
    return {name: name.removeprefix(common) for name in names}


def todays_names() -> Mapping[str, str]:
    """Every name of a table or head -> today's name."""
    return {name: row.name for row in (TOKENS, POSITIONS, HEAD) for name in row.names}
