"""Conversion of GPT-2 weights between Hugging Face's files and MindSpore's `.ckpt` with the names of MindFormers 1.5.

Everything is checked before anything is written. The file of weights is written whole or not at all, and replaces an
earlier one, as MindFormers did. float32 weights are preserved bit for bit.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, read_config
from mindgpt.checkpoints.gpt2_names import HEAD
from mindgpt.checkpoints.gpt2_views import HuggingFaceView, MindFormersView, UntiedHead, agree_on_head
from mindgpt.checkpoints.locations import SAFETENSORS_NAME, config_beside, find_weights, own_config
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, tensors
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES, import_torch, write_torch
from mindgpt.checkpoints.weights import naming_of, open_weights
from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write, make_folder, open_to_read, write_json
from mindgpt.tokenizers.loading import TOKENIZER_FILES

View = MindFormersView | UntiedHead | HuggingFaceView


def convert_to_mindspore(
    torch_path: Path, mindspore_path: Path, layers: int | None = None, dtype: str = "float32", config: str | None = None
) -> None:
    """Write the Hugging Face weights at `torch_path` to the file `mindspore_path`, with config and tokenizer beside it.

    Args:
        torch_path: folder, `.safetensors`, `.bin`, `.pt`, `.pth` or `*.index.json`.
        mindspore_path: a file name that ends in `.ckpt`.
        layers: the expected number of layers; None accepts any.
        dtype: "float32" or "float16".
        config: a preset, config file or folder to use in place of the `config.json` that lies with the weights.

    Raises:
        UserError: something is wrong with the weights, the config or a path. Nothing is written in that case.
    """
    if mindspore_path.suffix != ".ckpt":
        raise UserError(f"--mindspore_path {mindspore_path}: the name of a MindSpore checkpoint ends in .ckpt.")
    stored = open_source(torch_path)
    if naming_of(stored) != "hugging_face":
        into_ckpt = "" if stored.path.suffix == ".ckpt" else "mindspore.safetensors_to_ckpt makes a .ckpt of it, and "
        raise UserError(
            f"{stored.path}: has MindFormers' names already. A run takes it as it is (--load_checkpoint); "
            f"{into_ckpt}--reversed makes a Hugging Face folder of it."
        )
    view = MindFormersView(stored)
    found, view, more = agree_on_head(_find_config(view.path, config), view)
    for note in (*view.notes, *more):
        print(f"note: {note}")
    _check_sizes(view, found, layers)
    write_checkpoint(mindspore_path, _with_progress(view, dtype, mindspore_path))
    for rule, count in sorted(Counter(view.skipped.values()).items()):
        print(f"skipped: {count} x {rule}")
    print(f"wrote {mindspore_path}: {_summary(view, dtype)}")
    if found is not None:
        _write_config_beside(mindspore_path, found, view)
    elif taken := config_beside(mindspore_path):
        print(f"note: no {CONFIG_FILE} lies with {torch_path}; {taken} will be read as the config of the new file")
    else:
        print(
            f"note: no {CONFIG_FILE} lies with {torch_path}, and weights do not tell the number of heads: pass --config"
        )
    _copy_tokenizer(view.path.parent, mindspore_path.parent)


def convert_to_hugging_face(
    mindspore_path: Path, torch_path: Path, layers: int | None = None, dtype: str = "float32", config: str | None = None
) -> None:
    """Write the checkpoint `mindspore_path` so that `transformers.GPT2LMHeadModel.from_pretrained(folder)` opens it.

    Args:
        mindspore_path: a `.ckpt`, MindFormers' safetensors, our folder, or a run's folder `checkpoint`, of which the
            newest is taken.
        torch_path: a folder, which gets `model.safetensors`, `config.json` and the tokenizer; or a single file whose
            name ends in `.safetensors`, `.bin`, `.pt` or `.pth`.
        layers, dtype, config: as in `convert_to_mindspore`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if a folder is to be written and no config is found.
    """
    weights = open_weights(find_weights(mindspore_path))
    if weights.kind != "checkpoint":
        raise UserError(
            f"--mindspore_path {mindspore_path}: holds Hugging Face's weights already, {weights.source.path}."
        )
    found, source, _ = agree_on_head(_find_config(weights.source.path, config), weights.source)
    view = HuggingFaceView(source)
    _check_sizes(view, found, layers)
    items = _with_progress(view, dtype, torch_path)
    if torch_path.suffix in TORCH_SUFFIXES and not torch_path.is_dir():
        import_torch(torch_path)
        write_torch(torch_path, items)
        print(f"wrote {torch_path}: {_summary(view, dtype)}")
        return
    to_folder = torch_path.suffix != ".safetensors" or torch_path.is_dir()
    if to_folder:
        _check_folder(torch_path, view.path, found)
    target = torch_path / SAFETENSORS_NAME if to_folder else torch_path
    entries = {name: TensorInfo(info.shape, dtype) for name, info in view.entries.items()}
    write_safetensors(target, entries, items)
    print(f"wrote {target}: {_summary(view, dtype)}")
    if to_folder:
        _write_config(torch_path / CONFIG_FILE, found, view)
        _copy_tokenizer(view.path.parent, torch_path)


def _find_config(weights: Path, given: str | None) -> GPT2Config | None:
    """The config `given` on the command line, or the one beside the weights, or None."""
    chosen = given or config_beside(weights)
    if not chosen:
        return None
    config, notes = read_config(chosen)
    for note in notes:
        print(f"note: {note}")
    return config


def _check_sizes(view: View, config: GPT2Config | None, layers: int | None) -> None:
    sizes = view.sizes
    if layers is not None and layers != sizes["L"]:
        raise UserError(
            f"--layers {layers}: {view.path} has {sizes['L']} layers. Leave the flag out, or give the right file."
        )
    if config is None:
        return
    pairs = {
        "num_layers": (config.num_layers, sizes["L"]),
        "hidden_size": (config.hidden_size, sizes["H"]),
        "ffn_hidden_size": (config.ffn_hidden_size, sizes["F"]),
        "vocab_size": (config.vocab_size, sizes["V"]),
        "max_position_embeddings": (config.max_position_embeddings, sizes["P"]),
        "num_labels": (config.num_labels, sizes.get("C", config.num_labels)),  # in a classifier only
    }
    if "C" not in sizes:  # a classifier has no output head
        tied = view.entries.keys().isdisjoint((HEAD.hf_name, *HEAD.mf_names))
        pairs["tie_word_embeddings"] = (config.tie_word_embeddings, tied)
    wrong = [f"{key} is {named}, the weights have {held}" for key, (named, held) in pairs.items() if named != held]
    if wrong:
        raise UserError(
            f"{view.path}: the config does not describe these weights: {'; '.join(wrong)}. "
            "Correct it, or pass another with --config."
        )


def _with_progress(source: TensorSource, dtype: str, target: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `source` as `dtype`, with a progress bar of the bytes written to `target`."""
    total = sum(TensorInfo(info.shape, dtype).nbytes for info in source.entries.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
        for name, array in tensors(source, dtype):
            yield name, array
            bar.update(array.nbytes)


def _summary(view: View, dtype: str) -> str:
    count = sum(TensorInfo(info.shape, "int8").nbytes for info in view.entries.values())
    stored = {info.dtype for info in view.entries.values()}
    was = f" (was {', '.join(sorted(stored))})" if stored != {dtype} else ""
    return f"{len(view.entries)} tensors, {count:,} parameters, {view.sizes['L']} layers, {dtype}{was}"


def _same_config(file: Path, config: GPT2Config) -> bool:
    try:
        return GPT2Config.from_pretrained(file) == config
    except UserError:
        return False


def _write_config_beside(checkpoint: Path, config: GPT2Config, view: MindFormersView) -> None:
    """Write `config` to `config.json` beside `checkpoint`, or to `x.config.json` if another model has that name."""
    shared, own = checkpoint.with_name(CONFIG_FILE), own_config(checkpoint)
    if own.exists() or (shared.exists() and not _same_config(shared, config)):
        _write_config(own, config, view)
        if shared.exists():
            print(f"note: {shared} is left as it was; {own.name} takes precedence for {checkpoint.name}")
    elif not shared.exists():
        _write_config(shared, config, view)


def _write_config(file: Path, config: GPT2Config, view: View) -> None:
    architecture = "GPT2ForSequenceClassification" if "C" in view.sizes else "GPT2LMHeadModel"
    write_json(file, config.to_hf_dict(architecture))
    print(f"wrote {file}")


def _check_folder(folder: Path, checkpoint: Path, config: GPT2Config | None) -> None:
    """Raise a UserError for a folder that a whole model cannot be written to."""
    if config is None:
        raise UserError(
            f"{checkpoint}: no {CONFIG_FILE} beside it, and the number of heads does not follow from weights. Pass "
            "--config with a config file, a folder or a preset (gpt2, gpt2_medium, gpt2_large, gpt2_xl, gpt2_13b); or "
            "name a single file, such as model.safetensors, for --torch_path."
        )
    if folder.is_file():
        raise UserError(
            f"--torch_path {folder}: is a file. Name a folder, or a file that ends in .safetensors or .bin."
        )
    existing = folder / CONFIG_FILE
    if existing.exists() and not _same_config(existing, config):
        raise UserError(
            f"{existing}: is the config of another model. Choose another folder for --torch_path, or remove it."
        )
    make_folder(folder)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer files that the target lacks; those that differ are left alone and reported."""
    if source.resolve() == target.resolve():
        return
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            continue
        with open_to_read(source / name) as file:
            content = file.read()
        if not (target / name).exists():
            with atomic_write(target / name) as file:
                file.write(content)
            print(f"wrote {target / name}")
        elif (target / name).read_bytes() != content:
            print(f"note: {target / name} differs from {source / name} and was left alone")
