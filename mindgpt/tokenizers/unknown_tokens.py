"""Texts that a vocabulary does not know: each of their words becomes `[UNK]`, and nothing of them is left to learn."""

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property

from mindgpt.config.errors import UserError
from mindgpt.tokenizers.tokenizer import BaseTokenizer

_MUCH = 0.05  # a share of unknown tokens that is worth a warning; Chinese text has well below 1 %
_STOPS = "，。"  # in almost every Chinese text
_EXAMPLES = 10
_ROWS_SEARCHED = 100

logger = logging.getLogger(__name__)


class UnknownTokens:
    """Counts the unknown tokens of texts. A tokenizer without a token for them, such as GPT-2's, has none.

    Args:
        tokenizer: has encoded the texts.

    Attributes:
        known, unknown: how many tokens of text are known and unknown.
        share: of unknown tokens.
        only_unknown: how many texts have no known token.
    """

    def __init__(self, tokenizer: BaseTokenizer):
        self.known = self.unknown = self.only_unknown = 0
        self._tokenizer = tokenizer
        self._id = tokenizer.unk_token_id
        self._others = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._possible = self._id not in self._others
        self._searched = 0
        self._examples: dict[str, None] = {}

    @property
    def share(self) -> float:
        return self.unknown / max(1, self.known + self.unknown)

    def add(self, texts: Iterable[str], rows: Iterable[Sequence[int]]) -> None:
        """Count the tokens of texts.

        Raises:
            UserError: a text has full-width punctuation, of which the vocabulary, a Chinese one, has none.
        """
        if not self._possible:
            return
        for text, row in zip(texts, rows, strict=True):
            if any(stop in text for stop in _STOPS) and self._is_half_width:
                raise UserError(
                    f"The vocabulary has no full-width punctuation, such as {_STOPS[0]} and {_STOPS[1]} in the text "
                    f"{_beginning(text)}: each would become {self._tokenizer.unk_token}. Use the vocabulary of the "
                    "model, or a text with half-width punctuation."
                )
            unknown = row.count(self._id)
            known = len(row) - unknown - sum(map(row.count, self._others))
            self.unknown += unknown
            self.known += known
            self.only_unknown += bool(unknown) and not known
            if unknown and len(self._examples) < _EXAMPLES and self._searched < _ROWS_SEARCHED:
                self._searched += 1
                self._examples |= dict.fromkeys(c for c in dict.fromkeys(text) if self._is_unknown(c))

    def check(self) -> None:
        """Warn if many tokens are unknown, or all tokens of some texts.

        Raises:
            UserError: all tokens are unknown.
        """
        if not self.unknown:
            return
        examples = "".join(list(self._examples)[:_EXAMPLES])
        named = f", such as {examples!r}" if examples else ""
        unk = self._tokenizer.unk_token
        if not self.known:
            raise UserError(
                f"The vocabulary knows nothing of the text: all {self.unknown} tokens are {unk}{named}. "
                "Is it the vocabulary of another language, or the text in another encoding?"
            )
        if self.share > _MUCH:
            logger.warning("note: %.0f %% of the tokens are %s%s", 100 * self.share, unk, named)
        elif self.only_unknown:
            logger.warning("note: all tokens of %d text(s) are %s%s", self.only_unknown, unk, named)

    @cached_property
    def _is_half_width(self) -> bool:
        """Whether the vocabulary has Chinese characters, but not the punctuation that goes with them. A vocabulary
        without either is of another language, for which a full-width comma is an unknown character like others."""
        if not all(self._is_unknown(stop) for stop in _STOPS):
            return False
        return any("\u4e00" <= token <= "\u9fff" for token in self._tokenizer.get_vocab())

    def _is_unknown(self, character: str) -> bool:
        return self._tokenizer.encode(character, add_special_tokens=False) == [self._id]


def refuse_unknown(tokenizer: BaseTokenizer, text: str, ids: Sequence[int], place: str) -> None:
    """Raise a UserError if all tokens of a text, such as a prompt, are unknown.

    Args:
        text: the text.
        ids: its tokens, with or without special tokens around them.
        place: what the message calls it.
    """
    count = UnknownTokens(tokenizer)
    count.add([text], [list(ids)])
    if count.only_unknown:
        raise UserError(
            f"{place}: the vocabulary knows nothing of this text: all of its tokens are {tokenizer.unk_token}."
        )


def _beginning(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:30] + "…")
