"""Packs the token ids of documents into rows of equal length.

"full": all documents are joined, and the stream is sliced into rows. A row may begin inside a document and hold
several. Only the last row has padding.

"none": a document is sliced into consecutive rows, and the last of these is padded (UER-py's and TencentPretrain's
`LmDataset`). The first token of a row is only read, never predicted.
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from mindgpt.data.document_tokens import TokenPiece

Packing = Literal["full", "none"]
BATCH_BLOCKS = 256  # rows written at a time


class Rows(NamedTuple):
    """Rows of tokens.

    Attributes:
        ids: (n, length) int32, padded on the right.
        lengths: (n,) tokens of each row without its padding.
    """

    ids: np.ndarray
    lengths: np.ndarray


def joined_rows(pieces: Iterable[TokenPiece], length: int, padding: int, keep_tail: bool = True) -> Iterator[Rows]:
    """Rows of `length` tokens of all documents joined, up to `BATCH_BLOCKS` at a time.

    Args:
        pieces: ids of documents.
        length: tokens of a row.
        padding: id that fills up the last row.
        keep_tail: whether tokens that do not fill a row become a padded one; else they are dropped.
    """
    held: list[int] = []
    for piece in pieces:
        held += piece.ids
        if len(held) >= BATCH_BLOCKS * length:
            whole = len(held) // length * length
            yield from _whole_rows(held[:whole], length)
            held = held[whole:]
    whole = len(held) // length * length
    tail = held[whole:]
    yield from _whole_rows(held[:whole], length)
    if tail and keep_tail:
        yield padded_rows([tail], length, padding)


def _whole_rows(ids: list[int], length: int) -> Iterator[Rows]:
    rows = np.asarray(ids, np.int32).reshape(-1, length)
    for start in range(0, len(rows), BATCH_BLOCKS):
        part = rows[start : start + BATCH_BLOCKS]
        yield Rows(part, np.full(len(part), length))


def separate_rows(pieces: Iterable[TokenPiece], length: int, padding: int) -> Iterator[Rows]:
    """Rows of `length` tokens, each of one document only, up to `BATCH_BLOCKS` at a time.

    Args:
        pieces: ids of documents.
        length: tokens of a row.
        padding: id that fills up the last row of a document.
    """
    return in_batches(_windows(pieces, length), length, padding)


def _windows(pieces: Iterable[TokenPiece], length: int) -> Iterator[list[int]]:
    """Consecutive windows of `length` ids; the last of a document may be shorter."""
    held: list[int] = []  # of the document, what has not filled a window yet
    for piece in pieces:
        held = held + piece.ids if held else piece.ids
        whole = len(held) // length * length
        for start in range(0, whole, length):
            yield held[start : start + length]
        held = held[whole:]
        if piece.ends_document:
            if held:
                yield held
            held = []


def in_batches(rows: Iterable[list[int]], length: int, padding: int) -> Iterator[Rows]:
    """Rows of at most `length` ids each, padded, `BATCH_BLOCKS` at a time."""
    batch: list[list[int]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_BLOCKS:
            yield padded_rows(batch, length, padding)
            batch = []
    if batch:
        yield padded_rows(batch, length, padding)


def padded_rows(rows: list[list[int]], length: int, padding: int) -> Rows:
    """Rows of at most `length` ids, padded on the right to `length`."""
    ids = np.full((len(rows), length), padding, np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return Rows(ids, np.array([len(row) for row in rows]))
