"""Log-probabilities of tokens as the API shows them: beside the texts of tokens, and where these begin.

A token of byte-level BPE may be a part of a character, which is no text. As with OpenAI, it is shown by its bytes:
`bytes:\\xe4\\xbd`. Its offset is that of the character.
"""

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mindgpt.tokenizers.tokenizer import BaseTokenizer


class Candidates(NamedTuple):
    """What a token could have been.

    Attributes:
        logprob: log P of the token itself.
        top: the likeliest tokens with their log P, best first.
    """

    logprob: float
    top: list[tuple[int, float]]


class TokenLogprob(NamedTuple):
    """A token as the API shows it; `offset` is in characters of the text."""

    token: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


def candidates_of(logits: np.ndarray, tokens: Sequence[int], number: int) -> list[Candidates]:
    """The log-probabilities of tokens.

    Args:
        logits: (rows, V) float32, at the token before each.
        tokens: one for each row.
        number: of likeliest tokens.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    number = min(number, logits.shape[-1])
    found = []
    for row, token in zip(log_probs, tokens, strict=True):
        best = np.argpartition(-row, number - 1)[:number] if number else np.empty(0, np.int64)
        best = best[np.lexsort((best, -row[best]))]
        found.append(Candidates(float(row[token]), [(int(other), float(row[other])) for other in best]))
    return found


class TokenTexts:
    """The tokens of one text as the API shows them, one after another.

    Args:
        tokenizer: the model's own.
        previous: the token before the first; None: there is none.
        offset: of the first token.
    """

    def __init__(self, tokenizer: BaseTokenizer, previous: int | None, offset: int = 0):
        self._tokenizer = tokenizer
        self._decoder = tokenizer.text_decoder(previous)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._previous = previous
        self.offset = offset

    def add(self, token: int, candidates: Candidates | None, with_top: bool, spelled: bool = True) -> TokenLogprob:
        """The next token.

        Args:
            candidates: None for the first token of all, which nothing precedes.
            with_top: whether the likeliest tokens are shown.
            spelled: whether the token is a part of the text; special tokens around a prompt are not.
        """
        top = None
        if candidates is not None and with_top:
            chosen = [] if any(token == other for other, _ in candidates.top) else [(token, candidates.logprob)]
            top = {self._shown(other): value for other, value in reversed(candidates.top + chosen)}
            top = dict(sorted(top.items(), key=lambda item: -item[1]))
        logprob = None if candidates is None else candidates.logprob
        shown = TokenLogprob(self._shown(token), self.offset, logprob, top)
        if spelled:
            self.offset += len(self._characters.decode(self._decoder.add(token)))
            self._previous = token
        return shown

    def _shown(self, token: int) -> str:
        data = self._tokenizer.token_text(token, self._previous)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def logprobs_body(tokens: Sequence[TokenLogprob], with_top: bool) -> dict[str, Any]:
    """The field `logprobs` of a choice; `with_top`: with the likeliest tokens."""
    return {
        "tokens": [entry.token for entry in tokens],
        "token_logprobs": [entry.logprob for entry in tokens],
        "top_logprobs": [entry.top for entry in tokens] if with_top else None,
        "text_offset": [entry.offset for entry in tokens],
    }
