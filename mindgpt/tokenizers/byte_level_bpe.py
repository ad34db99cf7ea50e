"""The files of a byte-level BPE tokenizer (GPT-2's kind), read into a `tokenizers.Tokenizer` and checked.

Nothing in the files is executed. What does not fit together is refused with the file's name and, where there is one,
the line: a vocabulary with the wrong merges would give ids that look right and mean something else.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mindgpt.config.errors import UserError
from mindgpt.io.files import DOWNLOADS, PathLike, read_json, read_lines

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Bytes that occur in no UTF-8 text; a vocabulary may lack them without losing anything.
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = sorted(set(range(256)) - set(_VISIBLE))
BYTE_SYMBOLS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""How GPT-2's vocabulary spells each byte: as itself if it is visible in Latin-1, else by a character from 256 on."""

logger = logging.getLogger(__name__)


def read_tokenizer(path: PathLike) -> tuple[Tokenizer, dict[str, Any]]:
    """Read a folder with tokenizer.json (taken first), or with vocab.json and merges.txt.

    A file named instead of its folder is the one that is read, with its partner (`gpt2-merges.txt` for
    `gpt2-vocab.json`) and the settings beside it.

    Returns:
        the tokenizer, and the settings found in tokenizer_config.json and special_tokens_map.json: any of the
        `SPECIAL_TOKEN_NAMES` (str), `additional_special_tokens`, `add_bos_token`, `add_eos_token` (bool),
        `padding_side`, `model_max_length`.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    folder, files = _files_at(Path(path))
    config = _read_optional_dict(folder / "tokenizer_config.json")
    if len(files) == 1:
        backend = _backend_from_json(*files)
    else:
        backend = _backend_from_pair(*files, _flag(config, "add_prefix_space", folder))
    _add_tokens(backend, _added_tokens(config, folder), folder)
    _warn_of_missing_bytes(backend, folder)
    return backend, _settings(config, folder)


def read_tokenizer_files(
    vocab_file: PathLike | None, merges_file: PathLike | None, tokenizer_file: PathLike | None
) -> Tokenizer:
    """Read files under the names given, and no other: a vocabulary and its merges, or a tokenizer.json.

    Raises:
        UserError: neither or both are named, a file is missing or broken, or the files do not belong together.
    """
    pair = [file for file in (vocab_file, merges_file) if file]
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
        backend = _backend_from_pair(Path(vocab_file), Path(merges_file), add_prefix_space=False)
    _warn_of_missing_bytes(backend, tokenizer_file or vocab_file)
    return backend


def holds_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer to read in a folder; `read_tokenizer` says what may be wrong with it."""
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json"))


_WANTED = "a folder with tokenizer.json, or with vocab.json and merges.txt"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def _files_at(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """A tokenizer's folder, and the files in it that hold the vocabulary: one, or a vocabulary and its merges."""
    if path.is_file() and path.name not in _SETTINGS:
        return path.parent, _files_named(path)
    folder = path.parent if path.is_file() else path
    if not folder.exists() and os.sep not in str(path) and holds_tokenizer(DOWNLOADS):
        folder = DOWNLOADS  # of a model's name, such as gpt2
    if not folder.is_dir():
        raise UserError(
            f"No tokenizer at {path}: there is no such folder. Give {_WANTED}; nothing is downloaded by name."
        )
    if (folder / "tokenizer.json").is_file():
        return folder, (folder / "tokenizer.json",)
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"No tokenizer in {folder}: {' and '.join(missing)} missing. Give {_WANTED}.")
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
        raise UserError(f"{file} is no file of a GPT-2 tokenizer. Give {_WANTED}.")
    for part in pair:
        if not part.is_file():
            raise UserError(
                f"No tokenizer at {file}: {part} is missing. Two files of other names are given as vocab_file and "
                "merges_file (processor.tokenizer in the YAML)."
            )
    return pair


