"""From token ids to the bytes of a text as they come, a token at a time; nothing would have to be taken back."""

import re
from collections.abc import Callable
from typing import NamedTuple


class TextDecoder:
    """The bytes of a text of which each token depends on the token before it at most.

    Joined, what `add` and `end` return are the bytes of what the tokenizer's `decode` returns.

    Args:
        token_text: `BaseTokenizer.token_text`.
        previous: the token before the first; None: there is none.
    """

    def __init__(self, token_text: Callable[[int, int | None], bytes], previous: int | None = None):
        self._token_text = token_text
        self._previous = previous

    def add(self, *token_ids: int) -> bytes:
        """The bytes that are certain now that these tokens have come."""
        data = b""
        for token_id in token_ids:
            data += self._token_text(token_id, self._previous)
            self._previous = token_id
        return data

    def end(self) -> bytes:
        """What was held back, when no more tokens come."""
        return b""


class WholeTextRules(NamedTuple):
    """Rules of writing that look at a text as a whole.

    Attributes:
        append: (tokens joined so far, token) -> tokens joined.
        tidy: tokens joined -> text.
        unsure: the end of a text that tokens to come may change. `tidy` of more tokens begins with what precedes it.
    """

    append: Callable[[str, str], str]
    tidy: Callable[[str], str]
    unsure: re.Pattern[str]


class WholeTextDecoder(TextDecoder):
    """A `TextDecoder` for `WholeTextRules`. What is before the first token has no influence.

    Args:
        rules: how the text is written.
        token_of: the token of an id; None outside the vocabulary, which leaves no trace.
    """

    def __init__(self, rules: WholeTextRules, token_of: Callable[[int], str | None]):
        self._rules = rules
        self._token_of = token_of
        self._joined = ""
        self._given = 0  # characters

    def add(self, *token_ids: int) -> bytes:
        """See `TextDecoder`."""
        for token_id in token_ids:
            token = self._token_of(token_id)
            if token is not None:
                self._joined = self._rules.append(self._joined, token)
        return self._hand_on(self._rules.unsure.sub("", self._rules.tidy(self._joined)))

    def end(self) -> bytes:
        """See `TextDecoder`."""
        return self._hand_on(self._rules.tidy(self._joined))

    def _hand_on(self, text: str) -> bytes:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new.encode()
