"""The tokenizer of ModelScope's Chinese GPT-3 from 1.3B on: jieba's words, each encoded by a tokenizer.json."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import make_folder, write_json, write_text
from mindgpt.tokenizers.byte_level_bpe import BYTE_SYMBOLS
from mindgpt.tokenizers.jieba_files import CLASS, NEW_LINE, SEPARATOR, check_backend, read_jieba, read_jieba_file
from mindgpt.tokenizers.jieba_words import WordSplitter, check_jieba, split_words
from mindgpt.tokenizers.library_tokenizer import LibraryTokenizer, checked_texts, texts_to_learn_from
from mindgpt.tokenizers.special_tokens import END_OF_TEXT

_BYTE_OF = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


class JiebaTokenizer(LibraryTokenizer):
    """Text to token ids and back, with the ids of ModelScope's `JiebaBPETokenizer`.

    A text is split into words by jieba (each space and line end is one), and each word is encoded by itself. So the
    name of a token in a text is found only if it is a word: "\\n" is, `<sep>` is not, but three words `<`, `sep`, `>`.
    ModelScope's models have been trained so; `split_at` changes it.

    Nothing goes around a text. `<|endoftext|>` ends a document; `<sep>` ends a response.

    Args:
        tokenizer_file: a tokenizer.json. No other file is read; use `from_pretrained` for a folder.
        backend: a `tokenizers.Tokenizer` instead of a file.
        split_at: tokens that are found in a text before jieba splits it, such as `<sep>`. `add_tokens` adds to them.
        bos_token, eos_token, unk_token: special tokens by name; None: `<|endoftext|>`, and the model's own unknown
            token if it has one.
        pad_token: None pads with the id of `eos_token`.
        additional_special_tokens: special tokens without a role; found in texts, too.
        padding_side: "right" or "left", for calls that do not say.
        model_max_length: length that `truncation=True` truncates to, for calls without `max_length`.

    Raises:
        UserError: jieba is not installed, the file is missing, broken or of another kind, or a value is not allowed.
    """

    FILES = ("tokenizer.json", "tokenizer_config.json")  # that `save_pretrained` writes
    kind = "Jieba"
    prompt_special_tokens = "none"

    def __init__(
        self,
        tokenizer_file: str | os.PathLike[str] | None = None,
        *,
        backend: Tokenizer | None = None,
        split_at: Sequence[str] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        padding_side: Literal["right", "left"] = "right",
        model_max_length: int | None = None,
    ):
        check_jieba()
        if tokenizer_file is not None and backend is None:
            backend = read_jieba_file(tokenizer_file)
        elif tokenizer_file is not None or backend is None:
            raise UserError(
                "JiebaTokenizer takes one of tokenizer_file and backend; JiebaTokenizer.from_pretrained opens a folder."
            )
        else:
            check_backend(backend, "backend")
        self._spells_bytes = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
        self._split = WordSplitter()
        self._split_at: list[str] = []
        of_model = getattr(backend.model, "unk_token", None)
        unknown = unk_token or (of_model if of_model and backend.token_to_id(of_model) is not None else None)
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unknown, "pad_token": pad_token}
        super().__init__(backend, named, padding_side, model_max_length)
        self._set_split_at(_checked_split_at(split_at, backend))  # without the special tokens of roles
        self.add_tokens(additional_special_tokens, special_tokens=True)

    @property
    def sep_token_id(self) -> int:
        """The id of `<sep>`, which ends a response."""
        return self._id_of_special(SEPARATOR)

    @property
    def text_end_ids(self) -> tuple[int, ...]:
        """See `BaseTokenizer`. ModelScope shows nothing of what follows `<sep>`."""
        return (self.eos_token_id, self.sep_token_id)

    @property
    def split_at(self) -> list[str]:
        """The tokens that are found in a text before jieba splits it."""
        return list(self._split_at)

    def add_tokens(self, tokens: str | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """See `BaseTokenizer`. Texts are split at these tokens."""
        new = super().add_tokens(tokens, special_tokens)
        names = [str(getattr(token, "content", token)) for token in ([tokens] if isinstance(tokens, str) else tokens)]
        self._set_split_at([*self._split_at, *names])
        return new

    def _set_split_at(self, tokens: Sequence[str]) -> None:
        self._split_at = list(dict.fromkeys(tokens))
        by_length = sorted(self._split_at, key=len, reverse=True)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, by_length))})") if by_length else None

    @property
    def splits_at_spaces(self) -> bool:
        """See `BaseTokenizer`. White space is a word of its own, unless a token of `split_at` contains some."""
        return not any(any(map(str.isspace, token)) for token in self._split_at)

    # ---- encoding ------------------------------------------------------------------------------------------------

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """See `BaseTokenizer`. jieba spreads a long batch over processes, the library over the cores."""
        words = self._words(checked_texts(texts))
        encodings = self._backend.encode_batch_fast(words, is_pretokenized=True, add_special_tokens=False)
        return [encoding.ids[:max_length] for encoding in encodings]

    def _words(self, texts: list[str]) -> list[list[str]]:
        """The words of each text, and the tokens of `split_at` in it."""
        if self._splitter is None:
            return self._split(texts)
        parts = [self._splitter.split(text) for text in texts]  # text, token, text, token, ..., text
        split = iter(self._split([part for row in parts for part in row[::2]]))
        return [
            [word for place, part in enumerate(row) for word in ([part] if place % 2 else next(split))] for row in parts
        ]

    def _with_special_tokens(self, *texts: list[int] | None) -> Iterator[tuple[int, int, int]]:
        """See `BaseTokenizer`: none."""
        for kind, ids in enumerate(ids for ids in texts if ids is not None):
            yield from ((number, kind, 0) for number in ids)

    # ---- decoding ------------------------------------------------------------------------------------------------

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """With `skip_special_tokens` also without what follows the first `<sep>`, as ModelScope does. Line ends are
        left out, too, if the tokenizer.json says that they are a special token."""
        if skip_special_tokens and self.sep_token_id in ids:
            ids = ids[: ids.index(self.sep_token_id)]
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `BaseTokenizer`."""
        token = self._token_of(int(token_id))
        if token is None:
            return b""
        if self._spells_bytes and all(symbol in _BYTE_OF for symbol in token):
            return bytes(map(_BYTE_OF.__getitem__, token))
        return token.encode() if self._spells_bytes else self._backend.decode([token_id], False).encode()

    def token_text(self, token_id: int, previous: int | None) -> bytes:
        """See `BaseTokenizer`. Where a decoder puts spaces between tokens, they are of the token after them."""
        if self._spells_bytes or previous is None:
            return self.token_bytes(token_id)
        before = self._backend.decode([previous], skip_special_tokens=False)
        both = self._backend.decode([previous, token_id], skip_special_tokens=False)
        return both.removeprefix(before).encode()

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens of the vocabulary spell."""
        return self.decode(self.convert_tokens_to_ids(list(tokens)))

    # ---- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **overrides: Any) -> "JiebaTokenizer":
        """Open ModelScope's folder, or one that `save_pretrained` wrote: tokenizer.json and the settings beside it.

        Args:
            path: the folder, or a file in it. Nothing is downloaded.
            overrides: arguments of the class that take precedence over the files.

        Raises:
            UserError: as the class.
        """
        backend, settings = read_jieba(expanded_path(path))
        return cls(backend=backend, **{**settings, **overrides})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, each atomically. tokenizer.json is ModelScope's own.

        Raises:
            UserError: the folder or a file cannot be written.
        """
        folder = expanded_path(folder)
        make_folder(folder)
        settings = {
            "tokenizer_class": CLASS,
            "split_at": self._split_at or None,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            **self.special_tokens_map,
        }
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", {name: v for name, v in settings.items() if v is not None})

    # ---- training ------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str | Path],
        vocab_size: int,
        *,
        min_frequency: int = 2,
        show_progress: bool = False,
    ) -> "JiebaTokenizer":
        """Train a byte-level BPE vocabulary on jieba's words.

        The ids are `<|endoftext|>`, `<sep>`, the 256 bytes, the merges in the order learned, and the line end. The
        vocabulary of a small text may be smaller than asked for: see `len` of the result.

        Args:
            texts: texts (str) or files (pathlib.Path), streamed once.
            vocab_size: number of tokens, at least 259.
            min_frequency: how often a pair must occur to be merged.

        Raises:
            UserError: jieba is not installed, `vocab_size` or `min_frequency` is too small, the texts are empty, or a
                file cannot be read.
        """
        check_jieba()
        if vocab_size < 259:
            raise UserError(f"vocab_size must be at least 259 (256 bytes and 3 more tokens); it is {vocab_size}.")
        if min_frequency < 1:
            raise UserError(f"min_frequency must be at least 1; it is {min_frequency}.")
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # a word is one
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=min_frequency,
            special_tokens=[END_OF_TEXT, SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=show_progress,
        )
        backend.train_from_iterator(map(split_words, texts_to_learn_from(texts)), trainer)
        backend.add_tokens([AddedToken(NEW_LINE, normalized=False)])
        return cls(backend=backend)


def _checked_split_at(tokens: Any, backend: Tokenizer) -> list[str]:
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) and token for token in tokens):
        raise UserError(f"split_at: must be a list of tokens, such as ['{SEPARATOR}'], not {tokens!r}.")
    for token in tokens:
        if backend.token_to_id(token) is None:
            raise UserError(f"split_at: {token!r} is not a token of this tokenizer.")
    return list(tokens)
