"""Writes documents as MindRecord blocks: the tokens of all documents, packed into rows of equal length.

A row of `max_length` tokens gives `max_length - 1` predictions: token t+1 from tokens 0..t. A prediction counts if the
attention mask of its *target* is 1, so the padding after the last document is neither trained nor scored. Padding is on
the right, where causal attention hides it from all other positions.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.mindrecord import MindRecordWriter
from mindgpt.data.text import Piece
from mindgpt.tokenizers.tokenizer import BaseTokenizer

COLUMNS = ("input_ids", "attention_mask", "labels")
IGNORED_LABEL = -100  # what cross-entropy skips, by Hugging Face's and PyTorch's convention
BATCH_CHARACTERS = 1 << 20  # text tokenised at a time
BATCH_PIECES = 4096
BATCH_BLOCKS = 256  # blocks written at a time
Text = TypeVar("Text")


@dataclass
class BlocksSummary:
    """Counts of what was read and written."""

    documents: int = 0
    blank_documents: int = 0
    tokens: int = 0
    blocks: int = 0
    padded: int = 0
    dropped: int = 0
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        blank = f" ({self.blank_documents} blank ones left out)" if self.blank_documents else ""
        dropped = f", {self.dropped} tokens of the tail dropped" if self.dropped else ""
        return (
            f"{self.documents} document(s){blank}, {self.tokens} tokens, {self.blocks} blocks, {self.padded} padded "
            f"positions{dropped}, {self.seconds:.1f} s -> {', '.join(self.files)}"
        )


def write_blocks(
    pieces: Iterable[Piece],
    tokenizer: BaseTokenizer,
    output_file: str | os.PathLike[str],
    *,
    max_length: int,
    recipe: str,
    separate: bool = True,
    keep_tail: bool = True,
    columns: Iterable[str] = ("input_ids", "attention_mask"),
    num_splits: int = 1,
    overwrite: bool = False,
    total_bytes: int | None = None,
    show_progress: bool = True,
) -> BlocksSummary:
    """Tokenise documents, pack them into blocks and write these as MindRecord, in constant memory.

    Args:
        pieces: the documents; blank ones (only white space) are left out and counted.
        tokenizer: encodes them.
        output_file: see `MindRecordWriter`.
        max_length: tokens of a block; T + 1 to train on sequences of length T.
        recipe: how the text was made into documents; stored in the files' metadata.
        separate: append the end-of-text token to each document.
        keep_tail: pad the last block (end-of-text ids, mask 0) instead of dropping it.
        columns: which of `COLUMNS` to write, each int32 of shape (max_length,). `labels` are the ids, and
            `IGNORED_LABEL` at padding.
        num_splits: number of MindRecord files to distribute the blocks over, in turn.
        overwrite: replace existing files.
        total_bytes: size of the UTF-8 text, for the progress bar.
        show_progress: show a progress bar, if standard error is a terminal.

    Raises:
        UserError: there is too little text, a value is not allowed, or files cannot be read or written.
    """
    started = time.monotonic()
    check_max_length(max_length)
    columns = list(dict.fromkeys(columns))
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or not columns:
        raise UserError(f"data_columns may be {', '.join(COLUMNS)}; got {', '.join(unknown) or 'none'}.")
    metadata = metadata_of(tokenizer, recipe, max_length)
    summary = BlocksSummary()
    with (
        tqdm(
            total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=None if show_progress else True
        ) as progress,
        MindRecordWriter(output_file, columns, num_splits=num_splits, overwrite=overwrite, metadata=metadata) as writer,
    ):
        tokens = _token_stream(_counted(pieces, summary, progress), tokenizer, separate)
        for ids, mask in _blocks(tokens, max_length, tokenizer.eos_token_id, keep_tail, summary):
            labels = np.where(mask == 1, ids, IGNORED_LABEL).astype(np.int32)
            rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            writer.write({column: rows[column] for column in columns})
        _check_anything_written(summary, max_length, num_splits)
    summary.files = [str(file) for file in writer.files]
    summary.seconds = time.monotonic() - started
    return summary


def check_max_length(max_length: int) -> None:
    """Raise a UserError if rows of `max_length` tokens hold no prediction."""
    if max_length < 2:
        raise UserError(f"max_length must be at least 2 (a token and the one it predicts); it is {max_length}.")


def metadata_of(tokenizer: BaseTokenizer, recipe: str, max_length: int) -> dict[str, str | int]:
    """The metadata of a MindRecord file, which training and evaluation check against the model."""
    return {
        "recipe": recipe,
        "block_length": max_length,
        **vocabulary_metadata(tokenizer),
    }


def vocabulary_metadata(tokenizer: BaseTokenizer) -> dict[str, str | int]:
    """The metadata about the tokenizer; `text_vocab_size` only if it differs from `vocab_size`."""
    sizes = {"vocab_size": tokenizer.vocab_size, "text_vocab_size": tokenizer.text_vocab_size}
    if len(set(sizes.values())) == 1:
        del sizes["text_vocab_size"]
    return {**sizes, "eos_token_id": tokenizer.eos_token_id, "vocab_sha256": tokenizer.vocab_hash()}


def _check_anything_written(summary: BlocksSummary, max_length: int, num_splits: int) -> None:
    if summary.documents == 0:
        raise UserError("There is nothing to write: the input holds no document with any text.")
    if summary.blocks < num_splits:
        raise UserError(
            f"The text gives {summary.tokens} tokens and so {summary.blocks} blocks of {max_length}: too few for "
            f"{num_splits} file(s). Lower max_length or num_splits."
        )


def _counted(pieces: Iterable[Piece], summary: BlocksSummary, progress: tqdm) -> Iterator[Piece]:
    """The pieces of documents that are not blank; counts documents and bytes on the way."""
    inside = False  # of a document that has had a piece
    for piece in pieces:
        progress.update(len(piece.text.encode()))
        if inside or piece.text.strip():
            summary.documents += piece.ends_document
            inside = not piece.ends_document
            yield piece
        elif piece.ends_document:
            summary.blank_documents += 1


def _token_stream(pieces: Iterable[Piece], tokenizer: BaseTokenizer, separate: bool) -> Iterator[np.ndarray]:
    """The ids of all documents, in order, as int32 arrays of any length."""
    end = [tokenizer.eos_token_id] if separate else []
    for batch in batches(pieces if tokenizer.splits_at_spaces else _joined(pieces), lambda piece: len(piece.text)):
        rows = tokenizer.encode_batch([piece.text for piece in batch], add_special_tokens=False)
        ids: list[int] = []
        for piece, row in zip(batch, rows, strict=True):
            ids += row
            if piece.ends_document:
                ids += end
        yield np.asarray(ids, dtype=np.int32)


def batches(texts: Iterable[Text], length: Callable[[Text], int]) -> Iterator[list[Text]]:
    """Batches of texts that keep all cores busy; `length` gives the characters of a text."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += length(text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Whole documents, for a tokenizer whose tokens may span pieces."""
    held = []
    for piece in pieces:
        held.append(piece.text)
        if piece.ends_document:
            yield Piece("".join(held), True)
            held = []


