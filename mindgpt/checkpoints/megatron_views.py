"""Views that rename GPT-3's weights between Megatron's names and ours, and check their names and shapes."""

from pathlib import Path

import numpy as np

from mindgpt.checkpoints.gpt2_names import HEAD as OUR_HEAD
from mindgpt.checkpoints.gpt2_names import MF_LAYER, TIED_HEAD
from mindgpt.checkpoints.gpt2_views import check_entries, concrete_shape, count_layers
from mindgpt.checkpoints.megatron_names import (
    HEAD,
    HEAD_NAMES,
    MEGATRON_LAYER,
    PER_HEAD,
    PER_VALUE,
    THREE_BLOCKS,
    layout_of,
    megatron_table,
    without_prefix,
)
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, equal_bits
from mindgpt.config.errors import UserError
from mindgpt.config.section import shown

MODEL = "a GPT-3 of ModelScope"


_NOTHING = np.empty(0)


class MegatronView:
    """The weights of ModelScope's GPT-3 under our names, as a `TensorSource`.

    An output head that equals the token embedding bit for bit is tied, and skipped; one that differs is `head.weight`.

    Query, key and value of a "parallel" model cannot be told apart without the number of heads, which weights do not
    say: `set_heads` must be called before they are read. (`config_of_gpt3` does it.)

    Attributes:
        path, entries: as in `TensorSource`.
        layout: a key of `megatron_names.LAYOUTS`.
        skipped: stored name -> the rule it was skipped by.
        notes: sentences for the user about what was unexpected.
        sizes: shape letter of `megatron_names` -> int.
        untied: whether the head is untied.
        ranks: the number of tensor-parallel ranks that the weights were merged from.

    Raises:
        UserError: names or shapes do not fit; all are listed. Or the `checkpoint_version` is unknown.
    """

    def __init__(self, source: TensorSource):
        self.path = source.path
        self._source = source
        self.notes: list[str] = list(getattr(source, "notes", ()))
        self.skipped: dict[str, str] = {}
        self.ranks: int = getattr(source, "tensor_parallel_size", None) or 1
        self._stored = self._plain_names()
        self.layout = layout_of(self._stored)
        self.untied = self._has_untied_head()
        held = {name: source.entries[stored] for name, stored in self._stored.items()}
        rows = megatron_table(self.layout, count_layers(held, MEGATRON_LAYER), self.untied)
        self.sizes = check_entries(held, {row.name: row.shape for row in rows}, self.path, MEGATRON_LAYER, MODEL)
        version = getattr(source, "checkpoint_version", None)
        self._order = THREE_BLOCKS if self.layout == "base" else order_of(version, self.path)
        self._heads: int | None = 1 if self._order == THREE_BLOCKS else None
        self._place = {ours: (row, part) for row in rows for part, ours in enumerate(row.ours)}
        self.entries = {
            ours: TensorInfo(concrete_shape(row.our_shape, self.sizes), held[row.name].dtype)
            for ours, (row, _) in self._place.items()
        }
        self._last = ("", _NOTHING)  # the name and the values of the tensor that was read last

    def set_heads(self, heads: int) -> None:
        """Say the number of attention heads, which must divide the hidden size."""
        self._heads = heads

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row, part = self._place[name]
        if len(row.ours) == 1:
            self._last = ("", _NOTHING)
            return row.split(self._source.read(self._stored[row.name]), 0, self._order, 1)
        assert self._heads, "set_heads comes first"
        if self._last[0] != row.name:  # query, key and value are one tensor, read once
            self._last = ("", _NOTHING)
            self._last = (row.name, self._source.read(self._stored[row.name]))
        return row.split(self._last[1], part, self._order, self._heads)

    def _plain_names(self) -> dict[str, str]:
        """Name without prefix -> stored name.

        Raises:
            UserError: a weight is there twice.
        """
        found: dict[str, str] = {}
        for stored in self._source.entries:
            name = without_prefix(stored)
            name = HEAD if name in HEAD_NAMES else name
            if name in found:
                raise UserError(f"{self.path}: holds both {found[name]} and {stored}, which name the same weight.")
            found[name] = stored
        return found

    def _has_untied_head(self) -> bool:
        """Whether the head has weights of its own; a tied one is skipped."""
        head = self._stored.get(HEAD)
        tokens = self._stored.get(megatron_table(self.layout, 0, untied=False)[0].name)
        if head is None or tokens is None:  # a missing table is reported with all other names
            return False
        if equal_bits(self._source, head, tokens):
            del self._stored[HEAD]
            self.skipped[head] = TIED_HEAD
            return False
        self.notes.append(
            f"{self.path}: {head} differs from {tokens}. The output head is kept as a weight of its own "
            "(tie_word_embeddings: False)"
        )
        return True


class ToMegatronView:
    """Our weights under ModelScope's names of a GPT-3, as a `TensorSource`, in the order of its state dict.

    Args:
        source: weights only, without a classification head.
        layout: a key of `megatron_names.LAYOUTS`.
        heads: the number of attention heads.

    Attributes:
        path, entries, sizes: as in `MegatronView`.

    Raises:
        UserError: as `MegatronView`. Also if the output head is untied, which no model of ModelScope has.
    """

    def __init__(self, source: TensorSource, layout: str, heads: int):
        self.path = source.path
        self._source, self._heads = source, heads
        self._order = THREE_BLOCKS if layout == "base" else PER_HEAD
        if OUR_HEAD.mf_names[0] in source.entries:
            raise UserError(
                f"{self.path}: has an output head of its own (tie_word_embeddings: False). ModelScope's GPT-3 uses the "
                "token embedding as its head, so it cannot compute this model."
            )
        rows = megatron_table(layout, count_layers(source.entries, MF_LAYER), untied=False)
        shapes = {ours: row.our_shape for row in rows for ours in row.ours}
        self.sizes = check_entries(source.entries, shapes, self.path, MF_LAYER)
        self._rows = {row.name: row for row in rows}
        self.entries = {
            name: TensorInfo(concrete_shape(row.shape, self.sizes), source.entries[row.ours[0]].dtype)
            for name, row in self._rows.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        row = self._rows[name]
        return row.fuse([self._source.read(ours) for ours in row.ours], self._order, self._heads)


def order_of(version: object, path: Path) -> int:
    """The order of the rows of query_key_value in a parallel checkpoint, by its `checkpoint_version` or None.

    Raises:
        UserError: there is no such version.
    """
    known = isinstance(version, int | float) and (version in (0, 1) or version >= 2)
    if version is not None and not known:
        raise UserError(
            f"{path}: checkpoint_version is {shown(version)}. Known are 0, 1.0 and 2 or more, which say in what order "
            "the rows of query_key_value are; ModelScope's own files have none. Correct it, or copy the file again."
        )
    if version == 0:
        return THREE_BLOCKS
    return PER_VALUE if version == 1 else PER_HEAD
