"""Conversion of GPT-2 weights between Hugging Face's files, MindSpore's `.ckpt` with the names of MindFormers 1.5, the
files of UER-py and TencentPretrain, and the folders of ModelScope's GPT-3; and of a GPT2_ML's between TensorFlow's, its
PyTorch port's and the first two.

Everything is checked before anything is written. The file of weights is written whole or not at all, and replaces an
earlier one, as MindFormers did. float32 weights are preserved bit for bit, but for the gammas of folded layer norms.
"""

from pathlib import Path

from mindgpt.checkpoints import layer_norm_conversion
from mindgpt.checkpoints.conversion_files import (
    GPT2_ML_RULES,
    check_folder,
    copy_tokenizer,
    write_bert_settings,
    write_config,
    write_config_beside,
    write_config_in_form_beside,
)
from mindgpt.checkpoints.conversion_report import say_notes, say_skipped, summary, with_progress
from mindgpt.checkpoints.conversion_source import (
    ConversionOptions,
    check_sizes,
    in_float32,
    norm_change,
    open_to_convert,
)
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_ml_conversion import convert_to_port
from mindgpt.checkpoints.gpt2_ml_views import ToGPT2MLView
from mindgpt.checkpoints.gpt2_names import HEAD, SCORE
from mindgpt.checkpoints.gpt2_views import HuggingFaceView
from mindgpt.checkpoints.layer_norm_conversion import with_norms
from mindgpt.checkpoints.locations import SAFETENSORS_NAME, config_beside, find_weights
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.modelscope_conversion import convert_to_modelscope
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_format import TORCH_SUFFIXES, import_torch, is_torch_file, write_torch
from mindgpt.checkpoints.uer_config import uer_json
from mindgpt.checkpoints.uer_views import ToUERView
from mindgpt.config.errors import UserError

TARGET_FORMATS = ("mindspore", "huggingface", "uer", "tencentpretrain", "gpt2_ml_torch", "modelscope")


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
    elif target_format == "gpt2_ml_torch":
        convert_to_port(source, target, options)
    else:
        convert_to_uer(source, target, options)


