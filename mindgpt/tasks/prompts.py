"""The inputs of a prediction: texts that the command line names, and the tokenizer of the weights; its progress bar."""

import glob
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mindgpt.config.arguments import text_or_path
from mindgpt.config.data_sections import TokenizerSection
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.config.section import shown
from mindgpt.data.json_values import begins_as_json, json_values
from mindgpt.data.parquet_rows import parquet_columns
from mindgpt.data.records import Record, checked_text, kind_by_name, listed, table_records, text_of
from mindgpt.data.text import TEXT_SUFFIXES, input_files
from mindgpt.io.compression import text_suffix
from mindgpt.io.files import DOWNLOADS, read_lines
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.weights_files import weights_path
from mindgpt.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.loading import (
    KINDS,
    holds_tokenizer,
    load_tokenizer,
    named_files,
    tokenizer_kind,
    tokenizer_path,
)
from mindgpt.tokenizers.special_tokens import END_OF_TEXT, SPECIAL_TOKEN_NAMES
from mindgpt.tokenizers.tokenizer import BaseTokenizer
from mindgpt.tokenizers.wordpiece_files import read_wordpiece_file
from mindgpt.tokenizers.wordpiece_tokenizer import WordPieceTokenizer

BATCH_SIZE = 8
_KEYS = ("prompt", "text")
_SUFFIXES = (*TEXT_SUFFIXES, ".csv", ".tsv")  # of what is a file, not a text


class Prompt(NamedTuple):
    """A text, and what to call it in messages: its beginning, or file and line."""

    text: str
    name: str


def read_prompts(predict_data: list[str], called: str = "--predict_data") -> list[Prompt]:
    """The texts that `--predict_data` names. A file stands for its lines that are not blank; a JSON file (a list, or
    consecutive values) for each text in it and the `prompt` or `text` of each object; a table for that column;
    a folder for its .txt, .json, .jsonl, .ndjson and .parquet files; a pattern (`data/*.txt`) for the files that it
    matches; anything else for itself. Files that end in .gz or .zst are unpacked as they are read. Prints a line about
    words that may have been meant the other way.

    Args:
        called: what messages call the words.

    Raises:
        UserError: nothing is named, a file is not there, holds no prompt or is not UTF-8, or a prompt is empty.
    """
    if not predict_data:
        raise UserError(
            'run_mode predict needs prompts: --predict_data "a text" ["a text" ...], or a file, one prompt a line'
        )
    prompts = []
    for word in map(text_or_path, predict_data):
        if _exists(word):
            if Path(word).is_dir():
                say(f"{called}: {word} is a folder: its {', '.join(TEXT_SUFFIXES)} files are read")
            prompts += _prompts_of(input_files([word]), word, called)
        elif _is_pattern(word) and (files := _files_matching(word)):
            say(f"{called}: {word} is a pattern: {len(files)} file(s) are read")
            prompts += _prompts_of(files, word, called)
        elif text_suffix(word.lower()) in _SUFFIXES and not any(map(str.isspace, word)):
            none = "no file matches" if glob.has_magic(word) else "there is no file"
            raise UserError(f"{called}: {none} {word} (looked from {Path.cwd()})")
        elif not word.strip():
            raise UserError(f"{called}: an empty text is no prompt")
        else:
            if text_suffix(word.lower()) in _SUFFIXES or os.sep in word and not any(map(str.isspace, word)):
                say(f"{called}: there is no file or folder {shown(word)}: it is taken for a text")
            prompts.append(Prompt(word, shown(word)))
    return prompts


def _is_pattern(word: str) -> bool:
    """Whether a word may be a pattern of file names. A text may hold the signs of one, so it needs a known suffix, or a
    `*` and a suffix or folder."""
    if any(map(str.isspace, word)) or not glob.has_magic(word):
        return False
    return text_suffix(word) in _SUFFIXES or ("*" in word and (os.sep in word or bool(Path(word).suffix)))


