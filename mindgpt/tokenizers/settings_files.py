"""The settings files of a Hugging Face tokenizer folder: tokenizer_config.json, special_tokens_map.json and
added_tokens.json. Nothing in them is executed."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mindgpt.config.errors import UserError
from mindgpt.io.files import read_json
from mindgpt.tokenizers.special_tokens import SPECIAL_TOKEN_NAMES
from mindgpt.tokenizers.tokenizer import SIDES, one_of

SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
BERT_LIKE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "RetriBertTokenizer")
"""Names that transformers gives to BERT's tokenizer."""


def read_settings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of a tokenizer that a folder's settings give.

    Args:
        config: content of tokenizer_config.json.
        folder: where it lies.

    Returns:
        Any of the `SPECIAL_TOKEN_NAMES` (str), `additional_special_tokens` (list of str), `add_bos_token`,
        `add_eos_token` (bool), `padding_side`, `model_max_length`.

    Raises:
        UserError: a value is not allowed.
    """
    token_map = read_optional_dict(folder / "special_tokens_map.json")
    settings: dict[str, Any] = {}
    for name in SPECIAL_TOKEN_NAMES:
        if (token := token_named(name, config, folder)) is not None:
            settings[name] = token
    more = config.get("additional_special_tokens") or token_map.get("additional_special_tokens") or []
    place = f"{folder}: additional_special_tokens"
    if not isinstance(more, list):
        raise UserError(f"{place}: should be a list of tokens; it is {more!r}.")
    if more:
        settings["additional_special_tokens"] = [_token(token, place).content for token in more]
    for name in ("add_bos_token", "add_eos_token"):
        settings[name] = flag(config, name, folder)
    if config.get("padding_side") is not None:
        place = f"{folder / 'tokenizer_config.json'}: padding_side"
        settings["padding_side"] = one_of(place, config["padding_side"], SIDES)
    length = config.get("model_max_length")
    if isinstance(length, int) and 0 < length < 2**31:  # transformers writes 1e30 for "no limit"
        settings["model_max_length"] = length
    return settings


def token_named(name: str, config: dict[str, Any], folder: Path) -> str | None:
    """The token that tokenizer_config.json, or else special_tokens_map.json, gives under a name such as `cls_token`.

    Raises:
        UserError: it is not a token.
    """
    source, values = "tokenizer_config.json", config
    if name not in config:
        source = "special_tokens_map.json"
        values = read_optional_dict(folder / source)
    return None if values.get(name) is None else _token(values[name], f"{folder / source}: {name}").content


def flag(config: dict[str, Any], name: str, folder: Path) -> bool:
    """A boolean of tokenizer_config.json; False if it is missing. Raises UserError for another value."""
    return one_of(f"{folder / 'tokenizer_config.json'}: {name}", config.get(name) or False, (False, True))


def read_added_tokens(config: dict[str, Any], folder: Path) -> dict[int, AddedToken]:
    """The added tokens by id. tokenizer_config.json says more about a token than added_tokens.json, and so wins.

    Raises:
        UserError: an id or a token is malformed.
    """
    added = {}
    for token, number in read_optional_dict(folder / "added_tokens.json").items():
        added[_token_id(number, f"{folder / 'added_tokens.json'}: {token!r}")] = AddedToken(token)
    place = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{place}: should map ids to tokens.")
    for number, token in decoder.items():
        added[_token_id(number, place)] = _token(token, f"{place}.{number}")
    return added


def model_type(file: Path) -> str | None:
    """The kind of model in a tokenizer.json, such as "BPE"; None if it does not say, or is broken."""
    try:
        content = read_json(file)
    except UserError:
        return None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        return None
    if "type" not in model and "continuing_subword_prefix" in model and "merges" not in model:
        return "WordPiece"  # written before the type was
    return model.get("type")


def tokenizer_class(folder: Path) -> str | None:
    """The `tokenizer_class` of a folder's tokenizer_config.json or config.json, without "Fast"; None if it has none."""
    for name in ("tokenizer_config.json", "config.json"):
        try:
            found = read_optional_dict(folder / name).get("tokenizer_class")
        except UserError:
            continue
        if isinstance(found, str):
            return found.removesuffix("Fast")
    return None


def read_optional_dict(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file. Raises UserError for other content."""
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
