"""Writes instruction data as MindRecord rows of equal length with labels.

A row's `labels` are its ids at response tokens, and `IGNORED_LABEL` at prompts and padding. The end-of-text token after
a response has a label, so that the model learns when to stop. With a WordPiece tokenizer an example is
`[CLS] prompt response [SEP]`: `[CLS]` belongs to the prompt, and `[SEP]` ends the response.

Rows may be packed with as many whole examples as fit. Packed examples are not masked from each other: a token attends
to the examples before it in its row, and positions continue, as in pretraining blocks. The loss is over the same
tokens, with a longer context than the example's own prompt.

The layout "modelscope" is another: see `mindgpt.data.modelscope_rows`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.blocks import COLUMNS, IGNORED_LABEL, check_max_length, metadata_of
from mindgpt.data.document_tokens import DocumentFormat, batches, document_format
from mindgpt.data.instructions import Instruction
from mindgpt.data.mindrecord import MindRecordWriter
from mindgpt.data.modelscope_rows import PADDING, RECIPE, ModelScopeLayout, Tokens, modelscope_layout
from mindgpt.data.packing import BATCH_BLOCKS
from mindgpt.io.files import PathLike
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

_OPEN_ROWS = 64  # rows that a packed example may go into; more would hardly reduce padding


Layout = Literal["instruction", "modelscope"]
LAYOUTS: tuple[Layout, ...] = ("instruction", "modelscope")


@dataclass
class ExamplesSummary:
    """Counts of what was read and written; `learned` counts tokens in the loss, `unlearned` rows without any."""

    examples: int = 0
    continued: int = 0
    tokens: int = 0
    learned: int = 0
    rows: int = 0
    row_length: int = 0
    truncated: int = 0
    dropped: int = 0
    unlearned: int = 0
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
    layout: Layout = "instruction",
    learn_padding: bool = False,
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
            always dropped from the layout "instruction", and stays in "modelscope", where nothing of it is learned.
        layout: "instruction" (see the module docstring), or "modelscope" (see `mindgpt.data.modelscope_rows`), where
            `max_length` is what ModelScope calls `sequence_length`.
        learn_padding: of the layout "modelscope", for texts without a response: the padding counts in the loss, as
            ModelScope's base and large models have learned it.
        num_splits, overwrite, show_progress: as in `mindgpt.data.blocks.write_blocks`.

    Raises:
        UserError: no example is left, the vocabulary knows nothing of the texts, a value is not allowed, or files
            cannot be read or written.
    """
    started = time.monotonic()
    check_max_length(max_length)
    _check_options(layout, pack, learn_padding)
    summary, unknown = ExamplesSummary(row_length=max_length), UnknownTokens(tokenizer)
    if layout == "modelscope":
        make_row = _modelscope_rows(modelscope_layout(tokenizer), max_length, too_long, learn_padding)
        padding, recipe = PADDING, RECIPE
    else:
        around = document_format(tokenizer)
        make_row, padding = _instruction_rows(around, max_length, too_long), around.padding
        recipe = "instructions, packed" if pack else "instructions"
    metadata = metadata_of(tokenizer, recipe, max_length) | ({"learn_padding": True} if learn_padding else {})
    with (
        tqdm(examples, unit=" examples", desc="tokenising", disable=None if show_progress else True) as progress,
        MindRecordWriter(output_file, COLUMNS, num_splits=num_splits, overwrite=overwrite, metadata=metadata) as writer,
    ):
        rows = _tokenised(progress, tokenizer, make_row, summary, unknown)
        held: list[Tokens] = []
        for row in _packed(rows, max_length) if pack else rows:
            held.append(row)
            if len(held) == BATCH_BLOCKS:
                writer.write(_arrays(held, padding, learn_padding, summary))
                held = []
        if held:
            writer.write(_arrays(held, padding, learn_padding, summary))
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


def _check_options(layout: str, pack: bool, learn_padding: bool) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}; it is {layout!r}.")
    if pack and layout == "modelscope":
        raise UserError("--pack has no effect with --layout modelscope, whose rows hold one example each.")
    if learn_padding and layout != "modelscope":
        raise UserError("--learn_padding is for --layout modelscope.")


MakeRow = Callable[[list[int], list[int], bool, ExamplesSummary], Tokens | None]
"""(ids of a prompt, ids of a response, whether there is a prompt, summary to count in) -> the row; None: the example is
dropped. Without a prompt the response is plain text."""


def _tokenised(
    examples: Iterable[Instruction],
    tokenizer: BaseTokenizer,
    make_row: MakeRow,
    summary: ExamplesSummary,
    unknown: UnknownTokens,
) -> Iterator[Tokens]:
    """The tokens of each example that is not dropped.

    Prompt and response are tokenised separately, as the prompt is at inference.
    """
    for batch in batches(examples, lambda example: len(example.prompt) + len(example.response)):
        texts = [example.prompt for example in batch] + [example.response for example in batch]
        ids = tokenizer.encode_batch(texts, add_special_tokens=False)
        unknown.add(texts, ids)
        for example, prompt, response in zip(batch, ids[: len(batch)], ids[len(batch) :], strict=True):
            row = make_row(prompt, response, bool(example.prompt), summary)
            if row is None:
                summary.dropped += 1
                continue
            summary.examples += 1
            summary.continued += not example.prompt
            yield row


def _instruction_rows(around: DocumentFormat, max_length: int, too_long: str) -> MakeRow:
    """Rows of the layout "instruction", truncated to fit."""

    def row(prompt: list[int], response: list[int], _: bool, summary: ExamplesSummary) -> Tokens | None:
        prompt = around.begin + prompt
        whole = len(prompt) + len(response) + len(around.end) <= max_length
        if not whole and (too_long == "drop" or len(prompt) >= max_length):
            return None
        summary.truncated += not whole
        response = response + around.end if whole else response[: max_length - len(prompt)]
        return Tokens(prompt + response, [IGNORED_LABEL] * len(prompt) + response)

    return row


def _modelscope_rows(layout: ModelScopeLayout, max_length: int, too_long: str, learn_padding: bool) -> MakeRow:
    """Rows of the layout "modelscope"."""

    def row(prompt: list[int], response: list[int], is_pair: bool, summary: ExamplesSummary) -> Tokens | None:
        if is_pair and learn_padding:
            raise UserError("--learn_padding is for texts to continue; these examples have a response (tgt_txt).")
        whole = len(layout.begin) + len(prompt) + len(response) + 1 <= max_length
        if not whole and too_long == "drop":
            return None
        summary.truncated += not whole
        tokens = layout.tokens(prompt, response, max_length) if is_pair else layout.tokens(response, None, max_length)
        summary.unlearned += all(label == IGNORED_LABEL for label in tokens.labels[1:])
        return tokens

    return row


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


def _arrays(rows: list[Tokens], pad_id: int, learn_padding: bool, summary: ExamplesSummary) -> dict[str, np.ndarray]:
    """The columns of rows, int32 of shape (rows, max_length); padding is masked and has no label, unless it counts."""
    shape = (len(rows), summary.row_length)
    ids, mask = np.full(shape, pad_id, np.int32), np.full(shape, int(learn_padding), np.int32)
    labels = np.full(shape, pad_id if learn_padding else IGNORED_LABEL, np.int32)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length], mask[number, :length], labels[number, :length] = row.ids, 1, row.labels
        summary.tokens += length
    summary.rows += len(rows)
    summary.learned += int((labels[:, 1:] != IGNORED_LABEL).sum())
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