def _files_matching(pattern: str) -> list[Path]:
    return input_files([pattern]) if any(map(os.path.isfile, glob.iglob(pattern, recursive=True))) else []


def _prompts_of(files: list[Path], word: str, called: str) -> list[Prompt]:
    """The prompts in files. Raises UserError if there are none."""
    found = [prompt for file in files for prompt in _prompts_in(file)]
    if not found:
        raise UserError(f"{called}: {word} holds no prompt; it needs one a line")
    return found


def _prompts_in(file: Path) -> Iterator[Prompt]:
    kind = kind_by_name(file) or ("json" if _is_json(file) else None)
    if kind is None:
        for number, line in enumerate(read_lines(file), start=1):
            if line.strip():
                yield Prompt(line, f"{file}:{number}")
        return
    if kind == "json":
        values = ((f"{file}:{line}", value) for line, value in json_values(file))
    else:
        if kind == "parquet":
            _key(Record(str(file), dict.fromkeys(parquet_columns(file))))
        values = table_records(file, kind, columns=_KEYS if kind == "parquet" else None)
    for place, value in values:
        if isinstance(value, dict):
            record = Record(place, value)
            text = text_of(record, _key(record))
        else:
            text = checked_text(value, f"{place}: the prompt")
        if not text.strip():
            raise UserError(f"{place}: an empty text is no prompt")
        yield Prompt(text, place)


def _is_json(file: Path) -> bool:
    """Whether a file without a known suffix holds JSON.

    Raises:
        UserError: it does, and has another suffix.
    """
    found = file.is_file() and begins_as_json(file)
    if found and file.suffix:
        raise UserError(
            f"{file} holds JSON, not a prompt a line. Name it .json or .jsonl, and the texts in it are read."
        )
    return found


def _key(record: Record) -> str:
    """The key of the text, which is one of `_KEYS`."""
    found = [key for key in _KEYS if key in record.fields]
    if len(found) != 1:
        keys = listed(list(record.fields)) or "none"
        raise UserError(f"{record.place}: must have one of the keys {' and '.join(map(repr, _KEYS))}; it has: {keys}")
    return found[0]


def _exists(word: str) -> bool:
    """Whether there is a file or folder of that name; a long text is not even a possible name."""
    try:
        return Path(word).exists() and bool(word.strip())
    except (OSError, ValueError):
        return False


def find_tokenizer(config: RunConfig) -> BaseTokenizer:
    """The tokenizer that the configuration names, or the one beside the weights, or where MindFormers downloaded it.

    Raises:
        UserError: there is none.
    """
    section = config.processor.tokenizer
    if section.merges_file:
        return _with_special_tokens(
            lambda **tokens: GPT2Tokenizer(section.vocab_file, section.merges_file, **tokens), section
        )
    if section.one_file:
        file = Path(section.one_file)
        settings = _checked_settings(section, file)
        if tokenizer_kind(file) == "SentencePiece":
            return _with_special_tokens(lambda **tokens: load_tokenizer(file, **tokens), section)
        if tokenizer_kind(file) == "WordPiece":
            files = read_wordpiece_file(file)
            return _with_special_tokens(lambda **tokens: WordPieceTokenizer(files=files, **settings, **tokens), section)
        made_of_json = JiebaTokenizer if _kind_of(section, file) == "Jieba" else GPT2Tokenizer
        return _with_special_tokens(lambda **tokens: made_of_json(tokenizer_file=file, **settings, **tokens), section)
    folder = section.path or _folder_with_tokenizer(config)
    settings = _checked_settings(section, Path(folder))
    tokenizer = _with_special_tokens(lambda **tokens: load_tokenizer(folder, **settings, **tokens), section)
    if not section.path:
        say(f"tokenizer: {folder} ({tokenizer})")
    return tokenizer


def tokenizer_folder(config: RunConfig) -> Path:
    """The folder or file of the tokenizer that `find_tokenizer` opens.

    Raises:
        UserError: there is none, or the configuration names several files, which text is not prepared by.
    """
    section = config.processor.tokenizer
    if section.merges_file:
        raise UserError("processor.tokenizer.merges_file: text is prepared by a tokenizer's folder; name it as path")
    named = section.one_file or section.path
    return tokenizer_path(named) if named else _folder_with_tokenizer(config)


