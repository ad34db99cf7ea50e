"""A vocabulary with rows of padding after its tokens, by which cards can share it: 50304 rows for GPT-2's 50257 tokens.

The rows of padding are zero. The head takes them out of the softmax (`LMHead`), so they are in no loss, no gradient
changes them, and no text gets their ids: the model is the one without them. They can be added to weights and removed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.gpt2_names import HEAD, MF_EMBEDDING
from mindgpt.checkpoints.strategy_format import Box
from mindgpt.checkpoints.tensor_source import BoxSource, TensorInfo, TensorSource, as_numbers
from mindgpt.config.errors import UserError
from mindgpt.tokenizers.loading import holds_tokenizer, load_tokenizer

TOKENS = MF_EMBEDDING
_TABLES = (TOKENS, HEAD.mf_names[0])
_COLUMN_MEANS = "exp_avg_sq_col_"  # of AdaFactor: a value for each column of a table
_ROW_MEANS = re.compile(r"exp_avg_sq_row_|adafactor_row\.")


class VocabularyRows:
    """A `TensorSource` whose token tables have another number of rows: the first, or all and zeros after them. What an
    optimizer keeps for each value of a table changes likewise.

    Attributes:
        path, entries: the source's, but for the shapes of these.
        sizes: the source's, if it has them, with the new "V".
        changed: the names of the tensors that have changed.

    Args:
        source: under our names.
        rows: of the tables.
        training_state: whether optimizer state will be read.

    Raises:
        UserError: it has no token table; or a state of AdaFactor would need means for new rows.
    """

    def __init__(self, source: TensorSource, rows: int, training_state: bool = True):
        self._source = cast(BoxSource, source)  # those whose rows are padded all are
        self.path = source.path
        self.skipped: Mapping[str, str] = getattr(source, "skipped", {})
        self.entries = dict(source.entries)
        self.sizes = {**getattr(source, "sizes", {}), "V": rows}
        self.changed = tables_of(source)
        if TOKENS not in source.entries:
            raise UserError(f"{self.path}: --vocab_size {rows}: it has no token embedding ({TOKENS}).")
        old = source.entries[TOKENS].shape[0]
        means = [name for name in self.changed if training_state and _ROW_MEANS.match(name)]
        if means and rows > old:
            raise UserError(
                f"{self.path}: --vocab_size {rows}: new rows would have no means in the state of AdaFactor "
                f"({means[0]}). Add rows to the weights alone: --no-training_state."
            )
        for name in self.changed:
            info = source.entries[name]
            self.entries[name] = TensorInfo((rows, *info.shape[1:]), info.dtype)

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._with_rows(name, self._source.read(name))

    def read_box(self, name: str, box: Box | None = None) -> np.ndarray:
        """As of the source. A table is read whole."""
        if name not in self.changed:
            return self._source.read_box(name, box)
        array = self._with_rows(name, self._source.read_box(name, None))
        return array[box] if box else array

    def _with_rows(self, name: str, array: np.ndarray) -> np.ndarray:
        rows = self.entries[name].shape[0]
        if name not in self.changed or len(array) == rows:
            return array
        if len(array) > rows:
            return array[:rows].copy()
        return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def tables_of(source: TensorSource) -> list[str]:
    """The names of what has a row for each token: the token embedding, an untied head, and their optimizer state."""
    return [
        name
        for name, info in source.entries.items()
        if name.endswith(_TABLES) and info.shape and not name.startswith(_COLUMN_MEANS)
    ]


def with_vocabulary(
    source: TensorSource, config: GPT2Config | None, rows: int, training_state: bool = True
) -> VocabularyRows:
    """`source` with `rows` rows in its token tables. Only padding is removed.

    Args:
        source: under our names.
        config: of the source, which tells how many of its rows are tokens; None: unknown.
        rows: the flag --vocab_size.
        training_state: whether optimizer state will be read.

    Raises:
        UserError: rows would be removed that are not padding; the tokenizer beside the source has more tokens than
            `rows`; or as `VocabularyRows`.
    """
    if rows < 1:
        raise UserError(f"--vocab_size {rows}: must be at least 1.")
    resized = VocabularyRows(source, rows, training_state)
    tokens = None if config is None else config.unpadded_vocab_size
    _check_tokenizer(source.path, rows)
    if tokens is not None and rows < tokens:
        raise UserError(
            f"{source.path}: --vocab_size {rows}: its config has {tokens} tokens (unpadded_vocab_size), which all need "
            f"their rows. Give {tokens}, or more."
        )
    if tokens is None and rows < source.entries[TOKENS].shape[0]:
        for name in resized.changed:
            if name in _TABLES and (last := _last_row_in_use(source, name)) >= rows:
                raise UserError(
                    f"{source.path}: --vocab_size {rows}: row {last} of {name} is not zero, so it may be a token's and "
                    "no padding. Only padding is removed: rows of zeros, or those after the config's "
                    f"unpadded_vocab_size. Give at least {last + 1}."
                )
    return resized


def config_with_rows(config: GPT2Config, rows: int) -> GPT2Config:
    """The config of a model whose tables have got `rows` rows: those after its tokens are padding.

    Raises:
        UserError: the config names a token that has no row any more.
    """
    tokens = min(config.token_count, rows)
    return GPT2Config(
        **config.model_dump() | {"vocab_size": rows, "unpadded_vocab_size": tokens if tokens < rows else None}
    )


def _last_row_in_use(source: TensorSource, name: str) -> int:
    in_use = as_numbers(source.read(name)).any(axis=-1)
    return int(np.flatnonzero(in_use)[-1]) if in_use.any() else -1


def _check_tokenizer(weights: Path, rows: int) -> None:
    """Raise a UserError if the tokenizer beside weights has tokens for which there would be no row."""
    folder = weights if weights.is_dir() else weights.parent
    if not holds_tokenizer(folder):
        return
    needed = load_tokenizer(folder).text_vocab_size
    if needed > rows:
        raise UserError(
            f"{weights}: --vocab_size {rows}: the tokenizer in {folder} has {needed} tokens, which all need their "
            f"rows. Give {needed}, or more."
        )
