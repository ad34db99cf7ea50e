"""GPT-2's weights under their two names: MindFormers 1.5's (ours) and Hugging Face's, and the views that translate.

Shape letters: V vocabulary, P positions, H hidden, F feed-forward width, C classes; L is the number of layers.

Orientation of the matrices, where [in, out] means y = x W and [out, in] means y = x W^T:

    part               Hugging Face                           MindFormers, mindgpt
    query, key, value  attn.c_attn [H, 3H], in-out, joined    attention.dense1, 2, 3 [H, H], out-in
    all others         [in, out]                              [in, out], copied unchanged

Sources: `modeling_gpt2.py` of transformers (its `Conv1D`) and checkpoints of MindFormers 1.5.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindgpt.checkpoints.tensor_source import FLOAT_DTYPES, TensorInfo, TensorSource
from mindgpt.config.errors import UserError

Letters = tuple[str, ...]  # a shape such as ("H", "3H")


class Row(NamedTuple):
    """One Hugging Face tensor and the one or three MindFormers tensors that hold the same numbers."""

    hf_name: str  # without the prefix `transformer.`
    hf_shape: Letters
    mf_names: tuple[str, ...]
    mf_shape: Letters

    def split(self, array: np.ndarray, part: int) -> np.ndarray:
        """MindFormers' tensor number `part` out of Hugging Face's."""
        if len(self.mf_names) == 1:
            return array
        piece = np.split(array, len(self.mf_names), axis=-1)[part]
        return np.array(piece.T, order="C")  # the transpose of a bias is itself

    def join(self, parts: list[np.ndarray]) -> np.ndarray:
        """Hugging Face's tensor out of MindFormers'."""
        return parts[0] if len(parts) == 1 else np.concatenate([part.T for part in parts], axis=-1)


EMBEDDINGS = (
    Row("wte.weight", ("V", "H"), ("backbone.embedding.word_embedding.embedding_table",), ("V", "H")),
    Row("wpe.weight", ("P", "H"), ("backbone.embedding.position_embedding.embedding_table",), ("P", "H")),
)
# Inside a layer: (Hugging Face, its shape, MindFormers, its shape)
LAYER = (
    ("ln_1.weight", ("H",), ("layernorm1.gamma",), ("H",)),
    ("ln_1.bias", ("H",), ("layernorm1.beta",), ("H",)),
    ("attn.c_attn.weight", ("H", "3H"), tuple(f"attention.dense{part}.weight" for part in (1, 2, 3)), ("H", "H")),
    ("attn.c_attn.bias", ("3H",), tuple(f"attention.dense{part}.bias" for part in (1, 2, 3)), ("H",)),
    ("attn.c_proj.weight", ("H", "H"), ("attention.projection.weight",), ("H", "H")),
    ("attn.c_proj.bias", ("H",), ("attention.projection.bias",), ("H",)),
    ("ln_2.weight", ("H",), ("layernorm2.gamma",), ("H",)),
    ("ln_2.bias", ("H",), ("layernorm2.beta",), ("H",)),
    ("mlp.c_fc.weight", ("H", "F"), ("output.mapping.weight",), ("H", "F")),
    ("mlp.c_fc.bias", ("F",), ("output.mapping.bias",), ("F",)),
    ("mlp.c_proj.weight", ("F", "H"), ("output.projection.weight",), ("F", "H")),
    ("mlp.c_proj.bias", ("H",), ("output.projection.bias",), ("H",)),
)
FINAL_NORM = (
    Row("ln_f.weight", ("H",), ("backbone.layernorm.gamma",), ("H",)),
    Row("ln_f.bias", ("H",), ("backbone.layernorm.beta",), ("H",)),
)
SCORE = Row("score.weight", ("C", "H"), ("score.weight",), ("C", "H"))  # the classification head, prefixed by neither

HF_PREFIX = "transformer."
HF_HEAD = "lm_head.weight"
HF_EMBEDDING = EMBEDDINGS[0].hf_name
_JOINED_MATRIX = "attn.c_attn.weight"  # its two sizes differ in every GPT-2
# Causal masks, which older transformers saved along with the weights. They are constants.
HF_MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
HF_LAYER = re.compile(r"h\.(\d{1,4})\.")
# What stands before a name: what DistributedDataParallel, torch.compile, PEFT or wrappers of one's own put there.
_PREFIX = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)(?:transformer\.)?(?:wte|wpe|ln_f|h\.\d{1,4}|(?P<head>lm_head|score))\."
)
# What torch.compile, activation checkpointing and FSDP put into the names of the modules they wrap.
_INNER = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_MINDFORMERS = re.compile(r"(?P<prefix>(?:\w+\.)*?)backbone\.(?:embedding|blocks|layernorm)\.")
MF_LAYER = re.compile(r"backbone\.blocks\.(\d{1,4})\.")


def table(num_layers: int, classifies: bool) -> list[Row]:
    """All tensors of a GPT-2 in the model's order, with the classification head if it `classifies`."""
    rows = list(EMBEDDINGS)
    for i in range(num_layers):
        for hf_name, hf_shape, mf_names, mf_shape in LAYER:
            ours = tuple(f"backbone.blocks.{i}.{name}" for name in mf_names)
            rows.append(Row(f"h.{i}.{hf_name}", hf_shape, ours, mf_shape))
    rows += FINAL_NORM
    return [*rows, SCORE] if classifies else rows