def _checked_settings(section: TokenizerSection, path: Path) -> dict[str, Any]:
    """The section's arguments of tokenizers of one kind only.

    Raises:
        UserError: there are some, or the type names a kind, and the files are of another.
    """
    kind = _kind_of(section, path)
    wanted = section.type.removesuffix("Tokenizer")
    wanted = {"type": wanted} if wanted in KINDS else {}
    of_kinds = {key: name for name, settings in section.settings_of_kinds.items() for key in settings}
    for key, name in (wanted | of_kinds).items():
        if kind not in (name, None):
            raise UserError(
                f"processor.tokenizer.{key}: is for a {name} tokenizer, and {path} holds {kind}. Remove the key, or "
                f"name {KINDS[name].wanted}."
            )
    return section.settings_of_kinds.get(kind, {})


def _kind_of(section: TokenizerSection, path: Path) -> str | None:
    """The kind of tokenizer at a path. A tokenizer.json alone does not tell that it is for jieba's words."""
    kind = tokenizer_kind(tokenizer_path(path))
    return "Jieba" if section.type == "JiebaTokenizer" and kind == "byte-level BPE" and path.is_file() else kind


def _folder_with_tokenizer(config: RunConfig) -> Path:
    weights = weights_path(config)
    folders = [DOWNLOADS] if weights is None else [weights if weights.is_dir() else weights.parent, DOWNLOADS]
    for folder in folders:
        if holds_tokenizer(folder):
            return folder
    raise UserError(
        f"no tokenizer: name its folder with --tokenizer DIR. Looked for {named_files()} in "
        f"{' and '.join(map(str, folders))}."
    )


def _with_special_tokens(make: Callable[..., BaseTokenizer], section: TokenizerSection) -> BaseTokenizer:
    """A tokenizer with the special tokens that the YAML names. Every YAML of MindFormers names `<|endoftext|>` for all
    of them, so where the vocabulary lacks it this is no wish to have it added."""
    named = {name: getattr(section, name) for name in SPECIAL_TOKEN_NAMES if name in section.model_fields_set}
    others = {name: token for name, token in named.items() if token != END_OF_TEXT}
    tokenizer = make(**others)
    own = END_OF_TEXT in tokenizer.get_vocab() and END_OF_TEXT not in tokenizer.new_tokens
    if own and any(getattr(tokenizer, name) != token for name, token in named.items()):
        return make(**named)
    return tokenizer


class Progress:
    """The progress of several batches: a bar at a terminal, elsewhere a line every 30 s. Rank 0 shows it.

    Args:
        total: number of texts.
        batch_size: texts of a batch; nothing is shown for a single batch.
        unit: the word for the texts.
        clock: seconds.
    """

    EVERY = 30.0  # seconds from line to line

    def __init__(self, total: int, batch_size: int, unit: str, clock: Callable[[], float] = time.monotonic):
        self._shown = rank() == 0 and total > batch_size
        self._total, self._unit, self._clock = total, unit, clock
        self._bar = tqdm(total=total, unit=f" {unit}", disable=None if self._shown else True)
        self._done = self._tokens = 0
        self._began = self._said = clock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, done: int, tokens: int = 0) -> None:
        """Add finished texts and their new tokens."""
        self._bar.update(done)
        self._done, self._tokens = self._done + done, self._tokens + tokens
        now = self._clock()
        if not self._shown or not self._bar.disable or now - self._said < self.EVERY or self._done >= self._total:
            return
        self._said, passed = now, now - self._began
        speed = f"{self._tokens / passed:.0f} tokens/s, " if self._tokens else ""
        left = passed / self._done * (self._total - self._done) / 60
        line = f"{self._done}/{self._total} {self._unit}, {speed}about {left:.0f} min left"
        print(line, file=sys.stderr, flush=True)
