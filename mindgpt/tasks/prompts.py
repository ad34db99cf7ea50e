"""What prediction reads, the texts that a command line names and the tokenizer of the weights; and its progress bar."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mindgpt.config.errors import UserError
from mindgpt.config.run import RunConfig
from mindgpt.config.section import shown
from mindgpt.data.byte_bpe import holds_tokenizer
from mindgpt.data.files import DOWNLOADS, read_lines
from mindgpt.data.records import Record, json_lines, text_of
from mindgpt.data.text import TEXT_SUFFIXES, input_files
from mindgpt.models.gpt2.gpt2_tokenizer import GPT2Tokenizer
from mindgpt.runtime.ranks import rank, say
from mindgpt.tasks.models import weights_path

BATCH_SIZE = 8
_KEYS = ("prompt", "text")
_SPECIAL_TOKENS = ("unk_token", "bos_token", "eos_token", "pad_token")


class Prompt(NamedTuple):
    """A text, and what to call it in messages: its beginning, or file and line."""

    text: str
    name: str


def read_prompts(predict_data: list[str]) -> list[Prompt]:
    """The texts that `--predict_data` names. A file stands for its lines that are not blank; a .jsonl file for the
    `prompt` or `text` of each line; a folder for its .txt and .jsonl files; anything else for itself.

    Raises:
        UserError: nothing is named, a file is not there, holds no prompt or is not UTF-8, or a prompt is empty.
    """
    if not predict_data:
        raise UserError(
            'run_mode predict needs prompts: --predict_data "a text" ["a text" ...], or a file, one prompt a line'
        )
    prompts = []
    for word in predict_data:
        if _exists(word):
            found = [prompt for file in input_files([word]) for prompt in _prompts_in(file)]
            if not found:
                raise UserError(f"--predict_data: {word} holds no prompt; it needs one a line")
            prompts += found
        elif word.endswith(TEXT_SUFFIXES) and not any(map(str.isspace, word)):
            raise UserError(f"--predict_data: there is no file {word} (looked from {Path.cwd()})")
        elif not word.strip():
            raise UserError("--predict_data: an empty text is no prompt")
        else:
            prompts.append(Prompt(word, shown(word)))
    return prompts


def _prompts_in(file: Path) -> Iterator[Prompt]:
    if file.suffix != ".jsonl":
        for number, line in enumerate(read_lines(file), start=1):
            if line.strip():
                yield Prompt(line, f"{file}:{number}")
        return
    for record in json_lines(file):
        text = text_of(record, _key(record))
        if not text.strip():
            raise UserError(f"{record.place}: an empty text is no prompt")
        yield Prompt(text, record.place)


def _key(record: Record) -> str:
    """Which of the two keys holds the text."""
    found = [key for key in _KEYS if key in record.fields]
    if len(found) != 1:
        keys = ", ".join(map(repr, record.fields)) or "none"
        raise UserError(f"{record.place}: must have one of the keys {' and '.join(map(repr, _KEYS))}; it has: {keys}")
    return found[0]


def _exists(word: str) -> bool:
    """Whether there is a file or folder of that name; a long text is not even a possible name."""
    try:
        return Path(word).exists() and bool(word.strip())
    except (OSError, ValueError):
        return False


def find_tokenizer(config: RunConfig) -> GPT2Tokenizer:
    """The tokenizer that the configuration names, or the one beside the weights, or where MindFormers downloaded it.

    Raises:
        UserError: there is none.
    """
    section = config.processor.tokenizer
    tokens = {name: getattr(section, name) for name in _SPECIAL_TOKENS if name in section.model_fields_set}
    named = section.path or section.tokenizer_file or section.vocab_file
    if named:
        if section.merges_file and Path(section.merges_file).parent != Path(section.vocab_file).parent:
            raise UserError("processor.tokenizer: vocab_file and merges_file must lie in one folder")
        return GPT2Tokenizer.from_pretrained(named, **tokens)
    weights = weights_path(config)
    folders = [DOWNLOADS] if weights is None else [weights if weights.is_dir() else weights.parent, DOWNLOADS]
    for folder in folders:
        if holds_tokenizer(folder):
            say(f"tokenizer: {folder}")
            return GPT2Tokenizer.from_pretrained(folder, **tokens)
    raise UserError(
        f"no tokenizer: name its folder with --tokenizer DIR. Looked for tokenizer.json or vocab.json "
        f"in {' and '.join(map(str, folders))}."
    )


def progress_bar(total: int, batch_size: int, unit: str) -> tqdm:
    """A bar for work of several batches; rank 0 shows it, at a terminal."""
    return tqdm(total=total, unit=f" {unit}", disable=True if rank() != 0 or total <= batch_size else None)