def _blocks(
    tokens: Iterable[np.ndarray], length: int, pad_id: int, keep_tail: bool, summary: BlocksSummary
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive blocks: ids and mask, each int32 of shape (n, length), n up to `BATCH_BLOCKS`."""
    held: list[np.ndarray] = []
    count = 0
    for ids in tokens:
        held.append(ids)
        count += len(ids)
        summary.tokens += len(ids)
        if count >= BATCH_BLOCKS * length:
            stream = np.concatenate(held)
            whole = count // length * length
            for rows in _in_batches(stream[:whole].reshape(-1, length)):
                summary.blocks += len(rows)
                yield rows, np.ones_like(rows)
            held, count = [stream[whole:]], count - whole
    stream = np.concatenate(held) if held else np.zeros(0, np.int32)
    tail = count % length
    if tail and keep_tail:
        summary.padded = length - tail
        stream = np.concatenate([stream, np.full(length - tail, pad_id, np.int32)])
    elif tail:
        summary.dropped = tail
        stream = stream[: count - tail]
    mask = (np.arange(len(stream)) < count).astype(np.int32)
    for rows, marks in zip(_in_batches(stream.reshape(-1, length)), _in_batches(mask.reshape(-1, length)), strict=True):
        summary.blocks += len(rows)
        yield rows, marks


def _in_batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BATCH_BLOCKS):
        yield rows[start : start + BATCH_BLOCKS]


def use_cores(count: int | None) -> None:
    """Limit tokenising to `count` cores. Call it before the first tokenisation.

    Raises:
        UserError: `count` is below 1.
    """
    if count is None:
        return
    if count < 1:
        raise UserError(f"num_workers must be at least 1; it is {count}.")
    os.environ["RAYON_NUM_THREADS"] = str(count)  # the tokenizer's thread pool reads it once
