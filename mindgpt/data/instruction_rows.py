"""Writes instruction data as MindRecord rows of equal length with labels.

A row's `labels` are its ids at response tokens, and `IGNORED_LABEL` at prompts and padding. The end-of-text token after
a response has a label, so that the model learns when to stop.

Rows may be packed with as many whole examples as fit. Packed examples are not masked from each other: a token attends
to the examples before it in its row, and positions continue, as in pretraining blocks. The loss is over the same
tokens, with a longer context than the example's own prompt.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import (
    BATCH_BLOCKS,
    COLUMNS,
    IGNORED_LABEL,
    batches,
    check_max_length,
    metadata_of,
)
from mindgpt.data.instructions import Instruction
from mindgpt.data.mindrecord import MindRecordWriter
from mindgpt.io.files import PathLike
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

_OPEN_ROWS = 64  # rows that a packed example may go into; more would hardly reduce padding


class Tokens(NamedTuple):
    """The ids of one example or several, and a label for each."""

    ids: list[int]
    labels: list[int]


@dataclass
class ExamplesSummary:
    """Counts of what was read and written; `learned` counts the tokens in the loss."""

    examples: int = 0
    continued: int = 0
    tokens: int = 0
    learned: int = 0
    rows: int = 0
    row_length: int = 0
    truncated: int = 0
    dropped: int = 0
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)

    @property
    def padding(self) -> float:
        """The share of positions that are padding."""
        return 1 - self.tokens / (self.rows * self.row_length)

    def __str__(self) -> str:
        plain = f" ({self.continued} without a prompt)" if self.continued else ""
        return (
            f"{self.examples} example(s){plain}, {self.tokens} tokens of which {self.learned} are learned, "
            f"{self.rows} rows of {self.row_length}, {self.padding:.0%} padding, {self.seconds:.1f} s -> "
            f"{', '.join(self.files)}"
        )


def write_examples(
    examples: Iterable[Instruction],
    tokenizer: BaseTokenizer,
    output_file: PathLike,
    *,
    max_length: int,
    pack: bool = False,
    too_long: Literal["truncate", "drop"] = "truncate",
    num_splits: int = 1,
    overwrite: bool = False,
    show_progress: bool = True,
) -> ExamplesSummary:
    """Tokenise examples and write them as MindRecord rows of `COLUMNS`, each int32 of shape (max_length,).

    Args:
        examples: prompts and responses.
        tokenizer: encodes them.
        output_file: see `MindRecordWriter`.
        max_length: tokens of a row; T + 1 to train on sequences of length T.
        pack: put several examples in a row (see the module docstring); otherwise one.
        too_long: for an example of more than `max_length` tokens, end-of-text included. "truncate": the response is
            truncated, without end-of-text. "drop": the example is dropped. An example whose prompt fills the row is
            always dropped.
        num_splits, overwrite, show_progress: as in `mindgpt.data.blocks.write_blocks`.

    Raises:
        UserError: no example is left, the vocabulary knows nothing of the texts, a value is not allowed, or files
            cannot be read or written.
    """
    started = time.monotonic()
    check_max_length(max_length)
    summary = ExamplesSummary(row_length=max_length)
    recipe = "instructions, packed" if pack else "instructions"
    metadata = metadata_of(tokenizer, recipe, max_length)
    unknown = UnknownTokens(tokenizer)
    with (
        tqdm(examples, unit=" examples", desc="tokenising", disable=None if show_progress else True) as progress,
        MindRecordWriter(output_file, COLUMNS, num_splits=num_splits, overwrite=overwrite, metadata=metadata) as writer,
    ):
        rows = _tokenised(progress, tokenizer, max_length, too_long, summary, unknown)
        held: list[Tokens] = []
        for row in _packed(rows, max_length) if pack else rows:
            held.append(row)
            if len(held) == BATCH_BLOCKS:
                writer.write(_arrays(held, tokenizer.eos_token_id, summary))
                held = []
        if held:
            writer.write(_arrays(held, tokenizer.eos_token_id, summary))
        _check_anything_written(summary, num_splits)
        unknown.check()
    summary.files = [str(file) for file in writer.files]
    summary.seconds = time.monotonic() - started
    return summary


def _check_anything_written(summary: ExamplesSummary, num_splits: int) -> None:
    if summary.rows == 0 and summary.dropped:
        raise UserError(
            f"There is nothing to write: all {summary.dropped} examples are longer than --max_length "
            f"{summary.row_length} tokens. Raise it."
        )
    if summary.rows == 0:
        raise UserError("There is nothing to write: the input holds no example.")
    if summary.rows < num_splits:
        raise UserError(f"{summary.rows} rows are too few for {num_splits} file(s). Lower num_splits.")


def _tokenised(
    examples: Iterable[Instruction],
    tokenizer: BaseTokenizer,
    max_length: int,
    too_long: str,
    summary: ExamplesSummary,
    unknown: UnknownTokens,
) -> Iterator[Tokens]:
    """The tokens of each example that fits, or was truncated to fit.

    Prompt and response are tokenised separately, as the prompt is at inference.
    """
    for batch in batches(examples, lambda example: len(example.prompt) + len(example.response)):
        texts = [example.prompt for example in batch] + [example.response for example in batch]
        ids = tokenizer.encode_batch(texts, add_special_tokens=False)
        unknown.add(texts, ids)
        for prompt, response in zip(ids[: len(batch)], ids[len(batch) :], strict=True):
            plain, prompt = not prompt, tokenizer.document_start + prompt
            whole = len(prompt) + len(response) + 1 <= max_length
            if not whole and (too_long == "drop" or len(prompt) >= max_length):
                summary.dropped += 1
                continue
            summary.examples += 1
            summary.continued += plain
            summary.truncated += not whole
            response = [*response, tokenizer.eos_token_id] if whole else response[: max_length - len(prompt)]
            yield Tokens(prompt + response, [IGNORED_LABEL] * len(prompt) + response)


def _packed(examples: Iterable[Tokens], max_length: int) -> Iterator[Tokens]:
    """Rows of whole examples; each goes into the first open row that has room (first fit)."""
    open_rows: list[Tokens] = []
    for example in examples:
        room = max_length - len(example.ids)
        row = next((row for row in open_rows if len(row.ids) <= room), None)
        if row is None:
            if len(open_rows) == _OPEN_ROWS:
                fullest = max(range(_OPEN_ROWS), key=lambda number: len(open_rows[number].ids))
                yield open_rows.pop(fullest)
            row = Tokens([], [])
            open_rows.append(row)
        row.ids.extend(example.ids)
        row.labels.extend(example.labels)
    yield from open_rows


def _arrays(rows: list[Tokens], pad_id: int, summary: ExamplesSummary) -> dict[str, np.ndarray]:
    """The columns of rows, int32 of shape (rows, max_length); padding is masked and has no label."""
    shape = (len(rows), summary.row_length)
    ids, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED_LABEL, np.int32)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length], mask[number, :length], labels[number, :length] = row.ids, 1, row.labels
    summary.rows += len(rows)
    summary.tokens += int(mask.sum())
    summary.learned += int((labels[:, 1:] != IGNORED_LABEL).sum())
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
