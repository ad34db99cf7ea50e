"""Documents as token ids, with their special tokens."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeVar

from mindgpt.data.text import Piece
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.unknown_tokens import UnknownTokens

SpecialTokens = Literal["around", "end", "none"]
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = ("around", "end", "none")
BATCH_CHARACTERS = 1 << 18  # text tokenised at a time
BATCH_PIECES = 4096
UNKNOWN_TOKENS = 10_000  # a text that begins with so many unknown tokens and no other is not read to the end
Text = TypeVar("Text")


class DocumentFormat(NamedTuple):
    """The tokens that a document and a row get besides those of its text.

    Attributes:
        special_tokens: where they stand; an item of `SPECIAL_TOKENS`.
        begin, end: ids before and after the text of a document.
        padding: the id that fills up a row.
    """

    special_tokens: SpecialTokens
    begin: list[int]
    end: list[int]
    padding: int


def document_format(tokenizer: BaseTokenizer, special_tokens: SpecialTokens | None = None) -> DocumentFormat:
    """The special tokens of documents.

    Args:
        tokenizer: its tokens are used.
        special_tokens: "around": `[CLS] text [SEP]`, or the like. "end": text and the end-of-text token. "none": the
            text alone. None: "around" for a tokenizer with a `document_start`, as WordPiece; "end" for others.

    Padding is `[PAD]` for the first kind of tokenizer and end-of-text for the second.
    """
    around = bool(tokenizer.document_start)
    place = special_tokens or ("around" if around else "end")
    return DocumentFormat(
        special_tokens=place,
        begin=[tokenizer.bos_token_id] if place == "around" else [],
        end=[] if place == "none" else [tokenizer.eos_token_id],
        padding=tokenizer.pad_token_id if around else tokenizer.eos_token_id,
    )


# ---- tokens of pieces ------------------------------------------------------------------------------------------------


class TokenPiece(NamedTuple):
    """Part of a document's ids, special tokens included; `ends_document` marks the last one."""

    ids: list[int]
    ends_document: bool


def tokenised(
    pieces: Iterable[Piece], tokenizer: BaseTokenizer, layout: DocumentFormat, unknown: UnknownTokens
) -> Iterator[TokenPiece]:
    """The ids of documents, in order. A document whose text gives no token is left out.

    Raises:
        UserError: all of the text is unknown to the vocabulary.
    """
    begun = False
    for batch in batches(pieces if tokenizer.splits_at_spaces else _joined(pieces), lambda piece: len(piece.text)):
        rows = tokenizer.encode_batch([piece.text for piece in batch], add_special_tokens=False)
        unknown.add((piece.text for piece in batch), rows)
        if not unknown.known and unknown.unknown >= UNKNOWN_TOKENS:
            unknown.check()
        for piece, row in zip(batch, rows, strict=True):
            ids = row if begun or not row else layout.begin + row
            begun = begun or bool(row)
            ends = begun and piece.ends_document
            if ends:
                ids, begun = ids + layout.end, False
            if ids or ends:
                yield TokenPiece(ids, ends)


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
