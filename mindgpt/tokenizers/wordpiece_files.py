"""The files of a WordPiece tokenizer (BERT's kind): its vocabulary and its settings, read and checked."""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from mindgpt.config.errors import UserError
from mindgpt.io.files import PathLike, read_text_exactly
from mindgpt.tokenizers.settings_files import (
    BERT_LIKE,
    SETTINGS_FILES,
    model_type,
    read_added_tokens,
    read_optional_dict,
    read_settings,
    token_named,
    tokenizer_class,
)
from mindgpt.tokenizers.tokenizer import one_of

FILES = ("vocab.txt", "tokenizer.json")
WANTED = "a folder with vocab.txt"
PREFIX = "##"  # of a token that continues a word
RULES = ("transformers", "uer", "bert4keras", "gpt2_ml")
WITHOUT_SPECIAL_TOKENS = ("bert4keras", "gpt2_ml")  # rules by which no special tokens go around a text
# Names that config files give to a tokenizer of this kind. GPT2Tokenizer: the model's name, taken for the tokenizer's.
_CLASSES = ("WordPieceTokenizer", "PreTrainedTokenizer", "TokenizersBackend", "AutoTokenizer", "GPT2Tokenizer")
_AS_IN_BERT = {"do_basic_tokenize": True, "clean_text": True, "wordpieces_prefix": PREFIX}
NAMES = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
MASK = "[MASK]"
_FLAGS = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")

logger = logging.getLogger(__name__)


class WordPieceFiles(NamedTuple):
    """What the files of a tokenizer hold.

    Attributes:
        vocab: token -> id. Blank lines of vocab.txt are ids without a token.
        backend: the tokenizer of a tokenizer.json; None for a vocab.txt.
        added: tokens beside the vocabulary, by id.
        settings: arguments of `WordPieceTokenizer`.
        place: file or folder, for messages.
    """

    vocab: dict[str, int]
    backend: Tokenizer | None
    added: dict[int, AddedToken]
    settings: dict[str, Any]
    place: Path


def holds_wordpiece(path: Path) -> bool:
    """Whether a folder, or the folder of a settings file, holds such a tokenizer; or whether a file is its vocabulary.

    A tokenizer.json says what kind it is. A vocab.txt is of this kind, unless files of a byte-level BPE tokenizer lie
    beside it and no `tokenizer_class` says that it is BERT's.
    """
    if path.is_file() and path.name not in SETTINGS_FILES:
        if path.suffix == ".json":
            return model_type(path) == "WordPiece"
        return path.suffix == ".txt" and "merges" not in path.name
    folder = path.parent if path.is_file() else path
    if (folder / "tokenizer.json").is_file():
        return model_type(folder / "tokenizer.json") == "WordPiece"
    if not (folder / "vocab.txt").exists():
        return False
    return not (folder / "vocab.json").exists() or tokenizer_class(folder) in BERT_LIKE


def read_wordpiece(path: Path) -> WordPieceFiles:
    """Read a folder with tokenizer.json, which is preferred, or vocab.txt. If a file is named instead, that file is
    read; the settings files beside it count if it has one of the usual names.

    Raises:
        UserError: a file is missing or broken, or the files do not belong together.
    """
    if path.is_file() and path.name not in (*SETTINGS_FILES, *FILES):
        return read_wordpiece_file(path)
    folder = path if path.is_dir() else path.parent
    config = read_optional_dict(folder / "tokenizer_config.json")
    _check_class(config.get("tokenizer_class"), folder / "tokenizer_config.json")
    source = path if path.name in FILES and path.is_file() else folder / "tokenizer.json"
    vocab_file = folder / "vocab.txt"
    if source.name == "vocab.txt" or not source.is_file():
        read = WordPieceFiles(read_vocab(vocab_file), None, {}, {}, vocab_file)
    else:
        read = read_wordpiece_file(source)
        if vocab_file.is_file() and source.parent == folder:
            _check_same(read.vocab, read_vocab(vocab_file), source, vocab_file)
    settings = {**read.settings, **_read_arguments(config, folder)}
    return read._replace(added={**read.added, **read_added_tokens(config, folder)}, settings=settings)


