"""Conversion of GPT-2 weights between Hugging Face's files, MindSpore's `.ckpt` with the names of MindFormers 1.5, and
the files of UER-py and TencentPretrain; and of a GPT2_ML's between TensorFlow's, its PyTorch port's and the first two.

Everything is checked before anything is written. The file of weights is written whole or not at all, and replaces an
earlier one, as MindFormers did. float32 weights are preserved bit for bit, but for the gammas of folded layer norms.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints import layer_norm_conversion
from mindgpt.checkpoints.conversion_files import (
    GPT2_ML_RULES,
    check_folder,
    check_port_folder,
    check_vocabulary_beside,
    copy_tokenizer,
    write_bert_settings,
    write_config,
    write_config_beside,
    write_config_in_form_beside,
)
from mindgpt.checkpoints.deepspeed_format import is_deepspeed
from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_ml_config import port_json, read_config_for
from mindgpt.checkpoints.gpt2_ml_views import PORT_WEIGHTS, ToGPT2MLView, mask_buffers
from mindgpt.checkpoints.gpt2_names import HEAD, MF_EMBEDDING, SCORE, variant_of
from mindgpt.checkpoints.gpt2_views import HuggingFaceView, agree_on_head
from mindgpt.checkpoints.layer_norm_conversion import NormChange, with_norms
from mindgpt.checkpoints.locations import SAFETENSORS_NAME, config_beside, find_weights
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource, tensors
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES, import_torch, is_torch_file, write_torch
from mindgpt.checkpoints.uer_config import checked_vocabulary, uer_json
from mindgpt.checkpoints.uer_names import HEAD as UER_HEAD
from mindgpt.checkpoints.uer_views import ToUERView
from mindgpt.checkpoints.weights import NAMINGS, naming_of
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import VARIANTS

SOURCE_FORMATS = ("auto", "huggingface", "uer", "tencentpretrain", "deepspeed", "mindformers", "gpt2_ml")
TARGET_FORMATS = ("mindspore", "huggingface", "uer", "tencentpretrain", "gpt2_ml_torch")
_NAMING_OF_FORMAT = {
    "huggingface": "hugging_face",
    "uer": "uer",
    "tencentpretrain": "uer",
    "deepspeed": "uer",
    "mindformers": "checkpoint",
    "gpt2_ml": "gpt2_ml",
}


@dataclass(frozen=True)
class ConversionOptions:
    """What the command line says about a conversion, besides the paths.

    Attributes:
        layers: the expected number of layers; None accepts any.
        dtype: of the weights written, "float32" or "float16".
        config: a preset, config file or folder to use in place of the config that lies with the weights.
        vocabulary: the vocab.txt of the weights, or its folder; None: the one beside them.
        num_heads: the number of heads, for weights of UER-py or GPT2_ML without config.
        layer_norm: a key of `layer_norm_conversion.CONVERSIONS`, or None for the target's default.
        source_format: one of `SOURCE_FORMATS`.
    """

    layers: int | None = None
    dtype: str = "float32"
    config: str | None = None
    vocabulary: Path | None = None
    num_heads: int | None = None
    layer_norm: str | None = None
    source_format: str = "auto"


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

    @property
    def variant(self) -> str | None:
        """As of `GPT2Config`, by the names of the weights."""
        return variant_of(self.source.entries)


def convert(source: Path, target: Path, target_format: str | None, options: ConversionOptions) -> None:
    """Write the weights at `source` to `target`. Raises UserError as the functions below.

    Args:
        source: as in these functions.
        target: likewise.
        target_format: one of `TARGET_FORMATS`; None: "mindspore" for a name that ends in .ckpt, else "huggingface".
        options: see `ConversionOptions`.
    """
    target_format = target_format or ("mindspore" if target.suffix == ".ckpt" else "huggingface")
    if target_format == "mindspore":
        convert_to_mindspore(source, target, options)
    elif target_format == "huggingface":
        convert_to_hugging_face(source, target, options)
    elif target_format == "gpt2_ml_torch":
        convert_to_port(source, target, options)
    else:
        convert_to_uer(source, target, options)


def convert_to_mindspore(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of Hugging Face, UER-py or GPT2_ML to the file `target`, with config and tokenizer beside it.

    Args:
        source: folder, `.safetensors`, `.bin`, `.pt`, `.pth` or `*.index.json`; a folder of DeepSpeed; or a checkpoint
            of TensorFlow.
        target: a file name that ends in `.ckpt`.
        options: see `ConversionOptions`.

    Raises:
        UserError: something is wrong with the weights, the config or a path. Nothing is written in that case.
    """
    options = options or ConversionOptions()
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
    if opened.variant == GPT2_ML:
        write_bert_settings(target.parent, GPT2_ML_RULES)


