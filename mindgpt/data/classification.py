"""Labelled texts to MindRecord rows for classification: tokens without padding, and the label's number.

A row is as long as its text. Padding, to the longest of a few lengths, is for the one who reads (`data/buckets.py`).
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import BATCH_CHARACTERS, BATCH_PIECES, Tokenizer
from mindgpt.data.files import PathLike, read_lines
from mindgpt.data.labelled_text import Example, Layout, label_names_in, label_number, no_rows, read_examples
from mindgpt.data.mindrecord import MindRecordWriter

COLUMNS = ("input_ids", "attention_mask", "labels")
RECIPE = "classification"


@dataclass
class Summary:
    """What was read and written."""

    label_names: tuple[str, ...]
    max_length: int
    rows: Counter[int] = field(default_factory=Counter)  # label -> rows
    tokens: int = 0
    longest: int = 0
    cut: int = 0
    empty: int = 0
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.rows.values())
        counts = ", ".join(f"{name} {self.rows[number]}" for number, name in enumerate(self.label_names))
        return (
            f"{total} rows ({counts}), {self.tokens} tokens, {self.tokens / max(total, 1):.1f} a row, "
            f"{self.seconds:.1f} s -> {', '.join(self.files)}"
        )

    def warnings(self) -> Iterator[str]:
        """What the person should know of rows that were not kept as they are."""
        if self.cut:
            yield (
                f"{self.cut} rows had more than {self.max_length} tokens and were cut; the longest had {self.longest}. "
                "--max_length keeps more"
            )
        if self.empty:
            yield f"{self.empty} rows had an empty text and were left out"
        missing = [name for number, name in enumerate(self.label_names) if not self.rows[number]]
        if missing:
            yield f"no row has the label {', '.join(map(repr, missing))}"


def write_classification(
    file: PathLike,
    layout: Layout,
    tokenizer: Tokenizer,
    output_file: PathLike,
    *,
    max_length: int,
    skip_empty: bool = False,
    num_splits: int = 1,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Summary:
    """Tokenise the texts of `file` and write them with their labels' numbers.

    Args:
        file: see `labelled_text.read_examples`.
        layout: how it holds texts and labels.
        max_length: tokens of a row at most; longer texts lose their end, and are counted.
        skip_empty: leave out rows with an empty text, and count them, instead of refusing the file.
        num_splits: how many MindRecord files to spread the rows over, in turn.
        overwrite: replace what is there.
        show_progress: show a bar, if standard error is a terminal.

    Raises:
        UserError: anything wrong with a row (with file and line), no rows, a label unknown, or nothing can be written.
    """
    started = time.monotonic()
    if max_length < 1:
        raise UserError(f"max_length must be at least 1; it is {max_length}.")
    names = layout.label_names or label_names_in(file, layout, skip_empty)
    summary = Summary(names, max_length)
    metadata = {
        "recipe": RECIPE,
        "max_length": max_length,
        "label_names": list(names),
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_sha256": tokenizer.vocab_hash(),
    }
    examples = _counted(read_examples(file, layout), os.path.getsize(file), show_progress)
    with MindRecordWriter(
        output_file, COLUMNS, num_splits=num_splits, overwrite=overwrite, metadata=metadata
    ) as writer:
        for batch in _batches(_with_text(examples, file, skip_empty, summary)):
            writer.write(_rows(batch, layout, tokenizer, file, summary))
        if not summary.rows:
            raise no_rows(file, summary.empty)
    summary.files = [str(path) for path in writer.files]
    summary.seconds = time.monotonic() - started
    return summary


def read_label_names(file: PathLike) -> list[str]:
    """A file's lines as names of labels, in that order.

    Raises:
        UserError: there is none, or a line is empty.
    """
    names = [line.strip() for line in read_lines(file)]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise UserError(f"{file}: should hold the name of a label in every line.")
    return names


def _counted(examples: Iterable[Example], total_bytes: int, show_progress: bool) -> Iterator[Example]:
    disable = None if show_progress else True
    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=disable) as progress:
        for example in examples:
            progress.update(len(example.text.encode()) + len(example.label) + 2)
            yield example


def _with_text(examples: Iterable[Example], file: PathLike, skip_empty: bool, summary: Summary) -> Iterator[Example]:
    for example in examples:
        if example.text.strip():
            yield example
        elif skip_empty:
            summary.empty += 1
        else:
            raise UserError(f"{file}:{example.line}: the text is empty. Correct the file, or add --skip_empty.")


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Enough text at a time to keep every core busy."""
    batch, characters = [], 0
    for example in examples:
        batch.append(example)
        characters += len(example.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _rows(
    batch: Sequence[Example], layout: Layout, tokenizer: Tokenizer, file: PathLike, summary: Summary
) -> dict[str, list[np.ndarray]]:
    """int32 arrays of one dimension: the ids of a text, as many ones, and its label."""
    numbers = [label_number(example, layout, summary.label_names, file) for example in batch]
    rows = tokenizer.encode_batch([example.text for example in batch], add_special_tokens=True)
    for example, row in zip(batch, rows, strict=True):
        if not row:
            raise UserError(f"{file}:{example.line}: the tokenizer makes no token of this text.")
    summary.longest = max(summary.longest, *map(len, rows))
    too_long = [place for place, row in enumerate(rows) if len(row) > summary.max_length]
    summary.cut += len(too_long)
    for place in too_long:  # anew, since an end-of-text token that the tokenizer adds stays at the end
        rows[place] = tokenizer.encode_batch([batch[place].text], summary.max_length, add_special_tokens=True)[0]
    ids = [np.asarray(row, np.int32) for row in rows]
    summary.rows.update(numbers)
    summary.tokens += sum(map(len, ids))
    return {
        "input_ids": ids,
        "attention_mask": [np.ones_like(row) for row in ids],
        "labels": [np.array([number], np.int32) for number in numbers],
    }
