"""Conversion of GPT-2 weights between Hugging Face's files, MindSpore's `.ckpt` with the names of MindFormers 1.5, the
files of UER-py and TencentPretrain, and the folders of ModelScope's GPT-3.

Everything is checked before anything is written. The file of weights is written whole or not at all, and replaces an
earlier one, as MindFormers did. float32 weights are preserved bit for bit, but for the gammas of folded layer norms.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints import layer_norm_conversion
from mindgpt.checkpoints.conversion_files import (
    check_folder,
    check_vocabulary_beside,
    copy_tokenizer,
    write_bert_settings,
    write_config,
    write_config_beside,
    write_uer_config_beside,
)
from mindgpt.checkpoints.deepspeed_format import is_deepspeed
from mindgpt.checkpoints.foreign_configs import is_gpt3_json
from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, read_config
from mindgpt.checkpoints.gpt2_names import HEAD, MF_EMBEDDING, SCORE
from mindgpt.checkpoints.gpt2_views import HuggingFaceView, agree_on_head
from mindgpt.checkpoints.gpt3_config import config_file_of, config_of_gpt3, gpt3_json
from mindgpt.checkpoints.layer_norm_conversion import NormChange, with_norms
from mindgpt.checkpoints.locations import SAFETENSORS_NAME, config_beside, find_weights
from mindgpt.checkpoints.megatron_views import ToMegatronView
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.modelscope_folder import (
    CONFIGURATION_FILE,
    check_modelscope_folder,
    check_ranks,
    configuration,
    layout_to_write,
    weight_files,
    write_shards,
)
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, tensors
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES, import_torch, is_torch_file, write_torch
from mindgpt.checkpoints.uer_config import checked_vocabulary, config_of_uer, uer_json
from mindgpt.checkpoints.uer_names import HEAD as UER_HEAD
from mindgpt.checkpoints.uer_views import ToUERView
from mindgpt.checkpoints.weights import NAMINGS, naming_of
from mindgpt.config.errors import UserError
from mindgpt.io.files import read_json

SOURCE_FORMATS = ("auto", "huggingface", "uer", "tencentpretrain", "deepspeed", "mindformers", "modelscope")
TARGET_FORMATS = ("mindspore", "huggingface", "uer", "tencentpretrain", "modelscope")
_NAMING_OF_FORMAT = {
    "huggingface": "hugging_face",
    "uer": "uer",
    "tencentpretrain": "uer",
    "deepspeed": "uer",
    "mindformers": "checkpoint",
    "modelscope": "megatron",
}


@dataclass(frozen=True)
class ConversionOptions:
    """What the command line says about a conversion, besides the paths.

    Attributes:
        layers: the expected number of layers; None accepts any.
        dtype: of the weights written, "float32" or "float16"; None: "float32", and for ModelScope that of the source.
        config: a preset, config file or folder to use in place of the config that lies with the weights.
        vocabulary: the vocab.txt of the weights, or its folder; None: the one beside them.
        num_heads: the number of heads, for UER-py's weights without config.
        layer_norm: a key of `layer_norm_conversion.CONVERSIONS`, or None for the target's default.
        source_format: one of `SOURCE_FORMATS`.
        tensor_parallel: the number of ranks to shard ModelScope's weights over, or None.
    """

    layers: int | None = None
    dtype: str | None = None
    config: str | None = None
    vocabulary: Path | None = None
    num_heads: int | None = None
    layer_norm: str | None = None
    source_format: str = "auto"
    tensor_parallel: int | None = None


@dataclass(frozen=True)
class _Opened:
    """Weights to convert, under our names.

    Attributes:
        kind: a key of `NAMINGS`.
        source: the view under our names.
        config: or None.
        notes: for the user.
        vocabulary: a vocab.txt to copy, or None.
    """

    kind: str
    source: TensorSource
    config: GPT2Config | None
    notes: list[str]
    vocabulary: Path | None = None


def convert(source: Path, target: Path, target_format: str | None, options: ConversionOptions) -> None:
    """Write the weights at `source` to `target`. Raises UserError as the functions below.

    Args:
        source: as in these functions.
        target: likewise.
        target_format: one of `TARGET_FORMATS`; None: "mindspore" for a name that ends in .ckpt, else "huggingface".
        options: see `ConversionOptions`.
    """
    target_format = target_format or ("mindspore" if target.suffix == ".ckpt" else "huggingface")
    if target_format == "modelscope":
        convert_to_modelscope(source, target, options)
    elif options.tensor_parallel is not None:
        raise UserError(
            "--tensor_parallel: only weights for ModelScope are sharded over ranks (--target_format modelscope). Leave "
            f"it out for {target_format}."
        )
    elif target_format == "mindspore":
        convert_to_mindspore(source, target, options)
    elif target_format == "huggingface":
        convert_to_hugging_face(source, target, options)
    else:
        convert_to_uer(source, target, options)


def convert_to_mindspore(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of Hugging Face or UER-py to the file `target`, with config and tokenizer beside it.

    Args:
        source: folder, `.safetensors`, `.bin`, `.pt`, `.pth` or `*.index.json`; or a folder of DeepSpeed.
        target: a file name that ends in `.ckpt`.
        options: see `ConversionOptions`.

    Raises:
        UserError: something is wrong with the weights, the config or a path. Nothing is written in that case.
    """
    options = _in_float32(options)
    if target.suffix != ".ckpt":
        raise UserError(f"--mindspore_path {target}: the name of a MindSpore checkpoint ends in .ckpt.")
    opened = _open(source, options)
    if opened.kind == "checkpoint":
        path = opened.source.path
        into_ckpt = "" if path.suffix == ".ckpt" else "mindspore.safetensors_to_ckpt makes a .ckpt of it, and "
        raise UserError(
            f"{path}: has MindFormers' names already. A run takes it as it is (--load_checkpoint); "
            f"{into_ckpt}--reversed makes a Hugging Face folder of it."
        )
    view, config = opened.source, opened.config
    _check_sizes(view, view.sizes, config, options)
    change = _norm_change(config, options.layer_norm, view.path, layer_norm_conversion.to_model)
    _say(opened.notes, change)
    scaled = with_norms(view, change)
    write_checkpoint(target, _with_progress(scaled, options.dtype, target))
    _say_skipped(opened)
    print(f"wrote {target}: {_summary(scaled, view.sizes, options.dtype)}")
    if config is not None:
        config = config.replaced(change.settings)
        write_config_beside(target, config, config.to_hf_dict(_architecture(view.sizes)))
    elif taken := config_beside(target):
        print(f"note: no {CONFIG_FILE} lies with {source}; {taken} will be read as the config of the new file")
    else:
        print(f"note: no {CONFIG_FILE} lies with {source}, and weights do not tell the number of heads: pass --config")
    copy_tokenizer(view.path, target.parent, opened.vocabulary)


