"""The kinds of tokenizers, and `load_tokenizer`, which tells them apart. A new kind adds a module and an entry here."""

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded_path
from mindgpt.io.files import DOWNLOADS
from mindgpt.tokenizers import byte_level_bpe, jieba_files, sentencepiece_files, wordpiece_files
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from mindgpt.tokenizers.settings_files import SETTINGS_FILES
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer


class TokenizerKind(NamedTuple):
    """How a kind of tokenizer is recognised by its path, and opened.

    Attributes:
        matches: whether a folder, or a file in it, is a tokenizer of this kind.
        open: takes the path, and arguments that take precedence over the files.
        files: names of its vocabulary files.
        wanted: what to give for one, as a message says it.
    """

    matches: Callable[[Path], bool]
    open: Callable[..., BaseTokenizer]
    files: tuple[str, ...]
    wanted: str


KINDS = {  # the first that matches is used
    "Jieba": TokenizerKind(
        jieba_files.holds_jieba, JiebaTokenizer.from_pretrained, jieba_files.FILES, jieba_files.WANTED
    ),
    "SentencePiece": TokenizerKind(
        sentencepiece_files.holds_sentencepiece,
        SentencePieceTokenizer.from_pretrained,
        sentencepiece_files.FILES,
        sentencepiece_files.WANTED,
    ),
    "byte-level BPE": TokenizerKind(
        byte_level_bpe.holds_byte_level_bpe, GPT2Tokenizer.from_pretrained, byte_level_bpe.FILES, byte_level_bpe.WANTED
    ),
    "WordPiece": TokenizerKind(
        wordpiece_files.holds_wordpiece,
        WordPieceTokenizer.from_pretrained,
        wordpiece_files.FILES,
        wordpiece_files.WANTED,
    ),
}
TOKENIZER_FILES = tuple(dict.fromkeys([*(name for kind in KINDS.values() for name in kind.files), *SETTINGS_FILES]))
"""Names of all files that a tokenizer folder may hold."""
MOST_PADDING = 1024
"""Rows after the vocabulary by which people make an embedding table divisible by 128 x the cards that share it."""

_ROWS_AT_ONCE = 128
_MOST_PADDING_SHARE = 4


def may_be_padding(tokenizer: BaseTokenizer, rows: int) -> bool:
    """Whether the rows of an embedding table after the vocabulary may be padding: `MOST_PADDING` at most. In a table of
    a multiple of 128 rows a quarter of the vocabulary, as of ModelScope's base: 25,600 rows for 21,128 tokens. Of
    jieba's any number: such a tokenizer is for no other models than ModelScope's, whose tables are padded."""
    tokens = len(tokenizer)
    share = tokens // _MOST_PADDING_SHARE if rows % _ROWS_AT_ONCE == 0 else 0
    return tokenizer.kind == JiebaTokenizer.kind or rows <= tokens + max(MOST_PADDING, share)


def tokenizer_kind(path: Path) -> str | None:
    """The kind of tokenizer at a path, a name in `KINDS`; None if it is none. `load_tokenizer` reports what may be
    wrong with it."""
    return next((name for name, kind in KINDS.items() if kind.matches(path)), None)


def named_files() -> str:
    """The vocabulary files by which a tokenizer's folder is known, for messages."""
    return "tokenizer.json, vocab.json, vocab.txt or tokenizer.model"


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of a known kind."""
    return tokenizer_kind(folder) is not None


def tokenizer_path(path: str | os.PathLike[str]) -> Path:
    """The path at which a tokenizer is looked for: MindFormers' download for the name of a model, such as gpt2."""
    path = expanded_path(path)
    if not path.exists() and os.sep not in str(path) and holds_tokenizer(DOWNLOADS):
        return DOWNLOADS
    return path


def load_tokenizer(path: str | os.PathLike[str], **overrides: Any) -> BaseTokenizer:
    """Open a tokenizer folder, of whichever kind its files are.

    Args:
        path: the folder, or a file in it. Nothing is downloaded.
        overrides: arguments of the tokenizer's class that take precedence over the files, such as `pad_token`.

    Raises:
        UserError: there is no tokenizer of a known kind, it is broken, or its kind has no such argument.
    """
    path = tokenizer_path(path)
    kind = tokenizer_kind(path)
    if kind is not None:
        _check_arguments(kind, overrides, path)
        return KINDS[kind].open(path, **overrides)
    wanted = "; or ".join(f"{kind.wanted} ({name})" for name, kind in KINDS.items())
    if not path.exists():
        raise UserError(
            f"No tokenizer at {path}: there is no such folder. Give {wanted}; nothing is downloaded by name."
        )
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "no file"
    raise UserError(f"No tokenizer in {path}: found {shown}. Give {wanted}.")


def _check_arguments(kind: str, names: Iterable[str], path: Path) -> None:
    """Raise a UserError if the class of a kind has no argument of one of these names."""
    opens = KINDS[kind].open
    of_class = inspect.signature(getattr(opens, "__self__", opens)).parameters
    for name in names:
        if name not in of_class:
            known = ", ".join(key for key, one in of_class.items() if one.kind is one.KEYWORD_ONLY)
            raise UserError(
                f"{name}: {path} holds a tokenizer of the kind {kind}, which has no such argument. It has: {known}."
            )