def _settings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    token_map = _read_optional_dict(folder / "special_tokens_map.json")
    settings: dict[str, Any] = {}
    for name in SPECIAL_TOKEN_NAMES:
        source, values = ("tokenizer_config.json", config) if name in config else ("special_tokens_map.json", token_map)
        if values.get(name) is not None:
            settings[name] = _token(values[name], f"{folder / source}: {name}").content
    more = config.get("additional_special_tokens") or token_map.get("additional_special_tokens") or []
    place = f"{folder}: additional_special_tokens"
    if not isinstance(more, list):
        raise UserError(f"{place}: should be a list of tokens; it is {more!r}.")
    if more:
        settings["additional_special_tokens"] = [_token(token, place).content for token in more]
    for name in ("add_bos_token", "add_eos_token"):
        settings[name] = _flag(config, name, folder)
    if config.get("padding_side") is not None:
        place = f"{folder / 'tokenizer_config.json'}: padding_side"
        settings["padding_side"] = one_of(place, config["padding_side"], ("right", "left"))
    length = config.get("model_max_length")
    if isinstance(length, int) and 0 < length < 2**31:  # transformers writes 1e30 for "no limit"
        settings["model_max_length"] = length
    return settings


def _flag(config: dict[str, Any], name: str, folder: Path) -> bool:
    return one_of(f"{folder / 'tokenizer_config.json'}: {name}", config.get(name) or False, (False, True))


def _added_tokens(config: dict[str, Any], folder: Path) -> dict[int, AddedToken]:
    """The added tokens by id; tokenizer_config.json says more about a token than added_tokens.json, so it wins."""
    added = {}
    for token, number in _read_optional_dict(folder / "added_tokens.json").items():
        added[_token_id(number, f"{folder / 'added_tokens.json'}: {token!r}")] = AddedToken(token)
    place = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{place}: should map ids to tokens.")
    for number, token in decoder.items():
        added[_token_id(number, place)] = _token(token, f"{place}.{number}")
    return added


def _read_optional_dict(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object ({{...}}), not a {type(value).__name__}.")
    return value


def _token(value: Any, place: str) -> AddedToken:
    """A token from its JSON form: a string, or an object with `content` and how it is to be matched."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return AddedToken(value["content"], **{flag: bool(value[flag]) for flag in flags if flag in value})
    raise UserError(f"{place}: should be a token (a string, or an object with `content`); it is {value!r}.")


def _token_id(value: Any, place: str) -> int:
    if isinstance(value, (str, int)) and str(value).isdecimal():
        return int(value)
    raise UserError(f"{place}: a token id is a whole number from 0; it is {value!r}.")


def byte_level(model: models.BPE, add_prefix_space: bool) -> Tokenizer:
    """GPT-2's cutting into words and spelling of bytes, round a BPE model."""
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


def _add_tokens(backend: Tokenizer, added: dict[int, AddedToken], folder: Path) -> None:
    """Add the tokens of the side files in order of their ids, and see to it that they get those ids."""
    for number, token in sorted(added.items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise UserError(
                f"{folder}: the added token {token.content!r} should have id {number} but gets "
                f"{backend.token_to_id(token.content)}. Vocabulary and added tokens do not belong together."
            )


def _warn_of_missing_bytes(backend: Tokenizer, place: PathLike) -> None:
    """BPE without the symbol of a byte drops that byte without a word; so there is a word here."""
    missing = [b for b in range(256) if b not in NOT_IN_UTF8 and backend.token_to_id(BYTE_SYMBOLS[b]) is None]
    if missing:
        some = ", ".join(f"0x{byte:02x}" for byte in missing[:5])
        logger.warning(
            "The vocabulary in %s lacks %d of the 256 bytes (%s...): text that needs them loses them.",
            place,
            len(missing),
            some,
        )


def one_of(name: str, value: Any, allowed: tuple) -> Any:
    """`value`, if it is one of the allowed ones (True is not 1 here); a UserError that lists them if not."""
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}.")
    return value
