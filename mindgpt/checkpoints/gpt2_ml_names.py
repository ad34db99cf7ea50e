"""GPT2_ML's weights under their three names: TensorFlow's, those of its PyTorch port (gpt2-ml-torch), and ours.

Shape letters: V vocabulary, P positions, H hidden, F feed-forward width; L is the number of layers.

The network is not GPT-2's: it has a layer norm after the embeddings and none at the end, and both norms of a block are
about its feed-forward, `h = LN1(r + FFN(LN0(r)))`. `layernorm1` is LN0 and `layernorm2` is LN1, as `ln_1` and `ln_2` in
the port.

Orientation of the matrices, where [in, out] means y = x W and [out, in] means y = x W^T:

    matrix             TensorFlow                                  PyTorch port                        mindgpt
    query, key, value  {query,key,value}_layer [H, H], [in, out]   attn.c_attn [H, 3H], [in, out]      [H, H], [out, in]
    all others         [in, out]                                   [in, out]                           [in, out]

Sources: `train/modeling.py` of imcaspar/gpt2-ml, the indexes of its two checkpoints, `modeling_gpt2.py` of
ghosthamlet/gpt2-ml-torch.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mindgpt.checkpoints import gpt2_names
from mindgpt.checkpoints.gpt2_names import SCORE, SymbolicShape


class MLRow(NamedTuple):
    """A tensor of GPT2_ML, and the one or three of ours that hold the same numbers.

    Attributes:
        name: of theirs.
        shape: of theirs.
        ours: our names.
        our_shape: of each of ours.
        transposed: whether ours are transposed.
    """

    name: str
    shape: SymbolicShape
    ours: tuple[str, ...]
    our_shape: SymbolicShape
    transposed: bool = False

    def split(self, array: np.ndarray, part: int) -> np.ndarray:
        """Our tensor number `part`, from theirs."""
        if len(self.ours) == 1 and not self.transposed:
            return array
        array = np.split(array, len(self.ours), axis=-1)[part]
        return np.array(array.T if self.transposed else array, order="C")

    def fuse(self, parts: list[np.ndarray]) -> np.ndarray:
        """Their tensor, from ours: the inverse of `split`."""
        parts = [part.T if self.transposed else part for part in parts]
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1))


_EMBEDDINGS = {  # ours -> TensorFlow's, the port's, shape
    "backbone.embedding.word_embedding.embedding_table": ("word_embed", "wte.weight", ("V", "H")),
    "backbone.embedding.position_embedding.embedding_table": ("pos_embed", "wpe.weight", ("P", "H")),
    "backbone.embedding.layernorm.gamma": ("LayerNorm_embed_norm/gamma", "emb_norm.weight", ("H",)),
    "backbone.embedding.layernorm.beta": ("LayerNorm_embed_norm/beta", "emb_norm.bias", ("H",)),
}
_NORMS = {"layernorm1": "LayerNorm_mlp_ln0", "layernorm2": "LayerNorm_mlp_ln1"}
_LINEAR = {  # ours -> TensorFlow's, shape there, whether ours is transposed
    "attention.dense1": ("query_layer", ("H", "H"), True),
    "attention.dense2": ("key_layer", ("H", "H"), True),
    "attention.dense3": ("value_layer", ("H", "H"), True),
    "attention.projection": ("context_projection_layer", ("H", "H"), False),
    "output.mapping": ("intermediate", ("H", "F"), False),
    "output.projection": ("output", ("F", "H"), False),
}
_SCOPE = "newslm/"

ML_LAYER = re.compile(r"newslm/layer(\d{2,4})/")
PORT_NORM = re.compile(r"(?:transformer\.)?emb_norm\.(weight|bias)")  # what a GPT-2 does not have


def tensorflow_table(num_layers: int) -> list[MLRow]:
    """All weights of a GPT2_ML under TensorFlow's names."""
    rows = [
        MLRow(f"{_SCOPE}embeddings/{theirs}", shape, (ours,), shape) for ours, (theirs, _, shape) in _EMBEDDINGS.items()
    ]
    for i in range(num_layers):
        theirs, block = f"{_SCOPE}layer{i:02d}", f"backbone.blocks.{i}"
        for ours, norm in _NORMS.items():
            for part in ("gamma", "beta"):
                rows.append(MLRow(f"{theirs}/{norm}/{part}", ("H",), (f"{block}.{ours}.{part}",), ("H",)))
        for ours, (linear, shape, transposed) in _LINEAR.items():
            our_shape = shape[::-1] if transposed else shape
            rows.append(MLRow(f"{theirs}/{linear}/kernel", shape, (f"{block}.{ours}.weight",), our_shape, transposed))
            rows.append(MLRow(f"{theirs}/{linear}/bias", shape[1:], (f"{block}.{ours}.bias",), shape[1:]))
    return rows


def port_table(num_layers: int, classifies: bool = False) -> list[MLRow]:
    """All weights of a GPT2_ML under the names of the PyTorch port, without `transformer.`, in our order.

    Within a block they are Hugging Face's of GPT-2, and so is a classification head, which only mindgpt's have.
    """
    rows = [MLRow(theirs, shape, (ours,), shape) for ours, (_, theirs, shape) in _EMBEDDINGS.items()]
    for i in range(num_layers):
        for row in gpt2_names.LAYER:
            ours = tuple(f"backbone.blocks.{i}.{name}" for name in row.mf_names)
            rows.append(MLRow(f"h.{i}.{row.hf_name}", row.hf_shape, ours, row.mf_shape, len(ours) > 1))
    if classifies:
        rows.append(MLRow(SCORE.hf_name, SCORE.hf_shape, SCORE.mf_names, SCORE.mf_shape))
    return rows


def are_tensorflows(names: Iterable[str]) -> bool:
    """Whether weights are a GPT2_ML's under TensorFlow's names."""
    return any(name.startswith(_SCOPE) for name in names)


def are_ports(names: Iterable[str]) -> bool:
    """Whether weights are a GPT2_ML's under the names of the PyTorch port."""
    return any(PORT_NORM.fullmatch(name) for name in names)
