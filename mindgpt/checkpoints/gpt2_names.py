"""GPT-2's weights under their two names: MindFormers 1.5's, which are ours, and Hugging Face's.

Shape letters: V vocabulary, P positions, H hidden, F feed-forward width, C classes; L is the number of layers.

Orientation of the matrices, where [in, out] means y = x W and [out, in] means y = x W^T:

    matrix             Hugging Face                                MindFormers, mindgpt
    query, key, value  attn.c_attn [H, 3H], [in, out], fused       attention.dense1, 2, 3 [H, H], [out, in]
    all others         [in, out]                                   [in, out], copied unchanged

Sources: `modeling_gpt2.py` of transformers (its `Conv1D`) and checkpoints of MindFormers 1.5.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SymbolicShape = tuple[str, ...]  # a shape such as ("H", "3H")


class Row(NamedTuple):
    """A Hugging Face tensor, and the one or three MindFormers tensors that hold the same numbers."""

    hf_name: str  # without the prefix `transformer.`
    hf_shape: SymbolicShape
    mf_names: tuple[str, ...]
    mf_shape: SymbolicShape

    def split(self, array: np.ndarray, part: int) -> np.ndarray:
        """MindFormers' tensor number `part`, from Hugging Face's: (3H,) -> (H,), (H, 3H) -> (H, H) transposed."""
        if len(self.mf_names) == 1:
            return array
        third = np.split(array, len(self.mf_names), axis=-1)[part]
        return np.array(third.T, order="C")  # a bias is its own transpose

    def fuse(self, parts: list[np.ndarray]) -> np.ndarray:
        """Hugging Face's tensor, from MindFormers': the inverse of `split`."""
        return parts[0] if len(parts) == 1 else np.concatenate([part.T for part in parts], axis=-1)


EMBEDDINGS = (
    Row("wte.weight", ("V", "H"), ("backbone.embedding.word_embedding.embedding_table",), ("V", "H")),
    Row("wpe.weight", ("P", "H"), ("backbone.embedding.position_embedding.embedding_table",), ("P", "H")),
)
LAYER = (  # names within a layer
    Row("ln_1.weight", ("H",), ("layernorm1.gamma",), ("H",)),
    Row("ln_1.bias", ("H",), ("layernorm1.beta",), ("H",)),
    Row("attn.c_attn.weight", ("H", "3H"), tuple(f"attention.dense{n}.weight" for n in (1, 2, 3)), ("H", "H")),
    Row("attn.c_attn.bias", ("3H",), tuple(f"attention.dense{n}.bias" for n in (1, 2, 3)), ("H",)),
    Row("attn.c_proj.weight", ("H", "H"), ("attention.projection.weight",), ("H", "H")),
    Row("attn.c_proj.bias", ("H",), ("attention.projection.bias",), ("H",)),
    Row("ln_2.weight", ("H",), ("layernorm2.gamma",), ("H",)),
    Row("ln_2.bias", ("H",), ("layernorm2.beta",), ("H",)),
    Row("mlp.c_fc.weight", ("H", "F"), ("output.mapping.weight",), ("H", "F")),
    Row("mlp.c_fc.bias", ("F",), ("output.mapping.bias",), ("F",)),
    Row("mlp.c_proj.weight", ("F", "H"), ("output.projection.weight",), ("F", "H")),
    Row("mlp.c_proj.bias", ("H",), ("output.projection.bias",), ("H",)),
)
FINAL_NORM = (
    Row("ln_f.weight", ("H",), ("backbone.layernorm.gamma",), ("H",)),
    Row("ln_f.bias", ("H",), ("backbone.layernorm.beta",), ("H",)),
)
HEAD = Row("lm_head.weight", ("V", "H"), ("head.weight",), ("V", "H"))  # an untied output head
SCORE = Row("score.weight", ("C", "H"), ("score.weight",), ("C", "H"))  # the classification head
UNPREFIXED = (HEAD, SCORE)

HF_PREFIX = "transformer."  # of all rows but those
HF_HEAD = HEAD.hf_name
HF_EMBEDDING = EMBEDDINGS[0].hf_name
MF_EMBEDDING = EMBEDDINGS[0].mf_names[0]
_EMBEDDING_NORM = "backbone.embedding.layernorm.gamma"  # of a GPT2_ML
TIED_HEAD = "output head, tied to the token embedding"  # the rule by which views skip a head that equals it
# Causal masks, which older transformers saved along with the weights. They are constants.
HF_MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
HF_LAYER = re.compile(r"h\.(\d{1,4})\.")
_MINDFORMERS = re.compile(r"(?P<prefix>(?:\w+\.)*?)backbone\.(?:embedding|blocks|layernorm)\.")
MF_LAYER = re.compile(r"backbone\.blocks\.(\d{1,4})\.")


def table(num_layers: int, classifies: bool, untied: bool = False) -> list[Row]:
    """All tensors of a GPT-2 in the model's order, with the classification head if it `classifies`, and the output head
    if that is `untied` from the token embedding."""
    layers = []
    for i in range(num_layers):
        for row in LAYER:
            mf_names = tuple(f"backbone.blocks.{i}.{name}" for name in row.mf_names)
            layers.append(row._replace(hf_name=f"h.{i}.{row.hf_name}", mf_names=mf_names))
    heads = [*([HEAD] if untied else []), *([SCORE] if classifies else [])]
    return [*EMBEDDINGS, *layers, *FINAL_NORM, *heads]


def mindformers_prefix(names: Iterable[str]) -> str | None:
    """The prefix of MindFormers' names, such as `network.`, mostly ""; None if there are no such names."""
    found = Counter(match["prefix"] for name in names if (match := _MINDFORMERS.match(name)))
    return found.most_common(1)[0][0] if found else None


