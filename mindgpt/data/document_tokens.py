"""Documents as token ids: the special tokens of a document, and tokens that the vocabulary does not know."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

from mindgpt.config.errors import UserError
from mindgpt.data.text import Piece
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.tokenizer import BaseTokenizer

SpecialTokens = Literal["around", "end", "none"]
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = ("around", "end", "none")
BATCH_CHARACTERS = 1 << 18  # text tokenised at a time
BATCH_PIECES = 4096
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
            text alone. None: "around" for a tokenizer that puts tokens around a text itself, as WordPiece does; "end"
            for all others, and for byte-level BPE in any case.

    Padding is `[PAD]` for the first kind of tokenizer and end-of-text for the second.
    """
    around = not isinstance(tokenizer, GPT2Tokenizer) and bool(tokenizer.build_inputs_with_special_tokens([]))
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
    pieces: Iterable[Piece], tokenizer: BaseTokenizer, layout: DocumentFormat, unknown: "UnknownTokens"
) -> Iterator[TokenPiece]:
    """The ids of documents, in order. A document whose text gives no token is left out.

    Raises:
        UserError: all of the text is unknown to the vocabulary.
    """
    begun = False
    for batch in batches(pieces if tokenizer.splits_at_spaces else _joined(pieces), lambda piece: len(piece.text)):
        rows = tokenizer.encode_batch([piece.text for piece in batch], add_special_tokens=False)
        unknown.add(rows)
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


# ---- unknown tokens --------------------------------------------------------------------------------------------------


class UnknownTokens:
    """Counts the tokens of texts, and those of them that stand for a word outside the vocabulary, such as `[UNK]`.

    Args:
        tokenizer: one whose unknown token is its end-of-text token, as GPT-2's, knows every text.

    Attributes:
        tokens, count: of all texts so far, and the unknown ones of them.
    """

    WARNED_SHARE = 0.05  # of Chinese text, the vocabulary of the Chinese GPT-2 models leaves less than 0.01 unknown
    EARLY = 10_000  # tokens after which a text of unknown tokens only is refused before it is read to the end

    def __init__(self, tokenizer: BaseTokenizer):
        self._token, self._id = tokenizer.unk_token, tokenizer.unk_token_id
        self._always_known = self._id == tokenizer.eos_token_id
        self.tokens = 0
        self.count = 0

    def add(self, rows: Sequence[list[int]], special: int = 0) -> None:
        """Count the tokens of texts, of whose tokens `special` are not of the text itself.

        Raises:
            UserError: all of the first `EARLY` tokens are unknown.
        """
        if self._always_known:
            return
        self.tokens += sum(map(len, rows)) - special * len(rows)
        self.count += sum(row.count(self._id) for row in rows)
        if self.tokens >= self.EARLY:
            self.check()

    def check(self) -> None:
        """Raise a UserError if there are texts and all their tokens are unknown."""
        if self.tokens and self.count >= self.tokens:
            raise UserError(
                f"All {self.tokens} tokens of the text are {self._token}: the vocabulary holds no word of it. Name the "
                "tokenizer that fits this text with --tokenizer_type."
            )

    def warning(self) -> str | None:
        """A sentence if more than `WARNED_SHARE` of the tokens are unknown."""
        if self.count <= self.WARNED_SHARE * self.tokens:
            return None
        return (
            f"{self.count / self.tokens:.0%} of the text's tokens are {self._token}, which says nothing to a model. Is "
            "this the tokenizer for this text? (A vocabulary without capital letters needs do_lower_case: true)"
        )
