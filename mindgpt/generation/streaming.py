"""The text of tokens as they come: whole characters only, and nothing that would have to be taken back.

A token of byte-level BPE is a few bytes, often not a whole character, and several tokens may make up a stop string. So
bytes are held back until they are a character, and until they can no longer be the beginning of a stop string. What a
token of WordPiece or SentencePiece adds to a text depends on the token before it, of bert4keras also on the one after
(`BaseTokenizer.text_decoder`).
"""

import codecs
import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.tokenizers.tokenizer import BaseTokenizer


class StopStrings:
    """Strings at which a text ends.

    Of several, the one that is complete first counts; of those that the same character completes, the longest. How a
    text is split into tokens has no influence. UTF-8 can be searched byte by byte: no character's bytes occur within
    others'.

    Args:
        texts: the strings.

    Raises:
        UserError: they are not a list of texts, or one is empty.
    """

    def __init__(self, texts: Sequence[str] = ()):
        if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
            raise UserError(f"generation: stop_strings: must be a list of texts that are not empty, not {shown(texts)}")
        self._patterns = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._longest = max(map(len, self._patterns), default=0)

    def find(self, data: bytes) -> int | None:
        """Where the first stop string in `data` begins; None if there is none."""
        found = [(begin + len(p), begin) for p in self._patterns if (begin := data.find(p)) >= 0]
        return min(found)[1] if found else None

    def begun(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of a stop string."""
        lengths = range(min(self._longest - 1, len(data)), 0, -1)
        return next((n for n in lengths if any(len(p) > n and p.startswith(data[-n:]) for p in self._patterns)), 0)

    def end_with(self, tokenizer: BaseTokenizer, token_ids: Sequence[int], previous: int | None = None) -> bool:
        """Whether the last of these tokens completes a stop string. It looks no further back than it must.

        Args:
            previous: the token before the first of them.
        """
        if not self._patterns or not token_ids:
            return False
        if tokenizer.writes_whole_texts:
            return self.find(tokenizer.text_decoder(previous).add(*token_ids)) is not None
        data = b""
        enough = None
        for place in range(len(token_ids) - 1, -1, -1):
            data = tokenizer.token_text(token_ids[place], token_ids[place - 1] if place else previous) + data
            if enough is None:
                enough = len(data) + self._longest - 1
            if len(data) >= enough:
                break
        return self.find(data) is not None


class TextStream:
    """The text of one row of tokens: what `add` and `end` return, joined, is the text, up to a stop string.

    Bytes that are no UTF-8 become U+FFFD, as in `BaseTokenizer.decode`, once it is certain that they are none.

    Args:
        tokenizer: the model's own.
        stop_strings: where the text ends.
        previous: the token before the first, which may decide whether a space is between them; None: there is none.

    Attributes:
        stopped: whether a stop string was found; later tokens then give nothing.
    """

    def __init__(self, tokenizer: BaseTokenizer, stop_strings: StopStrings | None = None, previous: int | None = None):
        self.stopped = False
        self._tokens = tokenizer.text_decoder(previous)
        self._stop_strings = stop_strings or StopStrings()
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""

    def add(self, token_id: int) -> str:
        """The text that is certain now that this token has come; often "" or more than the token's own."""
        return "" if self.stopped else self._certain(self._tokens.add(token_id))

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        text = self._certain(self._tokens.end())
        return text if self.stopped else text + self._characters.decode(self._held, final=True)

    def _certain(self, data: bytes) -> str:
        """The text that is certain now that these bytes have come."""
        self._held += data
        begin = self._stop_strings.find(self._held)
        if begin is not None:
            self.stopped = True
            return self._characters.decode(self._held[:begin], final=True)
        ready = len(self._held) - self._stop_strings.begun(self._held)
        text = self._characters.decode(self._held[:ready])
        self._held = self._held[ready:]
        return text


def print_text(text: str) -> None:
    """To the standard output at once, without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


class TextStreamer:
    """Hands on the text of one row while it is generated: the `streamer=` of `model.generate`, as in transformers.

    The tokens that end a text are left out of what is generated.

    Args:
        tokenizer: the model's own.
        skip_prompt: leave out the prompt.
        stop_strings: nothing is handed on from the first of these on; `model.generate` ends there if it is given them
            too.
        on_text: called with each piece of text; prints it if None.
        skip_special_tokens: leave out special tokens everywhere, in the prompt, too.
    """

    def __init__(
        self,
        tokenizer: BaseTokenizer,
        skip_prompt: bool = False,
        stop_strings: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        *,
        skip_special_tokens: bool = False,
    ):
        self._tokenizer = tokenizer
        self._skip_prompt = skip_prompt
        self._skip_special_tokens = skip_special_tokens
        self._ends = {tokenizer.eos_token_id}
        self._stop_strings = StopStrings(stop_strings)
        self._on_text = on_text or print_text
        self._stream: TextStream | None = None

    def leave_out(self, token_ids: Iterable[int]) -> None:
        """Leave these out of what is generated, beside the tokenizer's end-of-text token: they end a text, too."""
        self._ends = {self._tokenizer.eos_token_id, *token_ids}

    def keep_ends(self) -> None:
        """Leave no token out for ending a text: an `end_token` is part of it."""
        self._ends = set()

    def put(self, token_ids: np.ndarray) -> None:
        """First the prompt, (1, T) or (T,); then each new token, (1,)."""
        ids = np.asarray(token_ids).reshape(-1).tolist()
        if self._stream is None:
            left_out = self._tokenizer.all_special_ids if self._skip_special_tokens else ()
            last = next((token for token in reversed(ids) if token not in left_out), None)
            self._stream = TextStream(self._tokenizer, self._stop_strings, last)
            if not self._skip_prompt:
                self._hand_on(self._tokenizer.decode(ids, self._skip_special_tokens))
            return
        for token in ids:
            self._hand_on("" if self._is_left_out(token) else self._stream.add(token))

    def end(self) -> None:
        """Hand on what was held back; the next `put` begins another text."""
        if self._stream is not None:
            self._hand_on(self._stream.end())
        if self._on_text is print_text:
            print_text("\n")
        self._stream = None

    def _is_left_out(self, token: int) -> bool:
        return token in self._ends or (
            self._skip_special_tokens
            and not self._tokenizer.decode(token, True)
            and bool(self._tokenizer.decode(token))
        )

    def _hand_on(self, text: str) -> None:
        if text:
            self._on_text(text)