def convert_to_mindspore(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of Hugging Face, UER-py, GPT2_ML or ModelScope's GPT-3 to the file `target`, with config and
    tokenizer beside it.

    Args:
        source: folder, `.safetensors`, `.bin`, `.pt`, `.pth` or `*.index.json`; a folder of DeepSpeed or of
            ModelScope's GPT-3; or a checkpoint of TensorFlow.
        target: a file name that ends in `.ckpt`.
        options: see `ConversionOptions`.

    Raises:
        UserError: something is wrong with the weights, the config or a path. Nothing is written in that case.
    """
    options = in_float32(options)
    if target.suffix != ".ckpt":
        raise UserError(f"--mindspore_path {target}: the name of a MindSpore checkpoint ends in .ckpt.")
    opened = open_to_convert(source, options)
    if opened.kind == "checkpoint":
        path = opened.source.path
        into_ckpt = "" if path.suffix == ".ckpt" else "mindspore.safetensors_to_ckpt makes a .ckpt of it, and "
        raise UserError(
            f"{path}: has MindFormers' names already. A run takes it as it is (--load_checkpoint); "
            f"{into_ckpt}--reversed makes a Hugging Face folder of it."
        )
    view, config = opened.source, opened.config
    sizes = getattr(view, "sizes", {})
    check_sizes(view, sizes, config, options)
    change = norm_change(config, options.layer_norm, view.path, layer_norm_conversion.to_model)
    say_notes(opened.notes, change)
    scaled = with_norms(view, change)
    write_checkpoint(target, with_progress(scaled, options.dtype, target))
    say_skipped(opened)
    print(f"wrote {target}: {summary(scaled, sizes, options.dtype)}")
    if config is not None:
        config = config.replaced(change.settings)
        write_config_beside(target, config, config.to_hf_dict(_architecture(sizes)))
    elif taken := config_beside(target):
        print(f"note: no {CONFIG_FILE} lies with {source}; {taken} will be read as the config of the new file")
    else:
        print(f"note: no {CONFIG_FILE} lies with {source}, and weights do not tell the number of heads: pass --config")
    copy_tokenizer(view.path, target.parent, opened.vocabulary)
    if opened.variant == GPT2_ML:
        write_bert_settings(view.path, target.parent, opened.vocabulary, GPT2_ML_RULES)


def convert_to_hugging_face(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write weights of ours, UER-py or ModelScope's GPT-3 as a folder that `transformers.GPT2LMHeadModel` opens. A
    GPT2_ML's become a folder of the same files, which only mindgpt opens.

    Args:
        source: a `.ckpt`, MindFormers' safetensors, our folder, or a run's folder `checkpoint`, of which the newest is
            taken; or weights of UER-py, GPT2_ML or ModelScope as in `convert_to_mindspore`.
        target: a folder, which gets `model.safetensors`, `config.json` and the tokenizer; or a single file whose
            name ends in `.safetensors`, `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if a folder is to be written and no config is found.
    """
    options = in_float32(options)
    opened = open_to_convert(find_weights(source), options)
    if opened.kind == "hugging_face":
        raise UserError(f"--mindspore_path {source}: holds Hugging Face's weights already, {opened.source.path}.")
    config, path = opened.config, opened.source.path
    (head,) = HEAD.mf_names
    if opened.variant == GPT2_ML and head in opened.source.entries:
        raise UserError(
            f"{path}: a GPT2_ML with an output head of its own ({head}), for which its folders have no place. A run "
            "takes the checkpoint as it is (--load_checkpoint)."
        )
    wanted = options.layer_norm or ("copy" if config is not None and config.layer_norm == "uer" else None)
    change = norm_change(config, wanted, path, layer_norm_conversion.to_model)
    view = (ToGPT2MLView if opened.variant == GPT2_ML else HuggingFaceView)(with_norms(opened.source, change))
    check_sizes(view, view.sizes, config, options)
    config = config and config.replaced(change.settings)
    items = with_progress(view, options.dtype, target)
    if target.suffix in TORCH_SUFFIXES and not target.is_dir():
        import_torch(target)
        say_notes(opened.notes, change)
        write_torch(target, items)
        say_skipped(opened)
        print(f"wrote {target}: {summary(view, view.sizes, options.dtype)}")
        return
    to_folder = target.suffix != ".safetensors" or target.is_dir()
    if to_folder:
        check_folder(target, path, config)
    say_notes(opened.notes, change)
    file = target / SAFETENSORS_NAME if to_folder else target
    entries = {name: TensorInfo(info.shape, options.dtype or info.dtype) for name, info in view.entries.items()}
    write_safetensors(file, entries, items)
    say_skipped(opened)
    print(f"wrote {file}: {summary(view, view.sizes, options.dtype)}")
    if to_folder and config is not None:  # `check_folder` has seen to it
        if opened.variant == GPT2_ML:
            print("note: transformers has no network of this kind; only mindgpt opens this folder")
        elif config.layer_norm == "uer":
            print("note: transformers computes standard layer norms; only mindgpt obeys layer_norm 'uer' in the config")
        write_config(target / CONFIG_FILE, config.to_hf_dict(_architecture(view.sizes)))
        copy_tokenizer(path, target, opened.vocabulary)
        write_bert_settings(path, target, opened.vocabulary, GPT2_ML_RULES if opened.variant == GPT2_ML else None)


def convert_to_uer(source: Path, target: Path, options: ConversionOptions | None = None) -> None:
    """Write a `.bin` that UER-py and TencentPretrain load, with their config and the vocabulary beside it.

    Args:
        source: weights of any format that mindgpt opens.
        target: a file name that ends in `.bin`, `.pt` or `.pth`.
        options: see `ConversionOptions`.

    Raises:
        UserError: as in `convert_to_mindspore`; also if no config is found, or UER-py has no such network.
    """
    options = in_float32(options)
    if not is_torch_file(target) or target.is_dir():
        raise UserError(f"{target}: the name of a file of UER-py ends in .bin. Name a file, which is not a folder.")
    import_torch(target)
    opened = open_to_convert(find_weights(source), options)
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
    check_sizes(view, view.sizes, config, options)
    say_notes([*opened.notes, *notes], change)
    write_torch(target, with_progress(view, options.dtype, target), view.tied)
    print(f"wrote {target}: {summary(view, view.sizes, options.dtype)}")
    write_config_in_form_beside(target, content)
    copy_tokenizer(path, target.parent, opened.vocabulary)


def _architecture(sizes: dict[str, int]) -> str:
    return "GPT2ForSequenceClassification" if "C" in sizes else "GPT2LMHeadModel"