class MindFormersView:
    """Hugging Face weights under MindFormers' names: a `TensorSource` of our parameters.

    The prefix `transformer.` may be there or not, and all names may have another before it. Mask buffers are skipped;
    `lm_head.weight` must equal `wte.weight` bit for bit and is skipped, or stands for it where it alone is
    there. Opening a view checks all names and shapes, and raises UserError for what does not fit.

    Attributes:
        path, entries: as in `TensorSource`; the names are in the model's order.
        skipped: stored name -> the rule it was skipped by.
        notes: sentences for the person about what was not as expected.
        sizes: the letters of the module's docstring -> int.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        self.notes: list[str] = list(getattr(source, "notes", ()))
        self._head: str | None = None  # the stored name of the output head, if the file has one beside the embedding
        self._stored, self.skipped = self._normalise(source.entries)
        held = {name: source.entries[stored] for name, stored in self._stored.items()}
        rows = table(count_layers(held, HF_LAYER), classifies=SCORE.hf_name in held)
        self.sizes = check_entries(held, {row.hf_name: row.hf_shape for row in rows}, self.path, HF_LAYER)
        self._check_head()
        self._place = {name: (row, part) for row in rows for part, name in enumerate(row.mf_names)}
        self.entries = {
            name: TensorInfo(concrete(row.mf_shape, self.sizes), held[row.hf_name].dtype)
            for name, (row, _) in self._place.items()
        }
        self._last: tuple[str, np.ndarray | None] = ("", None)

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row, part = self._place[name]
        if len(row.mf_names) == 1:
            return self._source.read(self._stored[row.hf_name])
        if self._last[0] != row.hf_name:  # query, key and value lie in one tensor, which is read once
            self._last = (row.hf_name, self._source.read(self._stored[row.hf_name]))
        return row.split(self._last[1], part)

    def _normalise(self, stored_names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Name without prefix -> stored name, for the weights; and stored name -> rule, for what is skipped."""
        weights: dict[str, str] = {}
        skipped: dict[str, str] = {}
        try:
            plain, left_out = _unwrapped(stored_names)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        if left_out:
            self.notes.append(f"{self.path}: {left_out} left out")
        for stored, name in plain.items():
            if HF_MASK_BUFFER.fullmatch(name):
                skipped[stored] = "causal-mask buffer"
            elif name == HF_HEAD:
                self._head = stored
            elif name in weights:
                raise UserError(f"{self.path}: holds both {weights[name]} and {stored}, which name the same weight.")
            else:
                weights[name] = stored
        if self._head and HF_EMBEDDING not in weights:
            weights[HF_EMBEDDING], self._head = self._head, None
            self.notes.append(
                f"{self.path}: {HF_EMBEDDING} is not there; {HF_HEAD} is taken for it: GPT-2 has one matrix for both"
            )
        if self._head:
            skipped[self._head] = "output head, tied to the token embedding"
        return weights, skipped

    def _check_head(self) -> None:
        if self._head is None:
            return
        embedding = self._stored[HF_EMBEDDING]
        head_info, embedding_info = self._source.entries[self._head], self._source.entries[embedding]
        if head_info == embedding_info:
            head, table = self._source.read(self._head), self._source.read(embedding)
            if np.array_equal(head.view(np.uint8), table.view(np.uint8)):
                return
        raise UserError(
            f"{self.path}: {self._head} {list(head_info.shape)} {head_info.dtype} differs from {embedding} "
            f"{list(embedding_info.shape)} {embedding_info.dtype}: an untied output head. GPT-2 uses one matrix for "
            "both and has no place for a second."
        )


class HuggingFaceView:
    """MindFormers weights under the names of Hugging Face's `GPT2LMHeadModel` (or classifier): a `TensorSource`.

    `source` must hold the weights alone. Opening a view checks all names and shapes, and raises UserError for what
    does not fit. The tied `lm_head.weight` is not among the names, as in what transformers saves.

    Attributes: path, entries, sizes as in `MindFormersView`.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        rows = table(count_layers(source.entries, MF_LAYER), classifies=SCORE.mf_names[0] in source.entries)
        shapes = {name: row.mf_shape for row in rows for name in row.mf_names}
        self.sizes = check_entries(source.entries, shapes, self.path, MF_LAYER)
        self._rows = {row.hf_name if row is SCORE else HF_PREFIX + row.hf_name: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete(row.hf_shape, self.sizes), source.entries[row.mf_names[0]].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        return row.join([self._source.read(part) for part in row.mf_names])


def _unwrapped(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Each stored name -> the name without the prefix that all have and without `transformer.`; and what was left out
    besides, or "".

    An output head lies beside the network and not in it, so it may have the beginning of the prefix alone.
    """
    found = {name: _PREFIX.match(name) for name in names}
    prefix = _prefix_of({name: match["prefix"] for name, match in found.items() if match and not match["head"]})
    plain, wrappers = {}, set()
    for name, match in found.items():
        own = match["prefix"] if match and match["head"] and prefix.startswith(match["prefix"]) else prefix
        if not match or not name.startswith(own):  # none of these weights: it is listed as it is
            plain[name] = name
            continue
        inside = name.removeprefix(own)
        wrappers.update(_INNER.findall(inside))
        plain[name] = _INNER.sub("", inside).removeprefix(HF_PREFIX)
    parts = [f"all names begin with {prefix}, which is"] if prefix else []
    if wrappers:
        parts.append(f"{', '.join(sorted(wrappers))} in names {'are' if len(wrappers) > 1 else 'is'}")
    return plain, " left out; ".join(parts)