def convert_to_hugging_face(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of ours or UER-py so that `transformers.GPT2LMHeadModel.from_pretrained(folder)` opens them. A
    GPT2_ML's become a folder of the same files, which only mindgpt opens.

    Args:
        source: a `.ckpt`, MindFormers' safetensors, our folder, or a run's folder `checkpoint`, of which the newest is
            taken; or weights of UER-py or GPT2_ML as in `convert_to_mindspore`.
        target: a folder, which gets `model.safetensors`, `config.json` and the tokenizer; or a single file whose
            name ends in `.safetensors`, `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if a folder is to be written and no config is found.
    """
    options = options or ConversionOptions()
    opened = _open(find_weights(source), options)
    if opened.kind == "hugging_face":
        raise UserError(f"--mindspore_path {source}: holds Hugging Face's weights already, {opened.source.path}.")
    config, path = opened.config, opened.source.path
    wanted = options.layer_norm or ("copy" if config is not None and config.layer_norm == "uer" else None)
    change = _norm_change(config, wanted, path, layer_norm_conversion.to_model)
    view = (ToGPT2MLView if opened.variant == GPT2_ML else HuggingFaceView)(with_norms(opened.source, change))
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
        if opened.variant == GPT2_ML:
            print("note: transformers has no network of this kind; only mindgpt opens this folder")
        elif config.layer_norm == "uer":
            print("note: transformers computes standard layer norms; only mindgpt obeys layer_norm 'uer' in the config")
        write_config(target / CONFIG_FILE, config.to_hf_dict(_architecture(view.sizes)))
        copy_tokenizer(path, target, opened.vocabulary)
        write_bert_settings(target, GPT2_ML_RULES if opened.variant == GPT2_ML else None)


def convert_to_uer(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write a `.bin` that UER-py and TencentPretrain load, with their config and the vocabulary beside it.

    Args:
        source: weights of any format that mindgpt opens.
        target: a file name that ends in `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if no config is found, or UER-py has no such network.
    """
    options = options or ConversionOptions()
    if not is_torch_file(target) or target.is_dir():
        raise UserError(f"{target}: the name of a file of UER-py ends in .bin. Name a file, which is not a folder.")
    import_torch(target)
    opened = _open(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if opened.variant == GPT2_ML:
        raise UserError(
            f"{path}: holds the weights of a GPT2_ML, a network that neither UER-py nor TencentPretrain has."
        )
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
    write_config_in_form_beside(target, content)
    copy_tokenizer(path, target.parent, opened.vocabulary)


def convert_to_port(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of a GPT2_ML as its PyTorch port (gpt2-ml-torch) does: `pytorch_model.bin`, `config.json`,
    `vocab.txt`. All weights are in memory at once.

    Args:
        source: weights of any format that mindgpt opens.
        target: a folder, or a file name that ends in `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if no config is found, or the port has no such network.
    """
    options = options or ConversionOptions()
    import_torch(target)
    opened = _open(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if opened.variant != GPT2_ML:
        raise UserError(f"{path}: holds the weights of a GPT-2, and the PyTorch port of GPT2_ML has another network.")
    if config is None:
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which the port's config is made of. Pass --config.")
    if SCORE.mf_names[0] in opened.source.entries:
        raise UserError(f"{path}: is a classifier, and the PyTorch port of GPT2_ML has no classification head.")
    content = port_json(config, path)
    view = ToGPT2MLView(opened.source)
    _check_sizes(view, view.sizes, config, options)
    is_file = is_torch_file(target) and not target.is_dir()
    folder = target.parent if is_file else target
    if not is_file:
        check_port_folder(folder, content)
    _say(opened.notes, NormChange({}, 1, ""))
    masks, same = mask_buffers(view.sizes)
    file = target if is_file else folder / PORT_WEIGHTS
    write_torch(file, chain(_with_progress(view, options.dtype, target), masks.items()), same)
    _say_skipped(opened)
    print(f"wrote {file}: {_summary(view, view.sizes, options.dtype)}")
    write_config_in_form_beside(file, content)
    copy_tokenizer(path, folder, opened.vocabulary)


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
        named = {"uer": "UER-py's or TencentPretrain's", "hugging_face": "Hugging Face's", "checkpoint": "MindFormers'"}
        named["gpt2_ml"] = "GPT2_ML's"
        found = f"its weights have {named[kind]} names" if kind != _NAMING_OF_FORMAT[wanted] else "is no such folder"
        raise UserError(f"{path}: --source_format {wanted}: {found}. Leave the flag out, or name another file.")
    view = NAMINGS[kind].view(stored)
    if options.layer_norm is not None and variant_of(view.entries) == GPT2_ML:
        raise UserError(f"{view.path}: --layer_norm {options.layer_norm}: GPT2_ML's never were UER-py's. Leave it out.")
    notes = [*getattr(view, "notes", ())] if kind != "checkpoint" else []
    if kind in ("uer", GPT2_ML):
        found = NAMINGS[kind].config(view, options.config, options.vocabulary, options.num_heads)
        if found.config is None:
            raise UserError(
                f"{view.path}: weights do not tell the number of heads, and no config lies with them. Pass "
                "--num_heads, or --config with their JSON."
            )
        return _Opened(kind, view, found.config, notes + found.notes, found.vocabulary)
    if options.num_heads is not None:
        raise UserError(
            "--num_heads is for weights of UER-py and GPT2_ML; of others, config.json or --config tells it."
        )
    chosen = options.config or config_beside(view.path)
    config, of_config = read_config_for(view, chosen) if chosen else (None, [])
    if config is not None and variant_of(view.entries) not in (None, config.variant):
        held = variant_of(view.entries)
        raise UserError(
            f"{view.path}: holds the weights of {VARIANTS[held].model} (variant {held}), and {chosen} is the config of "
            f"{VARIANTS[config.variant].model} (variant {config.variant}). Correct it, or pass another with --config."
        )
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


def _with_progress(source: TensorSource, dtype: str, target: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `source` as `dtype`, with a progress bar of the bytes written to `target`."""
    total = sum(TensorInfo(info.shape, dtype).nbytes for info in source.entries.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
        for name, array in tensors(source, dtype):
            yield name, array
            bar.update(array.nbytes)


def _summary(view: TensorSource, sizes: dict[str, int], dtype: str) -> str:
    count = sum(TensorInfo(info.shape, "int8").nbytes for info in view.entries.values())
    stored = {info.dtype for info in view.entries.values()}
    was = f" (was {', '.join(sorted(stored))})" if stored != {dtype} else ""
    return f"{len(view.entries)} tensors, {count:,} parameters, {sizes['L']} layers, {dtype}{was}"


def _architecture(sizes: dict[str, int]) -> str:
    return "GPT2ForSequenceClassification" if "C" in sizes else "GPT2LMHeadModel"