def convert_to_hugging_face(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of ours or UER-py so that `transformers.GPT2LMHeadModel.from_pretrained(folder)` opens them.

    Args:
        source: a `.ckpt`, MindFormers' safetensors, our folder, or a run's folder `checkpoint`, of which the newest is
            taken; or weights of UER-py as in `convert_to_mindspore`.
        target: a folder, which gets `model.safetensors`, `config.json` and the tokenizer; or a single file whose
            name ends in `.safetensors`, `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if a folder is to be written and no config is found.
    """
    options = _in_float32(options)
    opened = _open(find_weights(source), options)
    if opened.kind == "hugging_face":
        raise UserError(f"--mindspore_path {source}: holds Hugging Face's weights already, {opened.source.path}.")
    config, path = opened.config, opened.source.path
    wanted = options.layer_norm or ("copy" if config is not None and config.layer_norm == "uer" else None)
    change = _norm_change(config, wanted, path, layer_norm_conversion.to_model)
    view = HuggingFaceView(with_norms(opened.source, change))
    _check_sizes(view, view.sizes, config, options)
    config = config and config.replaced(change.settings)
    items = _with_progress(view, options.dtype, target)
    if target.suffix in TORCH_SUFFIXES and not target.is_dir():
        import_torch(target)
        _say(opened.notes, change)
        write_torch(target, items)
        _say_skipped(opened)
        print(f"wrote {target}: {_summary(view, view.sizes, options.dtype)}")
        return
    to_folder = target.suffix != ".safetensors" or target.is_dir()
    if to_folder:
        check_folder(target, path, config)
    _say(opened.notes, change)
    file = target / SAFETENSORS_NAME if to_folder else target
    entries = {name: TensorInfo(info.shape, options.dtype) for name, info in view.entries.items()}
    write_safetensors(file, entries, items)
    _say_skipped(opened)
    print(f"wrote {file}: {_summary(view, view.sizes, options.dtype)}")
    if to_folder:
        if config.layer_norm == "uer":
            print("note: transformers computes standard layer norms; only mindgpt obeys layer_norm 'uer' in the config")
        write_config(target / CONFIG_FILE, config.to_hf_dict(_architecture(view.sizes)))
        copy_tokenizer(path, target, opened.vocabulary)
        write_bert_settings(target)


def convert_to_uer(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write a `.bin` that UER-py and TencentPretrain load, with their config and the vocabulary beside it.

    Args:
        source: weights of any format that mindgpt opens.
        target: a file name that ends in `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if no config is found, or UER-py has no such network.
    """
    options = _in_float32(options)
    if not is_torch_file(target) or target.is_dir():
        raise UserError(f"{target}: the name of a file of UER-py ends in .bin. Name a file, which is not a folder.")
    import_torch(target)
    opened = _open(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if config is None:
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which UER-py's config is made of. Pass --config.")
    if SCORE.mf_names[0] in opened.source.entries:
        raise UserError(f"{path}: is a classifier, and UER-py's language models have no classification head.")
    content, notes = uer_json(config, path)
    change = layer_norm_conversion.to_uer(config, options.layer_norm)
    view = ToUERView(with_norms(opened.source, change))
    _check_sizes(view, view.sizes, config, options)
    _say([*opened.notes, *notes], change)
    write_torch(target, _with_progress(view, options.dtype, target), view.tied)
    print(f"wrote {target}: {_summary(view, view.sizes, options.dtype)}")
    write_uer_config_beside(target, content)
    copy_tokenizer(path, target.parent, opened.vocabulary)


def convert_to_modelscope(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write the folder of a GPT-3 that ModelScope opens: shards of 1.3B and larger, or the pytorch_model.bin of base
    and large. The dtype of the weights is kept.

    Args:
        source: weights of any format that mindgpt opens.
        target: a folder.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if no config is found, ModelScope has no such network, or it
            cannot be sharded over so many ranks.
    """
    options = options or ConversionOptions()
    import_torch(target)
    opened = _open(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if config is None:
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which ModelScope's config is made of. Pass --config.")
    if SCORE.mf_names[0] in opened.source.entries:
        raise UserError(f"{path}: is a classifier, and ModelScope's GPT-3 has no classification head.")
    change = _norm_change(config, options.layer_norm, path, layer_norm_conversion.to_model)
    config = config.replaced(change.settings)
    layout = layout_to_write(config, options.tensor_parallel)
    ranks = 1 if options.tensor_parallel is None else options.tensor_parallel
    content, notes = gpt3_json(config, layout, path)
    view = ToMegatronView(with_norms(opened.source, change), layout, config.num_heads)
    _check_sizes(view, view.sizes, config, options)
    check_ranks(config, ranks)
    if opened.kind == "megatron":
        content = _with_other_keys(content, options.config or config_file_of(path))
    files, more = weight_files(target, layout, ranks), configuration(path, target, layout, ranks)
    check_modelscope_folder(target, files, content)
    _say([*opened.notes, *notes], change)
    entries = {name: TensorInfo(info.shape, options.dtype or info.dtype) for name, info in view.entries.items()}
    write_shards(files, entries, _with_progress(view, options.dtype, target))
    _say_skipped(opened)
    where = files[0] if ranks == 1 else f"{files[0].parent}, {ranks} files"
    print(f"wrote {where}: {_summary(view, view.sizes, options.dtype)}")
    write_config(target / CONFIG_FILE, content)
    write_config(target / CONFIGURATION_FILE, more)
    copy_tokenizer(path, target, opened.vocabulary)


def _with_other_keys(content: dict[str, Any], file: str | Path) -> dict[str, Any]:
    """A config.json of ModelScope with the keys of the one that the weights had, which mean nothing to us."""
    file = Path(file) / CONFIG_FILE if Path(file).is_dir() else Path(file)
    before = read_json(file) if file.is_file() else None
    return {**before, **content} if is_gpt3_json(before) else content


def _in_float32(options: ConversionOptions | None) -> ConversionOptions:
    options = options or ConversionOptions()
    return options if options.dtype else replace(options, dtype="float32")


def _open(path: Path, options: ConversionOptions) -> _Opened:
    """The weights at a path under our names, with their config.

    Raises:
        UserError: they cannot be opened, or are of another format than the options say.
    """
    stored = open_source(path)
    kind = naming_of(stored)
    wanted = options.source_format
    if wanted != "auto" and (
        kind not in (_NAMING_OF_FORMAT[wanted], "other model") or (wanted == "deepspeed" and not is_deepspeed(path))
    ):
        named = {
            "uer": "UER-py's or TencentPretrain's",
            "megatron": "Megatron's",
            "hugging_face": "Hugging Face's",
            "checkpoint": "MindFormers'",
        }
        found = f"its weights have {named[kind]} names" if kind != _NAMING_OF_FORMAT[wanted] else "is no such folder"
        raise UserError(f"{path}: --source_format {wanted}: {found}. Leave the flag out, or name another file.")
    view = NAMINGS[kind].view(stored)
    notes = [*getattr(view, "notes", ())] if kind != "checkpoint" else []
    if kind == "uer":
        found = config_of_uer(view, options.config, options.vocabulary, options.num_heads)
        if found.config is None:
            raise UserError(
                f"{view.path}: weights do not tell the number of heads, and no config lies with them. Pass "
                "--num_heads, or --config with UER-py's JSON."
            )
        return _Opened(kind, view, found.config, notes + found.notes, found.vocabulary)
    if kind == "megatron" and options.num_heads is None:
        found = config_of_gpt3(view, options.config)
        vocabulary = options.vocabulary and checked_vocabulary(view.path, view.sizes["V"], options.vocabulary, True)
        return _Opened(kind, view, found.config, notes + found.notes, vocabulary)
    if options.num_heads is not None:
        raise UserError("--num_heads is for weights of UER-py; of others, config.json or --config tells it.")
    chosen = options.config or config_beside(view.path)
    config, of_config = read_config(chosen) if chosen else (None, [])
    config, view, of_head = agree_on_head(config, view)
    vocabulary = options.vocabulary
    if vocabulary is not None and MF_EMBEDDING in view.entries:
        vocabulary = checked_vocabulary(view.path, view.entries[MF_EMBEDDING].shape[0], vocabulary)
    elif MF_EMBEDDING in view.entries:
        check_vocabulary_beside(view.path, view.entries[MF_EMBEDDING].shape[0])
    return _Opened(kind, view, config, [*notes, *of_config, *of_head], vocabulary)


def _norm_change(config: GPT2Config | None, wanted: str | None, path: Path, decide) -> NormChange:
    """What the conversion does to layer norms.

    Raises:
        UserError: a conversion is asked for, and there is no config to record it in.
    """
    if config is not None:
        return decide(config, wanted)
    if wanted is not None:
        raise UserError(f"{path}: --layer_norm is recorded in the config, and there is none. Pass --config.")
    return NormChange({}, 1, "")


def _check_sizes(
    view: TensorSource, sizes: dict[str, int], config: GPT2Config | None, options: ConversionOptions
) -> None:
    if options.layers is not None and options.layers != sizes["L"]:
        raise UserError(
            f"--layers {options.layers}: {view.path} has {sizes['L']} layers. Leave the flag out, or give the right "
            "file."
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
        tied = view.entries.keys().isdisjoint((HEAD.hf_name, *HEAD.mf_names, *UER_HEAD.names))
        pairs["tie_word_embeddings"] = (config.tie_word_embeddings, tied)
    wrong = [f"{key} is {named}, the weights have {held}" for key, (named, held) in pairs.items() if named != held]
    if wrong:
        raise UserError(
            f"{view.path}: the config does not describe these weights: {'; '.join(wrong)}. "
            "Correct it, or pass another with --config."
        )


def _say(notes: list[str], change: NormChange) -> None:
    """Print the notes, once everything is checked."""
    for note in [*notes, *([change.note] if change.note else [])]:
        print(f"note: {note}")


def _say_skipped(opened: _Opened) -> None:
    """Print what was left out. Of a checkpoint that is much, and all of it is training's."""
    if opened.kind != "checkpoint":
        for rule, count in sorted(Counter(opened.source.skipped.values()).items()):
            print(f"skipped: {count} x {rule}")


def _with_progress(source: TensorSource, dtype: str | None, target: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `source` as `dtype`, or as they are, with a progress bar of the bytes written to `target`."""
    total = sum(TensorInfo(info.shape, dtype or info.dtype).nbytes for info in source.entries.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
        for name, array in tensors(source, dtype):
            yield name, array
            bar.update(array.nbytes)


def _summary(view: TensorSource, sizes: dict[str, int], dtype: str | None) -> str:
    count = sum(TensorInfo(info.shape, "int8").nbytes for info in view.entries.values())
    stored = {info.dtype for info in view.entries.values()}
    dtype = dtype or ", ".join(sorted(stored))
    was = f" (was {', '.join(sorted(stored))})" if stored != {dtype} else ""
    return f"{len(view.entries)} tensors, {count:,} parameters, {sizes['L']} layers, {dtype}{was}"


def _architecture(sizes: dict[str, int]) -> str:
    return "GPT2ForSequenceClassification" if "C" in sizes else "GPT2LMHeadModel"
