"""Weights of a GPT2_ML for its PyTorch port."""

from itertools import chain
from pathlib import Path

from mindgpt.checkpoints.conversion_files import (
    check_port_folder,
    copy_tokenizer,
    write_config_in_form_beside,
)
from mindgpt.checkpoints.conversion_report import say_notes, say_skipped, summary, with_progress
from mindgpt.checkpoints.conversion_source import ConversionOptions, check_sizes, in_float32, open_to_convert
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_ml_config import port_json
from mindgpt.checkpoints.gpt2_ml_views import PORT_WEIGHTS, ToGPT2MLView, mask_buffers
from mindgpt.checkpoints.gpt2_names import SCORE
from mindgpt.checkpoints.layer_norm_conversion import NormChange
from mindgpt.checkpoints.locations import find_weights
from mindgpt.checkpoints.torch_format import import_torch, is_torch_file, write_torch
from mindgpt.config.errors import UserError


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
    options = in_float32(options)
    import_torch(target)
    opened = open_to_convert(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if opened.variant != GPT2_ML:
        raise UserError(f"{path}: holds the weights of a GPT-2, and the PyTorch port of GPT2_ML has another network.")
    if config is None:
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which the port's config is made of. Pass --config.")
    if SCORE.mf_names[0] in opened.source.entries:
        raise UserError(f"{path}: is a classifier, and the PyTorch port of GPT2_ML has no classification head.")
    content = port_json(config, path)
    view = ToGPT2MLView(opened.source)
    check_sizes(view, view.sizes, config, options)
    is_file = is_torch_file(target) and not target.is_dir()
    folder = target.parent if is_file else target
    if not is_file:
        check_port_folder(folder, content)
    say_notes(opened.notes, NormChange({}, 1, ""))
    masks, same = mask_buffers(view.sizes)
    file = target if is_file else folder / PORT_WEIGHTS
    write_torch(file, chain(with_progress(view, options.dtype, target), masks.items()), same)
    say_skipped(opened)
    print(f"wrote {file}: {summary(view, view.sizes, options.dtype)}")
    print("note: open it with the port's own classes; transformers would take it for a GPT-2, another network")
    write_config_in_form_beside(file, content)
    copy_tokenizer(path, folder, opened.vocabulary)
