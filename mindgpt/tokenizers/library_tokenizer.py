"""What the tokenizers on Hugging Face's Rust library `tokenizers` have in common."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from mindgpt.config.errors import UserError
from mindgpt.io.files import read_lines
from mindgpt.tokenizers.tokenizer import BaseTokenizer


class LibraryTokenizer(BaseTokenizer):
    """A tokenizer whose vocabulary and rules are a `tokenizers.Tokenizer`, its `backend`. For the other arguments see
    `BaseTokenizer`."""

    def __init__(
        self, backend: Tokenizer, named: dict[str, str | None], padding_side: str, model_max_length: int | None
    ):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        super().__init__(named, padding_side, model_max_length)

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """See `BaseTokenizer`. The library spreads a batch over the cores."""
        texts = checked_texts(texts)
        if max_length is None:
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        room = max_length - (self.num_special_tokens_to_add() if add_special_tokens else 0)
        if room < 0:
            raise UserError(f"max_length {max_length} is too short for the special tokens this tokenizer adds.")
        for encoding in encodings:
            encoding.truncate(room)
        return [self._backend.post_process(e, add_special_tokens=add_special_tokens).ids for e in encodings]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """See `BaseTokenizer`."""
        return self._backend.num_special_tokens_to_add(pair)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, in order of ids, as the vocabulary spells it; added ones as they are."""
        return dict(sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]))

    @property
    def vocab_size(self) -> int:
        """As `len`: the highest id + 1, added tokens included."""
        return self._vocab_size

    def add_tokens(self, tokens: str | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """See `BaseTokenizer`. Texts are split at these tokens."""
        tokens = [tokens] if isinstance(tokens, str) else tokens
        before = len(self._backend.get_vocab(with_added_tokens=True))
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        added = [
            token if isinstance(token, AddedToken) else AddedToken(token, special=special_tokens) for token in tokens
        ]
        added = [token for token in added if token.content not in known]
        (self._backend.add_special_tokens if special_tokens else self._backend.add_tokens)(added)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._vocab_size = max(vocabulary.values()) + 1
        return len(vocabulary) - before

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once, those with a role first."""
        added = self._backend.get_added_tokens_decoder()
        others = [token.content for _, token in sorted(added.items()) if token.special]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *others]))

    def _id_of(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def _token_of(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id)


def add_known_tokens(backend: Tokenizer, added: dict[int, AddedToken], folder: Path) -> None:
    """Add the tokens of the settings files in order of their ids, and check that they get those ids.

    Raises:
        UserError: a token gets another id.
    """
    for number, token in sorted(added.items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise UserError(
                f"{folder}: the added token {token.content!r} should have id {number} but gets "
                f"{backend.token_to_id(token.content)}. Vocabulary and added tokens do not belong together."
            )


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises:
        UserError: one is not a string of valid Unicode.
    """
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"A text to encode is a string; text {number} is a {type(text).__name__}.")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"Text {number} is not valid Unicode: half a surrogate pair at character {error.start}."
                ) from error
    return texts


def texts_to_learn_from(items: Iterable[str | Path]) -> Iterator[str]:
    """The texts that are not empty; a file (Path) in pieces of a thousand lines.

    Raises:
        UserError: every text is empty, or a file cannot be read.
    """
    pieces = (text for text in _pieces(items) if text)
    first = next(pieces, None)
    if first is None:
        raise UserError("There is no text to learn a vocabulary from: every input is empty.")
    return itertools.chain([first], pieces)


def _pieces(items: Iterable[str | Path]) -> Iterator[str]:
    for item in items:
        if isinstance(item, str):
            yield item
            continue
        lines = read_lines(item)
        while piece := list(itertools.islice(lines, 1000)):
            yield "\n".join(piece) + "\n"
