"""The vocabulary files of a byte-level BPE tokenizer (GPT-2's kind), read into a `tokenizers.Tokenizer` and checked.

Files that do not belong together are refused, with file and line: a vocabulary with the wrong merges would give ids
that look right and mean something else.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mindgpt.config.errors import UserError
from mindgpt.io.files import DOWNLOADS, PathLike, read_json, read_lines
from mindgpt.tokenizers.library_tokenizer import add_known_tokens
from mindgpt.tokenizers.settings_files import (
    BERT_LIKE,
    SETTINGS_FILES,
    flag,
    model_type,
    read_added_tokens,
    read_optional_dict,
    read_settings,
    tokenizer_class,
)

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
# Bytes that occur in no UTF-8 text, so a vocabulary may lack them.
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_VISIBLE))
BYTE_SYMBOLS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""GPT-2's spelling of each byte: its Latin-1 character if that is visible, else a character from 256 on."""

logger = logging.getLogger(__name__)


def read_tokenizer(path: PathLike) -> tuple[Tokenizer, dict[str, Any]]:
    """Read a folder with tokenizer.json, which is preferred, or with vocab.json and merges.txt.

    If a file is named instead of its folder, that file is read, with its partner (`gpt2-merges.txt` for
    `gpt2-vocab.json`) and the settings beside it.

    Returns:
        The tokenizer, and the settings that lie beside it; see `read_settings`.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    folder, files = _files_at(Path(path))
    config = read_optional_dict(folder / "tokenizer_config.json")
    if len(files) == 1:
        backend = _backend_from_json(files[0])
    else:
        backend = _backend_from_pair(files[0], files[1], flag(config, "add_prefix_space", folder))
    add_known_tokens(backend, read_added_tokens(config, folder), folder)
    _warn_of_missing_bytes(backend, folder)
    return backend, read_settings(config, folder)


def read_tokenizer_files(
    vocab_file: PathLike | None, merges_file: PathLike | None, tokenizer_file: PathLike | None
) -> Tokenizer:
    """Read the named files and no other: a vocabulary and its merges, or a tokenizer.json.

    Raises:
        UserError: neither or both are named, a file is missing or broken, or the files do not belong together.
    """
    pair = [Path(file) for file in (vocab_file, merges_file) if file]
    if len(pair) == 1 or bool(pair) == bool(tokenizer_file):
        raise UserError(
            "A tokenizer is read from vocab_file and merges_file together, or from tokenizer_file. "
            "GPT2Tokenizer.from_pretrained opens a folder."
        )
    for name, file in (("vocab_file", vocab_file), ("merges_file", merges_file), ("tokenizer_file", tokenizer_file)):
        if file and Path(file).is_dir():
            raise UserError(f"{name}: {file} is a folder; GPT2Tokenizer.from_pretrained opens it.")
    if tokenizer_file:
        backend = _backend_from_json(Path(tokenizer_file))
    else:
        backend = _backend_from_pair(pair[0], pair[1], add_prefix_space=False)
    _warn_of_missing_bytes(backend, tokenizer_file or pair[0])
    return backend


WANTED = "a folder with tokenizer.json, or with vocab.json and merges.txt"


def holds_byte_level_bpe(path: Path) -> bool:
    """Whether a folder, or the folder of a settings file, holds such a tokenizer; or whether a file may be part of one.
    By the names: `read_tokenizer` reports what is wrong with the content."""
    if path.is_file() and path.name not in SETTINGS_FILES:
        if path.suffix == ".json":
            return model_type(path) != "WordPiece"
        return path.suffix == ".bpe" or path.suffix == ".txt" and "merges" in path.name
    folder = path.parent if path.is_file() else path
    if (folder / "tokenizer.json").is_file():
        return model_type(folder / "tokenizer.json") != "WordPiece"
    if (folder / "vocab.txt").exists() and tokenizer_class(folder) in BERT_LIKE:
        return False
    return (folder / "vocab.json").exists()


def _files_at(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """A tokenizer's folder, and its vocabulary files: a tokenizer.json, or a vocabulary and its merges."""
    if path.is_file() and path.name not in SETTINGS_FILES:
        return path.parent, _files_named(path)
    folder = path.parent if path.is_file() else path
    if not folder.exists() and os.sep not in str(path) and holds_byte_level_bpe(DOWNLOADS):
        folder = DOWNLOADS  # for the name of a model, such as gpt2
    if not folder.is_dir():
        raise UserError(
            f"No tokenizer at {path}: there is no such folder. Give {WANTED}; nothing is downloaded by name."
        )
    if (folder / "tokenizer.json").is_file():
        return folder, (folder / "tokenizer.json",)
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"No tokenizer in {folder}: {' and '.join(missing)} missing. Give {WANTED}.")
    return folder, (folder / "vocab.json", folder / "merges.txt")


