"""Views that rename GPT-2's weights between MindFormers and Hugging Face, and check their names and shapes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import (
    HEAD,
    HF_EMBEDDING,
    HF_HEAD,
    HF_LAYER,
    HF_MASK_BUFFER,
    HF_PREFIX,
    MF_EMBEDDING,
    MF_LAYER,
    SCORE,
    TIED_HEAD,
    UNPREFIXED,
    SymbolicShape,
    hint,
    table,
)
from mindgpt.checkpoints.tensor_source import (
    FLOAT_DTYPES,
    Box,
    TensorInfo,
    TensorSource,
    box_of_part,
    equal_bits,
    read_box,
)
from mindgpt.config.errors import UserError

_FUSED_MATRIX = "attn.c_attn.weight"  # its two dimensions always differ, so a transposed matrix is detectable
# What DistributedDataParallel, torch.compile, PEFT or a user's own wrapper puts before a name.
_PREFIX = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)(?:transformer\.)?(?:wte|wpe|ln_f|h\.\d{1,4}|(?P<head>lm_head|score))\."
)
# What torch.compile, activation checkpointing and FSDP put into the names of the modules they wrap.
_WRAPPER = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")

_NOTHING = np.empty(0)


class MindFormersView:
    """Hugging Face weights under MindFormers' names, as a `TensorSource`.

    The prefix `transformer.` is optional, and all names may have another prefix before it. Mask buffers are skipped.
    A `lm_head.weight` that equals `wte.weight` bit for bit is the tied head, and skipped; any other is an untied head.
    If `wte.weight` is missing, `lm_head.weight` is used as the embedding.

    Attributes:
        path, entries: as in `TensorSource`; the names are in the model's order.
        skipped: stored name -> the rule it was skipped by.
        notes: sentences for the user about what was unexpected.
        sizes: shape letter of `gpt2_names` -> int.

    Raises:
        UserError: names or shapes do not fit; all are listed.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        self.notes: list[str] = list(getattr(source, "notes", ()))
        self._stored, self.skipped = self._plain_names(source.entries)
        self._leave_out_tied_head()
        held = {name: source.entries[stored] for name, stored in self._stored.items()}
        rows = table(count_layers(held, HF_LAYER), SCORE.hf_name in held, untied=HF_HEAD in held)
        self.sizes = check_entries(held, {row.hf_name: row.hf_shape for row in rows}, self.path, HF_LAYER)
        self._place = {name: (row, part) for row in rows for part, name in enumerate(row.mf_names)}
        self.entries = {
            name: TensorInfo(concrete_shape(row.mf_shape, self.sizes), held[row.hf_name].dtype)
            for name, (row, _) in self._place.items()
        }
        self._last = ("", _NOTHING)  # the name and the values of the tensor that was read last

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row, part = self._place[name]
        if len(row.mf_names) == 1:
            return self._source.read(self._stored[row.hf_name])
        if self._last[0] != row.hf_name:  # query, key and value are one tensor, read once
            self._last = (row.hf_name, self._source.read(self._stored[row.hf_name]))
        return row.split(self._last[1], part)

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`. Of query, key and value, one is read without the others."""
        row, part = self._place[name]
        stored = self._stored[row.hf_name]
        if len(row.mf_names) == 1:
            return read_box(self._source, stored, box)
        if not box:
            return self.read(name)
        place = box_of_part(box, self.entries[name].shape, part, transposed=True)
        return np.array(read_box(self._source, stored, place).T, order="C")

    def _plain_names(self, stored_names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Name without prefix -> stored name, for the weights; and stored name -> rule, for what is skipped."""
        weights: dict[str, str] = {}
        skipped: dict[str, str] = {}
        try:
            plain, removed = _unwrapped(stored_names)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        if removed:
            self.notes.append(f"{self.path}: {removed} left out")
        for stored, name in plain.items():
            if HF_MASK_BUFFER.fullmatch(name):
                skipped[stored] = "causal-mask buffer"
            elif name in weights:
                raise UserError(f"{self.path}: holds both {weights[name]} and {stored}, which name the same weight.")
            else:
                weights[name] = stored
        return weights, skipped

    def _leave_out_tied_head(self) -> None:
        """Skip the output head if it is the token embedding, or take it for the one that is missing."""
        if HF_HEAD not in self._stored:
            return
        head = self._stored[HF_HEAD]
        if HF_EMBEDDING not in self._stored:
            self._stored = {HF_EMBEDDING if name == HF_HEAD else name: stored for name, stored in self._stored.items()}
            self.notes.append(
                f"{self.path}: {HF_EMBEDDING} is missing; {HF_HEAD} is used instead, since GPT-2 ties the two"
            )
        elif equal_bits(self._source, head, self._stored[HF_EMBEDDING]):
            del self._stored[HF_HEAD]
            self.skipped[head] = TIED_HEAD


class UntiedHead:
    """Weights whose output head equals the token embedding, and was skipped, with that head, as a `TensorSource`: for a
    config that unties the two.

    Attributes:
        path, entries, skipped, notes, sizes: those of `source`, the weights under our names.
    """

    def __init__(self, source: TensorSource):
        self.path, self._source = source.path, source
        self.entries = {**source.entries, HEAD.mf_names[0]: source.entries[MF_EMBEDDING]}
        self.skipped = {name: rule for name, rule in getattr(source, "skipped", {}).items() if rule != TIED_HEAD}
        self.notes, self.sizes = getattr(source, "notes", ()), getattr(source, "sizes", {})

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._source.read(MF_EMBEDDING if name == HEAD.mf_names[0] else name)

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`."""
        return read_box(self._source, MF_EMBEDDING if name == HEAD.mf_names[0] else name, box)


class Agreed(NamedTuple):
    """A config and weights under our names, both with an untied output head or neither; and notes for the person."""

    config: GPT2Config | None
    source: TensorSource
    notes: list[str]


def agree_on_head(config: GPT2Config | None, source: TensorSource) -> Agreed:
    """Make a config, or None, and its weights agree.

    Weights with an untied head untie the config's, with a note. A head that was skipped for being equal to the token
    embedding is kept if the config unties the two. Weights without any head are left to strict loading.
    """
    untied = config is not None and not config.tie_word_embeddings
    if HEAD.mf_names[0] in source.entries:
        note = (
            f"{source.path}: the output head differs from the token embedding, though no config says so: it is untied, "
            "and kept as a weight of its own (tie_word_embeddings: False)"
        )
        config = config and config.replaced({"tie_word_embeddings": False})
        return Agreed(config, source, [] if untied else [note])
    if untied and TIED_HEAD in getattr(source, "skipped", {}).values():
        return Agreed(config, UntiedHead(source), [])
    return Agreed(config, source, [])


class HuggingFaceView:
    """MindFormers weights under the names of Hugging Face's `GPT2LMHeadModel` (or classifier), as a `TensorSource`.

    `source` must hold weights only. As in files of transformers, a tied `lm_head.weight` is left out.

    Attributes:
        path, entries, sizes: as in `MindFormersView`.

    Raises:
        UserError: as `MindFormersView`.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        classifies, untied = (row.mf_names[0] in source.entries for row in (SCORE, HEAD))
        rows = table(count_layers(source.entries, MF_LAYER), classifies, untied)
        shapes = {name: row.mf_shape for row in rows for name in row.mf_names}
        self.sizes = check_entries(source.entries, shapes, self.path, MF_LAYER)
        self._rows = {row.hf_name if row in UNPREFIXED else HF_PREFIX + row.hf_name: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete_shape(row.hf_shape, self.sizes), source.entries[row.mf_names[0]].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        return row.fuse([self._source.read(part) for part in row.mf_names])


def _unwrapped(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Each stored name -> the name without the common prefix, wrappers and `transformer.`; and a clause for a message
    about the prefix and the wrappers, or "".

    An output head lies outside the wrapped network, so it may have only the beginning of the prefix.
    """
    found = {name: _PREFIX.match(name) for name in names}
    prefix = _prefix_of({name: match["prefix"] for name, match in found.items() if match and not match["head"]})
    plain, wrappers = {}, set()
    for name, match in found.items():
        own = match["prefix"] if match and match["head"] and prefix.startswith(match["prefix"]) else prefix
        if not match or not name.startswith(own):  # not one of these weights: reported under its own name
            plain[name] = name
            continue
        inside = name.removeprefix(own)
        wrappers.update(_WRAPPER.findall(inside))
        plain[name] = _WRAPPER.sub("", inside).removeprefix(HF_PREFIX)
    parts = [f"all names begin with {prefix}, which is"] if prefix else []
    if wrappers:
        parts.append(f"{', '.join(sorted(wrappers))} in names {'are' if len(wrappers) > 1 else 'is'}")
    return plain, " left out; ".join(parts)


def _prefix_of(prefixes: Mapping[str, str]) -> str:
    """The most frequent prefix. `prefixes`: name -> its prefix.

    Raises:
        UserError: two prefixes have the same weights.
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


def count_layers(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    """The highest layer index in `names`, plus one; a gap below it shows up as missing names."""
    return max((int(match[1]) + 1 for name in names if (match := pattern.match(name))), default=0)


def concrete_shape(letters: SymbolicShape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The concrete shape of a symbolic one: ("H", "3H") -> (768, 2304)."""
    return tuple(3 * sizes["H"] if letter == "3H" else sizes[letter] for letter in letters)


def check_entries(
    entries: Mapping[str, TensorInfo],
    shapes: Mapping[str, SymbolicShape],
    path: Path,
    layer: re.Pattern[str],
    model: str = "a GPT-2",
) -> dict[str, int]:
    """Check that `entries` have exactly the names of `shapes`, with consistent sizes. Returns {"L": 12, "H": 768, ...}.

    `model` is what the error message calls the model.

    Raises:
        UserError: lists every missing, unknown, misshapen and non-floating-point name.
    """
    problems = [f"missing: {name}" for name in shapes if name not in entries]
    problems += [f"unknown: {name} {list(entries[name].shape)}" for name in entries if name not in shapes]
    held = {name: info for name, info in entries.items() if name in shapes}
    sizes = _sizes({name: info.shape for name, info in held.items()}, shapes)
    for name, info in held.items():
        expected = concrete_shape(shapes[name], sizes)
        if info.shape != expected:
            problems.append(
                f"wrong shape: {name} is {list(info.shape)}, expected {list(expected)} from the other weights"
            )
        if info.dtype not in FLOAT_DTYPES:
            problems.append(f"wrong dtype: {name} is {info.dtype}; weights are {', '.join(FLOAT_DTYPES)}")
    if problems:
        fused = {name: info.shape for name, info in held.items() if name.endswith(_FUSED_MATRIX)}
        transposed = [name for name, shape in fused.items() if shape == concrete_shape(shapes[name], sizes)[::-1]]
        raise UserError(
            f"{path}: not the weights of {model}:\n  "
            + "\n  ".join(problems)
            + (_transposed_hint(transposed[0]) if transposed and len(transposed) == len(fused) else "")
            + hint(set(entries) - set(shapes))
        )
    return {"L": count_layers(entries, layer)} | sizes


def _sizes(held: Mapping[str, tuple[int, ...]], shapes: Mapping[str, SymbolicShape]) -> dict[str, int]:
    """The size of each letter by majority, so that one bad tensor is reported and not all the good ones."""
    votes: dict[str, Counter[int]] = {}
    for name, letters in shapes.items():
        known = held.get(name, ())
        sizes = known if len(known) == len(letters) else (0,) * len(letters)
        for letter, size in zip(letters, sizes, strict=True):
            # A missing tensor, or one of another rank, has no vote, but its letters get an entry.
            votes.setdefault(letter, Counter({0: 0})).update({size: 1 if size else 0})
    return {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}


def _transposed_hint(name: str) -> str:
    return (
        f"\nThe matrices, {name} for one, are [out, in], as torch.nn.Linear stores them; GPT-2's are [in, out] "
        "(transformers' Conv1D). Transpose the four of each layer, or save the model with transformers."
    )
