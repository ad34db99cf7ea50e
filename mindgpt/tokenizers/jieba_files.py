"""The files of a tokenizer of jieba's words and a tokenizer.json, as ModelScope's Chinese GPT-3 has from 1.3B on."""

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mindgpt.config.errors import UserError
from mindgpt.io.commented_json import read_commented_json
from mindgpt.io.files import PathLike, check_readable
from mindgpt.tokenizers.library_tokenizer import add_known_tokens
from mindgpt.tokenizers.settings_files import SETTINGS_FILES, read_added_tokens, read_optional_dict, read_settings
from mindgpt.tokenizers.special_tokens import END_OF_TEXT

FILES = ("tokenizer.json", "configuration.json")
WANTED = "a folder with tokenizer.json and ModelScope's configuration.json"
CLASS = "JiebaTokenizer"  # in the tokenizer_config.json that `save_pretrained` writes
SEPARATOR = "<sep>"
NEW_LINE = "\n"

_PREPROCESSOR = "text-gen-jieba-tokenizer"


def holds_jieba(path: Path) -> bool:
    """Whether a folder, or the folder of one of its files, holds such a tokenizer. A tokenizer.json does not tell: it
    takes our tokenizer_config.json, or ModelScope's configuration.json, that names jieba."""
    if path.is_file() and path.name not in (*SETTINGS_FILES, *FILES):
        return False
    folder = path.parent if path.is_file() else path
    if not (folder / "tokenizer.json").is_file():
        return False
    own = _class_in_settings(folder)
    if own is not None:
        return own == CLASS
    file = folder / "configuration.json"
    try:
        preprocessor = read_commented_json(file).get("preprocessor") if file.is_file() else None
    except UserError:  # `read_jieba` reports it
        return os.access(file, os.R_OK) and _PREPROCESSOR.encode() in file.read_bytes()
    return isinstance(preprocessor, dict) and preprocessor.get("type") == _PREPROCESSOR


def _class_in_settings(folder: Path) -> str | None:
    """The `tokenizer_class` of a folder's tokenizer_config.json; None if it has none, or is broken."""
    try:
        return read_optional_dict(folder / "tokenizer_config.json").get("tokenizer_class")
    except UserError:
        return None


def read_jieba(path: PathLike) -> tuple[Tokenizer, dict[str, Any]]:
    """Read the tokenizer.json of a folder, given by itself or by a file in it, and the settings beside it.

    Returns:
        The tokenizer of words, and arguments of `JiebaTokenizer`.

    Raises:
        UserError: a file is missing or broken, or a value is not allowed.
    """
    path = Path(path)
    folder = path.parent if path.is_file() else path
    backend = read_jieba_file(folder / "tokenizer.json")
    config = read_optional_dict(folder / "tokenizer_config.json")
    if "tokenizer_class" not in config and (folder / "configuration.json").is_file():
        read_commented_json(folder / "configuration.json")
    add_known_tokens(backend, read_added_tokens(config, folder), folder)
    settings = read_settings(config, folder)
    if settings.pop("add_bos_token") | settings.pop("add_eos_token"):
        raise UserError(f"{folder / 'tokenizer_config.json'}: {CLASS} puts no special tokens around a text.")
    if "split_at" in config:
        settings["split_at"] = config["split_at"]
    return backend, settings


def separator_id(tokenizer_file: Path) -> int | None:
    """The id of `<sep>` in a tokenizer.json; None if there is no such file or token. Loading the tokenizer reports what
    may be wrong with it."""
    if not tokenizer_file.is_file():
        return None
    try:
        return read_jieba_file(tokenizer_file).token_to_id(SEPARATOR)
    except UserError:
        return None


def read_jieba_file(file: PathLike) -> Tokenizer:
    """Read a tokenizer.json under any name, and no other file.

    Raises:
        UserError: the file is missing or broken, or it is of another kind of tokenizer.
    """
    check_readable(file)
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"{file}: not a tokenizer that can be read: {error}.") from error
    check_backend(backend, str(file))
    return backend


def check_backend(backend: Tokenizer, source: str) -> None:
    """Check that it is a tokenizer of words with ModelScope's special tokens.

    Raises:
        UserError: a token is missing, or it puts special tokens around a text.
    """
    wanted = (END_OF_TEXT, SEPARATOR, NEW_LINE)
    missing = [token for token in wanted if backend.token_to_id(token) is None]
    if missing:
        raise UserError(
            f"{source}: has no token {' and '.join(map(repr, missing))}. A tokenizer of ModelScope's GPT-3 has "
            f"{', '.join(map(repr, wanted))}. Is this the tokenizer.json of another model?"
        )
    if backend.num_special_tokens_to_add(False):
        raise UserError(
            f"{source}: its post-processor puts special tokens around a text, which ModelScope's GPT-3 does not have. "
            "Remove the post_processor."
        )
