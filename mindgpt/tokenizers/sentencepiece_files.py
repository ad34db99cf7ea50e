"""The files of a SentencePiece tokenizer: finding and opening the model, and the conventions that settings files name.

Which special tokens go around a text is no property of a SentencePiece model. It follows, the first that applies:
1. `add_bos_token` and `add_eos_token` of tokenizer_config.json;
2. its `tokenizer_class`: `<s> A` for Llama and Gemma, `A </s>` for T5;
3. a `cls_token` and a `sep_token`, in tokenizer_config.json or special_tokens_map.json: `[CLS] A [SEP]`, or
   `[CLS] A [SEP] B [SEP]` for two texts, as BERT. UER-py's `--spm_model_path` with `--tokenizer bert` means this;
4. nothing is put around a text, as by the sentencepiece package itself.
"""

import importlib
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mindgpt.config.errors import UserError
from mindgpt.io.files import PathLike, open_to_read
from mindgpt.tokenizers.settings_files import (
    SETTINGS_FILES,
    flag,
    read_added_tokens,
    read_optional_dict,
    read_settings,
    token_named,
)

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
WANTED = "a folder with a SentencePiece model (tokenizer.model or spiece.model)"

_OTHER_KINDS = ("tokenizer.json", "vocab.json", "vocab.txt")
_FIRST_BYTE = b"\n"  # of a serialized model: its first field is a piece. The tokenizer.model of tiktoken is text.

_AROUND_TEXT = {  # transformers' class -> bos before a text, eos after it
    "LlamaTokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "T5Tokenizer": (False, True),
}
_OTHER_IDS = frozenset(
    ["AlbertTokenizer", "BarthezTokenizer", "CamembertTokenizer", "CpmTokenizer", "FNetTokenizer", "M2M100Tokenizer"]
    + ["MBartTokenizer", "MBart50Tokenizer", "NllbTokenizer", "PegasusTokenizer", "PLBartTokenizer", "RemBertTokenizer"]
    + ["XGLMTokenizer", "XLMRobertaTokenizer", "XLNetTokenizer"]
)
"""Classes of transformers whose ids are not those of the model: they shift them, or rewrite the text before it."""


def holds_sentencepiece(path: Path) -> bool:
    """Whether a folder, or the folder of a settings file, holds a SentencePiece model; or whether a file may be one.

    By the names: `open_model` reports what is wrong with the content. Beside the files of another kind of tokenizer a
    model must also begin as one.
    """
    if path.is_file() and path.name not in SETTINGS_FILES:
        return path.suffix == ".model"
    folder = path.parent if path.is_file() else path
    file = model_in(folder)
    if file is None:
        return False
    return not any((folder / name).exists() for name in _OTHER_KINDS) or _begins_as_model(file)


def model_in(folder: Path) -> Path | None:
    """The model of a folder, under one of the usual `FILES`."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def model_at(path: Path) -> tuple[Path, Path]:
    """A tokenizer's folder and its model, by the folder or a file in it. Raises UserError if there is none."""
    if path.is_file() and path.name not in SETTINGS_FILES:
        return path.parent, path
    folder = path.parent if path.is_file() else path
    file = model_in(folder)
    if file is None:
        raise UserError(f"No tokenizer in {folder}: {' and '.join(FILES[:2])} missing. Give {WANTED}.")
    return folder, file


def _begins_as_model(file: Path) -> bool:
    try:
        with open(file, "rb") as content:
            return content.read(1) == _FIRST_BYTE
    except OSError:
        return False


def read_model(file: PathLike) -> bytes:
    """The content of a model's file. Raises UserError if it cannot be read."""
    if Path(file).is_dir():
        raise UserError(f"{file} is a folder; SentencePieceTokenizer.from_pretrained opens it.")
    with open_to_read(file) as content:
        return content.read()


def open_model(model: bytes, source: PathLike) -> Any:
    """A `sentencepiece.SentencePieceProcessor`.

    Args:
        model: a serialized SentencePiece model.
        source: what to call it in messages.

    Raises:
        UserError: the package `sentencepiece` is not installed, or this is no such model.
    """
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise UserError(
            f"{source} is a SentencePiece model, for which the package sentencepiece is needed: "
            "pip install sentencepiece."
        ) from error
    try:
        if not model.startswith(_FIRST_BYTE):  # empty, for instance, which the package takes for a model
            raise ValueError
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # RuntimeError of some kind
        raise UserError(f"{source} is not a SentencePiece model, or not a whole one.") from error


def read_sentencepiece(path: PathLike) -> tuple[Path, dict[str, Any]]:
    """The model's file, and the arguments of `SentencePieceTokenizer` that the settings beside it give.

    Args:
        path: a tokenizer folder, or a file in it.

    Raises:
        UserError: there is no model, a settings file is broken, or it names a class that gives other ids.
    """
    folder, file = model_at(Path(path))
    config = read_optional_dict(folder / "tokenizer_config.json")
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if kind in _OTHER_IDS:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {kind}, which does not give a text the ids of its "
            "SentencePiece model (it shifts them, or rewrites the text first). mindgpt has no such tokenizer."
        )
    settings = read_settings(config, folder)
    first, last, mask = (token_named(name, config, folder) for name in ("cls_token", "sep_token", "mask_token"))
    bos, eos = _AROUND_TEXT.get(kind, (False, False))
    as_bert = kind not in _AROUND_TEXT and first is not None and last is not None
    if as_bert:
        settings.setdefault("bos_token", first)
        settings.setdefault("eos_token", last)
        bos = eos = True
    settings["pairs_as_bert"] = as_bert
    for name, default in (("add_bos_token", bos), ("add_eos_token", eos)):
        settings[name] = flag(config, name, folder) if config.get(name) is not None else default
    settings["added_tokens"] = _added_tokens(config, folder)
    more = [*settings.get("additional_special_tokens", []), *([mask] if mask else [])]
    settings["additional_special_tokens"] = more
    settings["tokenizer_class"] = kind or None
    return file, settings


def _added_tokens(config: dict[str, Any], folder: Path) -> dict[int, AddedToken]:
    added = read_added_tokens(config, folder)
    if config.get("extra_ids") and not added:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: extra_ids {config['extra_ids']}: the ids of these tokens are not in "
            "the file (added_tokens_decoder). Save the folder again with a newer version of transformers."
        )
    return added


def model_source(file: PathLike | None) -> str:
    """What to call a model in messages."""
    return os.fspath(file) if file is not None else "The given model"