def read_wordpiece_file(file: Path) -> WordPieceFiles:
    """Read a vocabulary (one token a line), or a tokenizer.json under any name, and no other file.

    Raises:
        UserError: the file is missing or broken.
    """
    if file.suffix != ".json":
        return WordPieceFiles(read_vocab(file), None, {}, {}, file)
    if model_type(file) != "WordPiece":
        raise UserError(f"{file}: this is not a WordPiece tokenizer, the kind that BERT has.")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"{file}: not a tokenizer that can be read: {error}.") from error
    model = json.loads(backend.to_str())["model"]
    if model.get("continuing_subword_prefix") != PREFIX:
        raise UserError(f"{file}: model.continuing_subword_prefix: only {PREFIX!r} is supported.")
    settings = {"unk_token": model["unk_token"]}
    return WordPieceFiles(model["vocab"], backend, backend.get_added_tokens_decoder(), settings, file)


def read_vocab(path: PathLike) -> dict[str, int]:
    r"""The tokens of a vocab.txt; a token's id is the number of its line, from 0.

    Lines end with "\n" (or "\r\n") and nothing else: U+2028 is a token of the vocabulary of Chinese BERT. A token that
    occurs twice has the id of its last line, as in transformers and UER-py.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or holds no token.
    """
    lines = read_text_exactly(path).split("\n")
    tokens = [line.rstrip("\r\t ") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    if not tokens:
        raise UserError(f"{path}: the vocabulary is empty; it should hold one token a line.")
    vocab: dict[str, int] = {}
    blank, repeated = [], []
    for number, token in enumerate(tokens):
        if not token:
            blank.append(number + 1)
        elif token in vocab:
            repeated.append(f"{token!r} (lines {vocab[token] + 1} and {number + 1})")
        if token:
            vocab[token] = number
    if blank:
        logger.warning("%s: %s blank: these ids have no token. %s", path, _lines(blank), "Later tokens keep their ids.")
    if repeated:
        logger.warning(
            "%s: %d token(s) occur twice, and the last line gives the id: %s.", path, len(repeated), _some(repeated)
        )
    return vocab


def _lines(numbers: list[int]) -> str:
    return f"line {numbers[0]} is" if len(numbers) == 1 else f"lines {_some(list(map(str, numbers)))} are"


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")


def _check_class(name: Any, place: Path) -> None:
    """Refuse the class of another kind of tokenizer that has a vocab.txt, such as one that uses jieba first."""
    if name is not None and str(name).removesuffix("Fast") not in (*_CLASSES, *BERT_LIKE):
        raise UserError(
            f"{place}: tokenizer_class is {name!r}, whose ids mindgpt does not give. If the tokenizer is BERT's, set "
            "it to BertTokenizer."
        )


def _check_same(first: dict[str, int], second: dict[str, int], first_file: Path, second_file: Path) -> None:
    first = {token.rstrip(): number for token, number in first.items()}  # as the library writes U+2028
    for token, number in second.items():
        found = first.get(token.rstrip())
        if found != number:
            raise UserError(
                f"{second_file}:{number + 1}: token {token!r} has id {number} here and {found} in "
                f"{first_file.name}. The files do not belong together; remove the one that is wrong."
            )


def _read_arguments(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of `WordPieceTokenizer` that the settings files give."""
    place = folder / "tokenizer_config.json"
    settings = read_settings(config, folder)
    for name in ("add_bos_token", "add_eos_token"):
        if settings.pop(name):
            raise UserError(f"{place}: {name}: this kind of tokenizer puts [CLS] and [SEP] around a text.")
    for role, name in (("bos_token", "cls_token"), ("eos_token", "sep_token"), ("mask_token", "mask_token")):
        token = token_named(name, config, folder)
        if token is not None:
            settings[role] = token
    for name in _FLAGS:
        if config.get(name) is not None:
            settings[name] = one_of(f"{place}: {name}", config[name], (False, True))
    for name, value in _AS_IN_BERT.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"{place}: {name}: only {value!r} is supported; it is {config[name]!r}.")
    if config.get("rules") is not None:
        settings["rules"] = one_of(f"{place}: rules", config["rules"], RULES)
    words = config.get("never_split") or []
    special = {*(value for value in settings.values() if isinstance(value, str)), *NAMES.values(), MASK}
    special |= {*settings.get("additional_special_tokens", ())}
    others = [word for word in words if word not in special] if isinstance(words, list) else [words]
    if others:
        raise UserError(
            f"{place}: never_split: {json.dumps(others[0], ensure_ascii=False)} is no special token. Name words that "
            "are tokens in additional_special_tokens."
        )
    return settings


def special_tokens_of(files: WordPieceFiles, named: dict[str, str | None]) -> dict[str, str | None]:
    """The special token of each role: the named one, or BERT's. `pad_token` is None if the vocabulary lacks `[PAD]`.

    Raises:
        UserError: the vocabulary lacks BERT's token or one that the files name, or any token for unknown words. Others
            that are named may be new.
    """
    known = {*files.vocab, *(token.content for token in files.added.values())}
    tokens = {role: named.get(role) or NAMES[role] for role in NAMES}
    own = [role for role in ("bos_token", "eos_token") if named.get(role) in (None, files.settings.get(role))]
    missing = [tokens["unk_token"]] if tokens["unk_token"] not in files.vocab else []
    missing += [tokens[role] for role in own if tokens[role] not in known]
    if missing:
        raise UserError(
            f"{files.place}: {', '.join(missing)} not in the vocabulary of {len(files.vocab)} tokens "
            f"({_some(list(map(repr, files.vocab)))}). A WordPiece vocabulary holds one token a line, among them "
            "[PAD], [UNK], [CLS] and [SEP]; other names are given as unk_token, bos_token and eos_token."
        )
    has_padding = named.get("pad_token") or tokens["pad_token"] in known
    return {**tokens, "pad_token": tokens["pad_token"] if has_padding else None}


def resolve_flags(
    files: WordPieceFiles,
    lower_case: bool | None,
    strip_accents: bool | None,
    chinese_characters: bool | None,
    rules: str,
) -> tuple[bool | None, bool | None, bool | None]:
    """The three flags of BERT's rules: the given ones, or a tokenizer.json's, or BERT's. All None: the rules of the
    tokenizer.json are not BERT's.

    Raises:
        UserError: a flag is given for rules that do not have it.
    """
    given = {"do_lower_case": lower_case, "strip_accents": strip_accents, "tokenize_chinese_chars": chinese_characters}
    said = [name for name, value in given.items() if value is not None]
    normalizer = None if files.backend is None else files.backend.normalizer
    if rules != "transformers":
        fixed = {"strip_accents": lower_case is not False, "tokenize_chinese_chars": True}
        other = next((name for name in fixed if name in said and given[name] != fixed[name]), None)
        if other:
            raise UserError(f"{files.place}: {other}: {given[other]} is not possible with rules: {rules}.")
    elif files.backend is not None and not _is_bert(files.backend):
        if said:
            raise UserError(
                f"{files.place}: the rules of this tokenizer.json are not BERT's, so {said[0]} cannot be set."
            )
        return None, None, None
    own: tuple[bool | None, bool | None, bool | None]
    if isinstance(normalizer, normalizers.BertNormalizer):
        own = (normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars)
    else:
        own = (True, None, True)
    flags = [mine if value is None else value for mine, value in zip(own, given.values(), strict=True)]
    _warn_of_capitals(files, bool(flags[0]))
    return flags[0], flags[1], flags[2]


def _is_bert(backend: Tokenizer) -> bool:
    """Whether a tokenizer.json has BERT's rules, so that it can be made anew from its vocabulary."""
    return (
        isinstance(backend.normalizer, normalizers.BertNormalizer)
        and backend.normalizer.clean_text
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
    )


def _warn_of_capitals(files: WordPieceFiles, lower_case: bool) -> None:
    """Say what it costs to read capitals with a vocabulary that has none."""
    words = (token for token in files.vocab if not token.startswith(("[", "<")))
    if not lower_case and not any(any(map(str.isupper, word)) for word in words):
        _warn_once(
            f"{files.place}: do_lower_case is False, but no token of the vocabulary has a capital letter: every word "
            f"with one becomes {NAMES['unk_token']}. If that is not meant, set do_lower_case to true."
        )


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
