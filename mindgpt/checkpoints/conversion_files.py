"""The files that a conversion writes beside the weights: config and tokenizer."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.found_config import VOCABULARY
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config
from mindgpt.checkpoints.locations import file_beside, own_config
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write, make_folder, open_to_read, read_json, write_json
from mindgpt.tokenizers.loading import MOST_PADDING, TOKENIZER_FILES
from mindgpt.tokenizers.wordpiece_files import read_vocab

TOKENIZER_SETTINGS = "tokenizer_config.json"
_OTHER_VOCABULARIES = ("vocab.json", "tokenizer.json", "merges.txt")
_BERT_TOKENIZER = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,  # the default of UER-py
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_OF_OTHER_FORMATS = (".ckpt", ".safetensors")
GPT2_ML_RULES = {"rules": "bert4keras"}  # settings of a WordPieceTokenizer: no special tokens around a text


def write_config(file: Path, content: dict[str, Any]) -> None:
    """Write a config file, and say so."""
    write_json(file, content)
    print(f"wrote {file}")


def write_config_beside(weights: Path, config: GPT2Config, content: dict[str, Any]) -> None:
    """Write `config` to `config.json` beside `weights`, or to `x.config.json` if another model has that name.

    `content`: of the file.
    """
    shared, own = weights.with_name(CONFIG_FILE), own_config(weights)
    if own.exists() or (shared.exists() and not holds_config(shared, config)):
        write_config(own, content)
        if shared.exists():
            print(f"note: {shared} is left as it was; {own.name} takes precedence for {weights.name}")
    elif not shared.exists():
        write_config(shared, content)


def write_config_in_form_beside(weights: Path, content: dict[str, Any]) -> None:
    """Write a config in the form of another program, as `write_config_beside` does."""
    shared, own = weights.with_name(CONFIG_FILE), own_config(weights)
    taken = shared.exists() and read_json(shared) != content
    if own.exists() or taken:
        write_config(own, content)
    elif not shared.exists():
        write_config(shared, content)


def holds_config(file: Path, config: GPT2Config) -> bool:
    """Whether a file is the config `config`."""
    try:
        return GPT2Config.from_pretrained(file) == config
    except UserError:
        return False


def check_folder(folder: Path, weights: Path, config: GPT2Config | None) -> None:
    """Raise a UserError for a folder that a whole model cannot be written to; else make it."""
    if config is None:
        raise UserError(
            f"{weights}: no {CONFIG_FILE} beside it, and the number of heads does not follow from weights. Pass "
            "--config with a config file, a folder or a preset (gpt2, gpt2_medium, gpt2_large, gpt2_xl, gpt2_13b); or "
            "name a single file, such as model.safetensors, for --torch_path."
        )
    if folder.is_file():
        raise UserError(
            f"--torch_path {folder}: is a file. Name a folder, or a file that ends in .safetensors or .bin."
        )
    existing = folder / CONFIG_FILE
    if existing.exists() and not holds_config(existing, config):
        raise UserError(
            f"{existing}: is the config of another model. Choose another folder for --torch_path, or remove it."
        )
    make_folder(folder)


def check_port_folder(folder: Path, content: dict[str, Any]) -> None:
    """Raise a UserError for a folder that a model cannot be written to whose config.json is `content`; else make it."""
    if folder.is_file() or (folder.suffix in _OF_OTHER_FORMATS and not folder.is_dir()):
        what = "is a file" if folder.is_file() else "is not the name of a file of the port"
        raise UserError(f"{folder}: {what}. Name a folder, or a file that ends in .bin.")
    existing = folder / CONFIG_FILE
    if existing.exists() and read_json(existing) != content:
        raise UserError(f"{existing}: is the config of another model. Choose another folder, or remove it.")
    make_folder(folder)


def copy_tokenizer(weights: Path, target: Path, vocabulary: Path | None = None, without: Collection[str] = ()) -> None:
    """Copy tokenizer files of weights that the folder `target` lacks; those that differ are left alone and reported.

    `vocabulary`: becomes vocab.txt, whatever its name and place. Files beside the weights that hold another vocabulary
    would take precedence over it: they are not copied then, nor what belongs to them.
    `without`: names of files that the target has in a form of its own.
    """
    names = [name for name in dict.fromkeys((*TOKENIZER_FILES, VOCABULARY)) if name not in without]
    files = {name: file for name in names if (file := file_beside(weights, name))}
    if vocabulary is not None:
        others = files.keys() & {*_OTHER_VOCABULARIES}
        beside = files.get(VOCABULARY)
        if others and (beside is None or beside.resolve() != vocabulary.resolve()):
            print(f"note: the tokenizer beside {weights} is left out: {vocabulary} is named as the vocabulary")
            files = {}
        files[VOCABULARY] = vocabulary
    for name, file in files.items():
        if file.resolve() == (target / name).resolve():
            continue
        with open_to_read(file) as opened:
            content = opened.read()
        if not (target / name).exists():
            with atomic_write(target / name) as opened:
                opened.write(content)
            print(f"wrote {target / name}")
        elif (target / name).read_bytes() != content:
            print(f"note: {target / name} differs from {file} and was left alone")


def check_vocabulary_beside(weights: Path, rows: int) -> None:
    """Raise a UserError if the vocab.txt beside weights cannot be theirs, by the `rows` of their embedding table."""
    file = file_beside(weights, VOCABULARY)
    if file is None or any(file_beside(weights, name) for name in _OTHER_VOCABULARIES):
        return
    count = max(read_vocab(file).values()) + 1
    if not count <= rows <= count + MOST_PADDING:
        raise UserError(
            f"{file}: has {count} tokens, and the embedding table in {weights} has {rows} rows: they do not belong "
            "together. Put the model's own vocabulary there."
        )


def write_bert_settings(
    weights: Path, target: Path, vocabulary: Path | None = None, more: Mapping[str, Any] | None = None
) -> None:
    """Write the tokenizer_config.json that lets transformers open the vocab.txt that `copy_tokenizer` has written as
    `BertTokenizer`, unless the folder has settings, or had the vocabulary of another model.

    Args:
        weights, target, vocabulary: as in `copy_tokenizer`.
        more: further settings.
    """
    others = any((target / name).exists() for name in (TOKENIZER_SETTINGS, *_OTHER_VOCABULARIES))
    theirs, held = vocabulary or file_beside(weights, VOCABULARY), target / VOCABULARY
    if not others and theirs is not None and held.is_file() and held.read_bytes() == theirs.read_bytes():
        write_config(target / TOKENIZER_SETTINGS, {**_BERT_TOKENIZER, **(more or {})})
