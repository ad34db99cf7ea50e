"""Writes the tokens of documents as MindRecord rows of equal length.

A row of `max_length` tokens gives `max_length - 1` predictions: token t+1 from tokens 0..t. A prediction counts if the
attention mask of its *target* is 1, so padding is neither trained nor scored. Padding is on the right, where causal
attention hides it from all other positions.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.data.document_tokens import SpecialTokens, TokenPiece, document_format, tokenised
from mindgpt.data.mindrecord import MindRecordWriter, page_bytes_for
from mindgpt.data.packing import Packing, Rows, joined_rows, separate_rows
from mindgpt.data.text import Piece
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

COLUMNS = ("input_ids", "attention_mask", "labels")
_BYTES_PER_TOKEN = 3  # of a text, about
IGNORED_LABEL = -100  # what cross-entropy skips, by Hugging Face's and PyTorch's convention


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
        documents = f"{self.documents} document(s){blank}, " if self.documents else ""
        return (
            f"{documents}{self.tokens} tokens, {self.blocks} blocks, {self.padded} padded "
            f"positions{dropped}, {self.seconds:.1f} s -> {', '.join(self.files)}"
        )


def write_blocks(
    pieces: Iterable[Piece],
    tokenizer: BaseTokenizer,
    output_file: str | os.PathLike[str],
    *,
    max_length: int,
    recipe: str,
    special_tokens: SpecialTokens | None = None,
    packing: Packing = "full",
    padding_target: bool = False,
    keep_tail: bool = True,
    columns: Iterable[str] = ("input_ids", "attention_mask"),
    num_splits: int = 1,
    overwrite: bool = False,
    total_bytes: int | None = None,
    show_progress: bool = True,
) -> BlocksSummary:
    """Tokenise documents, pack them into rows (blocks) and write these as MindRecord, in constant memory.

    Args:
        pieces: the documents; blank ones (only white space) are left out and counted.
        tokenizer: encodes them.
        output_file: see `MindRecordWriter`.
        max_length: tokens of a block; T + 1 to train on sequences of length T.
        recipe: how the text was made into documents; stored in the files' metadata.
        special_tokens: which tokens a document gets; see `document_format`.
        packing: whether documents share rows; see `mindgpt.data.packing`.
        padding_target: with packing "none": the first padding token after the last token of a row is predicted, too.
        keep_tail: with packing "full": pad the last block instead of dropping it.
        columns: which of `COLUMNS` to write, each int32 of shape (max_length,). `labels` are the ids, and
            `IGNORED_LABEL` where the mask is 0.
        num_splits: number of MindRecord files to distribute the blocks over, in turn.
        overwrite: replace existing files.
        total_bytes: size of the UTF-8 text, for the progress bar, and for less memory with a long text.
        show_progress: show a progress bar, if standard error is a terminal.

    Raises:
        UserError: there is too little text, all of it is unknown to the vocabulary, a value is not allowed, or files
            cannot be read or written.
    """
    check_max_length(max_length)
    layout = document_format(tokenizer, special_tokens)
    summary, unknown = BlocksSummary(), UnknownTokens(tokenizer)
    metadata = metadata_of(tokenizer, recipe, max_length)
    # Without these keys a file has end-of-text after each document, full packing and no predicted padding.
    metadata |= {"packing": packing} if packing != "full" else {}
    metadata |= {"special_tokens": layout.special_tokens} if layout.special_tokens != "end" else {}
    with progress_bar(total_bytes, show_progress) as progress:
        tokens = tokenised(_counted(pieces, summary, progress), tokenizer, layout, unknown)
        tokens = _counted_tokens(tokens, summary)
        if packing == "full":
            rows = joined_rows(tokens, max_length, layout.padding, keep_tail)
        else:
            rows = separate_rows(tokens, max_length, layout.padding)
        write_rows(
            _checked(rows, summary, unknown, max_length, num_splits),
            output_file,
            summary,
            metadata=metadata,
            padding_target=padding_target,
            columns=columns,
            num_splits=num_splits,
            overwrite=overwrite,
            text_bytes=total_bytes,
        )
    return summary


def progress_bar(total_bytes: int | None, show: bool) -> tqdm:
    """A progress bar in bytes; hidden unless standard error is a terminal."""
    return tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenising", disable=None if show else True)


def write_rows(
    batches_of_rows: Iterable[Rows],
    output_file: str | os.PathLike[str],
    summary: BlocksSummary,
    *,
    metadata: dict[str, Any],
    padding_target: bool,
    columns: Iterable[str],
    num_splits: int,
    overwrite: bool,
    text_bytes: int | None = None,
) -> None:
    """Write rows of token ids as MindRecord.

    The attention mask is 1 at the tokens of a row; with `padding_target` also at the first padding after them, which
    makes that a target. Nothing else changes: only padding comes after it and would see it.

    Args:
        batches_of_rows: the rows.
        output_file: see `MindRecordWriter`.
        summary: counts the rows, their padding and the time.
        metadata: of the files; `padding_target` is added to it.
        padding_target, columns, num_splits, overwrite: as of `write_blocks`.
        text_bytes: size of the text, by which the size of the files' pages is chosen.

    Raises:
        UserError: a column is unknown, or files cannot be written.
    """
    started = time.monotonic()
    columns = list(dict.fromkeys(columns))
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or not columns:
        raise UserError(f"data_columns may be {', '.join(COLUMNS)}; got {', '.join(unknown) or 'none'}.")
    metadata = metadata | ({"padding_target": True} if padding_target else {})
    page_bytes = None
    if text_bytes is not None:
        token_bytes = 4 * len(columns)
        page_bytes = page_bytes_for(
            text_bytes // _BYTES_PER_TOKEN * token_bytes // max(num_splits, 1), metadata["block_length"] * token_bytes
        )
    with MindRecordWriter(
        output_file, columns, num_splits=num_splits, overwrite=overwrite, metadata=metadata, page_bytes=page_bytes
    ) as writer:
        for ids, lengths in batches_of_rows:
            mask = (np.arange(ids.shape[1]) < (lengths + padding_target)[:, None]).astype(np.int32)
            summary.blocks += len(ids)
            summary.padded += ids.size - int(lengths.sum())
            labels = np.where(mask == 1, ids, IGNORED_LABEL).astype(np.int32)
            rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            writer.write({column: rows[column] for column in columns})
    summary.files = [str(file) for file in writer.files]
    summary.seconds = time.monotonic() - started


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


def _checked(
    batches_of_rows: Iterable[Rows], summary: BlocksSummary, unknown: UnknownTokens, max_length: int, num_splits: int
) -> Iterator[Rows]:
    """The rows; at their end, an error if there was too little text, or all of it unknown."""
    yield from batches_of_rows
    summary.dropped = summary.tokens - (summary.blocks * max_length - summary.padded)
    unknown.check()
    _check_anything_written(summary, max_length, num_splits)


def _counted(pieces: Iterable[Piece], summary: BlocksSummary, progress: tqdm) -> Iterator[Piece]:
    """The pieces of documents that are not blank. Counts every document as blank: `_counted_tokens` corrects that."""
    inside = False  # of a document that has had a piece
    for piece in pieces:
        progress.update(len(piece.text.encode()))
        summary.blank_documents += piece.ends_document
        if inside or piece.text.strip():
            inside = not piece.ends_document
            yield piece


def _counted_tokens(pieces: Iterable[TokenPiece], summary: BlocksSummary) -> Iterator[TokenPiece]:
    """The tokens of documents; counts them, and the documents that have some."""
    for piece in pieces:
        summary.tokens += len(piece.ids)
        summary.documents += piece.ends_document
        summary.blank_documents -= piece.ends_document
        yield piece


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
