"""Views that rename GPT-2's weights between UER-py's names and ours, and check their names and shapes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindgpt.checkpoints.gpt2_names import MF_LAYER, TIED_HEAD
from mindgpt.checkpoints.gpt2_views import check_entries, concrete_shape, count_layers
from mindgpt.checkpoints.tensor_source import Box, TensorInfo, TensorSource, equal_bits, read_box
from mindgpt.checkpoints.uer_names import (
    HEAD,
    LORA_FACTOR,
    TOKENS,
    UER_LAYER,
    todays_names,
    uer_table,
    without_prefix,
)
from mindgpt.config.errors import UserError


class UERView:
    """The weights of UER-py or TencentPretrain under our names, as a `TensorSource`.

    All generations of their names are read. A head that equals the token embedding bit for bit is tied, and skipped; so
    is one that is missing. One that differs is `head.weight`, an untied head.

    Attributes:
        path, entries: as in `TensorSource`.
        skipped: stored name -> the rule it was skipped by.
        notes: sentences for the user about what was unexpected.
        sizes: shape letter of `uer_names` -> int.
        untied: whether the head is untied.

    Raises:
        UserError: names or shapes do not fit; all are listed.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        self.notes: list[str] = list(getattr(source, "notes", ()))
        self.skipped: dict[str, str] = {}
        self._stored = _by_todays_name(source.entries, source.path)
        self.untied = self._has_untied_head()
        held = {name: source.entries[stored] for name, stored in self._stored.items()}
        rows = uer_table(count_layers(held, UER_LAYER), self.untied)
        self.sizes = check_entries(held, {row.name: row.shape for row in rows}, self.path, UER_LAYER)
        self._rows = {row.ours: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete_shape(row.our_shape, self.sizes), held[row.name].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        array = self._source.read(self._stored[row.name])
        return np.ascontiguousarray(array.T) if row.transposed else array

    def read_box(self, name: str, box: Box | None) -> np.ndarray:
        """See `tensor_source.read_box`."""
        row = self._rows[name]
        array = read_box(self._source, self._stored[row.name], box and box[:: -1 if row.transposed else 1])
        return np.ascontiguousarray(array.T) if row.transposed else array

    def _has_untied_head(self) -> bool:
        """Whether the head has weights of its own; a tied one is skipped."""
        head, tokens = self._stored.get(HEAD.name), self._stored.get(TOKENS.name)
        if head is None or tokens is None:  # a missing table is reported with all other names
            return False
        if equal_bits(self._source, head, tokens):
            del self._stored[HEAD.name]
            self.skipped[head] = TIED_HEAD
            return False
        self.notes.append(
            f"{self.path}: {head} differs from {tokens}: it was trained without tie_weights. The output head is kept "
            "as a weight of its own (tie_word_embeddings: False)"
        )
        return True


class ToUERView:
    """Our weights under today's names of UER-py and TencentPretrain, as a `TensorSource`.

    The order is that of UER-py's state dict.

    Args:
        source: weights only, without a classification head.

    Attributes:
        path, entries, sizes: as in `UERView`.
        tied: the name of a head that is the token embedding -> the name of that; UER-py stores it under both.

    Raises:
        UserError: as `UERView`.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        rows = uer_table(count_layers(source.entries, MF_LAYER), HEAD.ours in source.entries)
        shapes = {row.ours: row.our_shape for row in rows}
        self.sizes = check_entries(source.entries, shapes, self.path, MF_LAYER)
        self.tied = {} if HEAD.ours in source.entries else {HEAD.name: TOKENS.name}
        self._rows = {row.name: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete_shape(row.shape, self.sizes), source.entries[row.ours].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        array = self._source.read(row.ours)
        return np.ascontiguousarray(array.T) if row.transposed else array


def _by_todays_name(stored_names: Iterable[str], path: Path) -> dict[str, str]:
    """Today's name of each tensor -> its stored name.

    Raises:
        UserError: a tensor is there under two names, or the file is a LoRA.
    """
    plain = without_prefix(stored_names)
    if factor := next((name for name, inside in plain.items() if LORA_FACTOR.fullmatch(inside)), None):
        raise UserError(
            f"{path}: holds factors of a LoRA of TencentPretrain ({factor}), not a model. Name the model it was "
            "trained on as the weights, and this file with --adapter."
        )
    names = todays_names()
    found: dict[str, str] = {}
    for stored, inside in plain.items():
        name = names.get(inside, inside)
        if name in found:
            raise UserError(f"{path}: holds both {found[name]} and {stored}, which name the same weight.")
        found[name] = stored
    return found
