"""Writes labelled texts as MindRecord rows for classification: tokens without padding, and the label's index.

A row is as long as its text; `data/buckets.py` pads rows when it reads them. It has the special tokens that the
tokenizer puts around a text (`[CLS] text [SEP]`, with a second text `[CLS] text [SEP] text [SEP]`). Without such tokens
a second text follows the first after a space.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import vocabulary_metadata
from mindgpt.data.document_tokens import batches
from mindgpt.data.json_values import BadRecordHandler
from mindgpt.data.labelled_text import (
    FileLayout,
    LabelledText,
    label_names_in,
    label_number,
    named,
    no_label,
    no_rows,
    read_examples,
)
from mindgpt.data.mindrecord import MindRecordWriter
from mindgpt.data.records import BadRecords, refuse_with_hint
from mindgpt.data.text import likely_size
from mindgpt.io.files import PathLike, read_lines
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

COLUMNS = ("input_ids", "attention_mask", "labels")
RECIPE = "classification"


@dataclass
class RowsSummary:
    """Counts of what was read and written."""

    label_names: tuple[str, ...]
    max_length: int
    rows: Counter[int] = field(default_factory=Counter)  # label -> rows
    tokens: int = 0
    longest: int = 0
    truncated: int = 0
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
        """Sentences about rows that were truncated or left out, and labels without rows."""
        if self.truncated:
            yield (
                f"{self.truncated} rows had more than {self.max_length} tokens and were truncated; the longest had "
                f"{self.longest}. "
                "--max_length keeps more"
            )
        if self.empty:
            yield f"{self.empty} rows had an empty text and were left out"
        missing = [name for number, name in enumerate(self.label_names) if not self.rows[number]]
        if missing:
            yield f"no row has the label {', '.join(map(repr, missing))}"


def write_classification(
    files: PathLike | Sequence[PathLike],
    layout: FileLayout,
    tokenizer: BaseTokenizer,
    output_file: PathLike,
    *,
    max_length: int,
    skip_empty: bool = False,
    bad: BadRecords | None = None,
    num_splits: int = 1,
    overwrite: bool = False,
    show_progress: bool = True,
) -> RowsSummary:
    """Tokenise the texts of files and write them with the indices of their labels.

    Args:
        files: one or several, all of one layout; see `labelled_text.read_examples`.
        layout: which columns hold texts and labels.
        tokenizer: encodes the texts.
        output_file: see `MindRecordWriter`.
        max_length: maximum tokens of a row; longer texts are truncated, and counted.
        skip_empty: skip and count rows with an empty text, instead of raising an error.
        bad: counts bad rows, which are skipped; None: they are errors.
        num_splits: number of MindRecord files to distribute the rows over, in turn.
        overwrite: replace existing files.
        show_progress: show a progress bar, if standard error is a terminal.

    Raises:
        UserError: a row is bad (with file and line) or its label unknown, there are no rows, the vocabulary knows
            nothing of the texts, or a file cannot be written.
    """
    started = time.monotonic()
    if max_length < 1:
        raise UserError(f"max_length must be at least 1; it is {max_length}.")
    files = [files] if isinstance(files, str | os.PathLike) else list(files)
    on_bad = bad or refuse_with_hint
    # Labels are found in a separate pass, whose bad rows are not counted.
    names = layout.label_names or label_names_in(files, layout, skip_empty, BadRecords() if bad else on_bad)
    summary, unknown = RowsSummary(names, max_length), UnknownTokens(tokenizer)
    metadata = {
        "recipe": RECIPE,
        "max_length": max_length,
        "label_names": list(names),
        **vocabulary_metadata(tokenizer),
    }
    examples = chain.from_iterable(read_examples(file, layout, on_bad) for file in files)
    examples = _counted(examples, likely_size(files), show_progress)
    with MindRecordWriter(
        output_file, COLUMNS, num_splits=num_splits, overwrite=overwrite, metadata=metadata
    ) as writer:
        numbered = _numbered(examples, layout, skip_empty, summary, on_bad)
        for batch in batches(numbered, lambda row: len(row[0].text)):
            writer.write(_rows(batch, tokenizer, summary, unknown))
        if not summary.rows and bad and bad.count:
            raise UserError(f"{named(files)}: no row is left to write: {bad}")
        if not summary.rows:
            raise no_rows(files, summary.empty)
        unknown.check()
    summary.files = [str(path) for path in writer.files]
    summary.seconds = time.monotonic() - started
    return summary


def read_label_names(file: PathLike) -> list[str]:
    """The lines of a file as label names, in order.

    Raises:
        UserError: there is none, or a line is empty.
    """
    names = [line.strip() for line in read_lines(file)]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise UserError(f"{file}: should hold the name of a label in every line.")
    return names


def _counted(examples: Iterable[LabelledText], total_bytes: int, show_progress: bool) -> Iterator[LabelledText]:
    disable = None if show_progress else True
    with tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=disable) as progress:
        for example in examples:
            progress.update(len(example.text.encode()) + len(example.label) + 2)
            yield example


def _numbered(
    examples: Iterable[LabelledText],
    layout: FileLayout,
    skip_empty: bool,
    summary: RowsSummary,
    on_bad: BadRecordHandler,
) -> Iterator[tuple[LabelledText, int]]:
    """The valid rows, with the indices of their labels."""
    for example in examples:
        try:
            if not example.text and skip_empty:
                summary.empty += 1
                continue
            if not example.text:
                raise UserError(
                    f"{example.file}:{example.line}: the text is empty. Correct the file, or add --skip_empty."
                )
            if not example.label and layout.label_names is None:
                raise no_label(example)
            number = label_number(example, layout, summary.label_names)
        except UserError as error:
            on_bad(error)
            continue
        yield example, number


def _rows(
    numbered: Sequence[tuple[LabelledText, int]],
    tokenizer: BaseTokenizer,
    summary: RowsSummary,
    unknown: UnknownTokens,
) -> dict[str, list[np.ndarray]]:
    """int32 arrays of one dimension: the ids of a text, as many ones, and its label."""
    batch, numbers = [example for example, _ in numbered], [number for _, number in numbered]
    rows = _encoded(batch, tokenizer)
    unknown.add((f"{example.text} {example.pair}".strip() for example in batch), rows)
    around = tokenizer.num_special_tokens_to_add()
    for example, row in zip(batch, rows, strict=True):
        if len(row) <= around:
            raise UserError(f"{example.file}:{example.line}: the tokenizer makes no token of this text.")
    summary.longest = max(summary.longest, *map(len, rows))
    too_long = [place for place, row in enumerate(rows) if len(row) > summary.max_length]
    summary.truncated += len(too_long)
    for place in too_long:  # again, so that an end-of-text token that the tokenizer adds stays at the end
        rows[place] = _encoded([batch[place]], tokenizer, summary.max_length)[0]
    ids = [np.asarray(row, np.int32) for row in rows]
    summary.rows.update(numbers)
    summary.tokens += sum(map(len, ids))
    return {
        "input_ids": ids,
        "attention_mask": [np.ones_like(row) for row in ids],
        "labels": [np.array([number], np.int32) for number in numbers],
    }


def _encoded(
    examples: Sequence[LabelledText], tokenizer: BaseTokenizer, max_length: int | None = None
) -> list[list[int]]:
    """The ids of each text, or pair of texts, truncated to `max_length` if given."""
    if not tokenizer.document_start:  # nothing would tell the two texts apart
        texts = [f"{example.text} {example.pair}".strip() for example in examples]
        return tokenizer.encode_batch(texts, max_length, add_special_tokens=True)
    rows = tokenizer.encode_batch([example.text for example in examples], max_length, add_special_tokens=True)
    for place, example in enumerate(examples):
        if example.pair:
            limits = {} if max_length is None else {"truncation": True, "max_length": max_length}
            rows[place] = tokenizer.encode(example.text, example.pair, **limits)
    return rows