def _files_named(file: Path) -> tuple[Path, ...]:
    """A tokenizer.json under any name, or a vocabulary and the merges whose names go together."""
    name = file.name
    if name in ("encoder.json", "vocab.bpe"):  # OpenAI's names
        pair = file.with_name("encoder.json"), file.with_name("vocab.bpe")
    elif "vocab" in name and file.suffix == ".json":
        pair = file, file.with_name(name.replace("vocab", "merges")).with_suffix(".txt")
    elif "merges" in name and file.suffix == ".txt":
        pair = file.with_name(name.replace("merges", "vocab")).with_suffix(".json"), file
    elif file.suffix == ".json":
        return (file,)
    else:
        raise UserError(f"{file} is not a file of a GPT-2 tokenizer. Give {WANTED}.")
    for part in pair:
        if not part.is_file():
            raise UserError(
                f"No tokenizer at {file}: {part} is missing. Two files of other names are given as vocab_file and "
                "merges_file (processor.tokenizer in the YAML)."
            )
    return pair


def byte_level(model: models.BPE, add_prefix_space: bool) -> Tokenizer:
    """A BPE model with GPT-2's splitting into words and its spelling of bytes."""
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _backend_from_json(path: Path) -> Tokenizer:
    content = read_json(path)
    parts = content if isinstance(content, dict) else {}
    model = parts.get("model")
    spells_bytes = "ByteLevel" in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not spells_bytes:
        raise UserError(f"{path}: this is not a byte-level BPE tokenizer, the kind that GPT-2 has.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"{path}: not a tokenizer that can be read: {error}.") from error


def _backend_from_pair(vocab_file: Path, merges_file: Path, add_prefix_space: bool) -> Tokenizer:
    vocab = _read_vocab(vocab_file)
    merges = _read_merges(merges_file, vocab, vocab_file)
    return byte_level(models.BPE(vocab=vocab, merges=merges), add_prefix_space)


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = read_json(path)
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(f"{path}: should hold a JSON object that gives every token its id.")
    owner: dict[int, str] = {}
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise UserError(f"{path}: token {token!r}: a token id is a whole number from 0; it is {number!r}.")
        if number in owner:
            raise UserError(f"{path}: tokens {owner[number]!r} and {token!r} have the same id {number}.")
        owner[number] = token
    return vocab


def _read_merges(path: Path, vocab: dict[str, int], vocab_file: Path) -> list[tuple[str, str]]:
    """The merges in order; a last line without a line end counts like any other."""
    merges = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path}:{number}: a merge is two tokens with one space between; the line is {line!r}.")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise UserError(
                    f"{path}:{number}: token {token!r} is not in {vocab_file}. "
                    "Vocabulary and merges do not belong together."
                )
        merges.append((pair[0], pair[1]))
    return merges


def _warn_of_missing_bytes(backend: Tokenizer, place: PathLike) -> None:
    """Warn of bytes that the vocabulary lacks: BPE drops them silently."""
    missing = [b for b in range(256) if b not in NOT_IN_UTF8 and backend.token_to_id(BYTE_SYMBOLS[b]) is None]
    if missing:
        some = ", ".join(f"0x{byte:02x}" for byte in missing[:5])
        logger.warning(
            "The vocabulary in %s lacks %d of the 256 bytes (%s...), which are dropped from texts.",
            place,
            len(missing),
            some,
        )