def _prefix_of(prefixes: Mapping[str, str]) -> str:
    """The prefix that most names have, of name -> prefix.

    Raises:
        UserError: the same weights are there under two prefixes.
    """
    by_prefix: dict[str, set[str]] = {}
    for name, prefix in prefixes.items():
        by_prefix.setdefault(prefix, set()).add(name.removeprefix(prefix).removeprefix(HF_PREFIX))
    most = sorted(by_prefix, key=lambda prefix: len(by_prefix[prefix]), reverse=True)[:2]
    if len(most) > 1 and 2 * len(by_prefix[most[0]] & by_prefix[most[1]]) > len(by_prefix[most[0]]):
        raise UserError(
            f"two sets of weights in one file, under {most[0] or 'no prefix'} and {most[1] or 'no prefix'}, and "
            "nothing says which are meant. Save the ones you want by themselves."
        )
    return most[0] if most else ""


def mindformers_prefix(names: Iterable[str]) -> str | None:
    """What stands before MindFormers' names, and so ours, such as `network.`, mostly ""; None if there are no such
    names."""
    found = Counter(match["prefix"] for name in names if (match := _MINDFORMERS.match(name)))
    return found.most_common(1)[0][0] if found else None


def are_mindformers(names: Iterable[str]) -> bool:
    """Whether weights have MindFormers' names, and so ours."""
    return mindformers_prefix(names) is not None


def count_layers(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    """One more than the highest layer index in `names`; a gap below it shows up as missing names."""
    return max((int(match[1]) + 1 for name in names if (match := pattern.match(name))), default=0)


def concrete(letters: Letters, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that `letters` stand for: ("H", "3H") -> (768, 2304)."""
    return tuple(3 * sizes["H"] if letter == "3H" else sizes[letter] for letter in letters)


def check_entries(
    entries: Mapping[str, TensorInfo], shapes: Mapping[str, Letters], path: Path, layer: re.Pattern[str]
) -> dict[str, int]:
    """Check that `entries` are exactly the names of `shapes` in consistent sizes; return {"L": 12, "H": 768, ...}.

    Raises UserError that lists every missing, unknown, misshapen and non-floating-point name.
    """
    problems = [f"missing: {name}" for name in shapes if name not in entries]
    problems += [f"unknown: {name} {list(entries[name].shape)}" for name in entries if name not in shapes]
    held = {name: info for name, info in entries.items() if name in shapes}
    sizes = _sizes({name: info.shape for name, info in held.items()}, shapes)
    for name, info in held.items():
        expected = concrete(shapes[name], sizes)
        if info.shape != expected:
            problems.append(f"wrong shape: {name} is {list(info.shape)}, the other weights make it {list(expected)}")
        if info.dtype not in FLOAT_DTYPES:
            problems.append(f"wrong type: {name} is {info.dtype}; weights are {', '.join(FLOAT_DTYPES)}")
    if problems:
        joined = {name: info.shape for name, info in held.items() if name.endswith(_JOINED_MATRIX)}
        transposed = [name for name, shape in joined.items() if shape == concrete(shapes[name], sizes)[::-1]]
        raise UserError(
            f"{path}: not the weights of a GPT-2:\n  "
            + "\n  ".join(problems)
            + (_hint_of_transposed(transposed[0]) if transposed and len(transposed) == len(joined) else "")
            + hint(set(entries) - set(shapes))
        )
    return {"L": count_layers(entries, layer)} | sizes


def _sizes(held: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Letters]) -> dict[str, int]:
    """The size most tensors give to each letter, so that one bad tensor is blamed and not all the good ones."""
    votes: dict[str, Counter[int]] = {}
    for name, letters in shapes.items():
        known = held.get(name, ())
        sizes = known if len(known) == len(letters) else (0,) * len(letters)
        for letter, size in zip(letters, sizes, strict=True):
            # A missing tensor or one of wrong rank votes for nothing, but its letters get an entry.
            votes.setdefault(letter, Counter({0: 0})).update({size: 1 if size else 0})
    return {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}


def _hint_of_transposed(name: str) -> str:
    return (
        f"\nThe matrices, {name} for one, are [out, in], as torch.nn.Linear stores them; GPT-2's are [in, out] "
        "(transformers' Conv1D). Transpose the four of each layer, or save the model with transformers."
    )


def hint(unknown: Iterable[str]) -> str:
    """What names we do not know point at: a line to append to an error message, or nothing."""
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