def are_mindformers(names: Iterable[str]) -> bool:
    """Whether weights have MindFormers' names, which are ours."""
    return mindformers_prefix(names) is not None


def variant_of(names: Iterable[str]) -> str | None:
    """The variant of a network (`GPT2Config.variant`) whose weights have these names, ours; None: they are not those of
    a whole network, and fit any."""
    names = set(names)
    if MF_EMBEDDING not in names:
        return None
    return "gpt2_ml" if _EMBEDDING_NORM in names else "gpt2"


def hint(unknown: Iterable[str]) -> str:
    """What unknown names suggest, as a line to append to an error message; or ""."""
    names = " ".join(unknown)
    if "mindpet_delta_lora" in names:
        return (
            "\nThe mindpet_delta_lora_* are LoRA weights: merge them into the base weights with "
            "tools/transform_ckpt_lora.py first. (A run takes them as they are if its YAML has their pet_config.)"
        )
    if re.search(r"\.lora_[AB]\.|\.base_layer\.", names):
        return (
            "\nThe lora_A and lora_B are PEFT's factors, saved with the weights: merge them with PEFT "
            "(merge_and_unload) and save the result, or save the adapter alone and name it with --adapter."
        )
    if "v_head." in names or "pretrained_model." in names:
        return (
            "\nThis is trl's model with a value head: save the language model in it (model.pretrained_model) with "
            "save_pretrained, and name that."
        )
    if other := re.search(r"\b(multiple_choice_head|qa_outputs|classifier|summary)\.", names):
        return (
            f"\n{other[1]} is a head that mindgpt does not have: it has the language model and the classifier of "
            "sequences (score.weight). Save the network below it as transformers' GPT2LMHeadModel, and name that."
        )
    if "crossattention" in names:
        return "\nCross-attention (crossattention.*) belongs to encoder-decoder models, which are not supported."
    if re.search(r"router|expert|output\.ffn\.", names):
        return "\nMixture-of-experts weights are not supported."
    return ""
