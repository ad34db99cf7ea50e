"""Weights for the folder of a GPT-3 that ModelScope opens."""

from pathlib import Path
from typing import Any

from mindgpt.checkpoints import layer_norm_conversion
from mindgpt.checkpoints.conversion_files import copy_tokenizer, write_config
from mindgpt.checkpoints.conversion_report import say_notes, say_skipped, summary, with_progress
from mindgpt.checkpoints.conversion_source import ConversionOptions, check_sizes, norm_change, open_to_convert
from mindgpt.checkpoints.foreign_configs import is_gpt3_json
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_names import SCORE
from mindgpt.checkpoints.gpt3_config import config_file_of, gpt3_json
from mindgpt.checkpoints.layer_norm_conversion import with_norms
from mindgpt.checkpoints.locations import find_weights
from mindgpt.checkpoints.megatron_views import ToMegatronView
from mindgpt.checkpoints.modelscope_folder import (
    CONFIGURATION_FILE,
    check_modelscope_folder,
    check_ranks,
    configuration,
    layout_to_write,
    weight_files,
    write_shards,
)
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.checkpoints.torch_format import import_torch
from mindgpt.config.errors import UserError
from mindgpt.io.files import read_json
from mindgpt.tokenizers.jieba_tokenizer import JiebaTokenizer
from mindgpt.tokenizers.loading import tokenizer_kind


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
    opened = open_to_convert(find_weights(source), options)
    config, path = opened.config, opened.source.path
    if opened.variant == GPT2_ML:
        raise UserError(f"{path}: holds the weights of a GPT2_ML, and ModelScope's GPT-3 has another network.")
    if config is None:
        raise UserError(f"{path}: no {CONFIG_FILE} beside it, which ModelScope's config is made of. Pass --config.")
    if SCORE.mf_names[0] in opened.source.entries:
        raise UserError(f"{path}: is a classifier, and ModelScope's GPT-3 has no classification head.")
    change = norm_change(config, options.layer_norm, path, layer_norm_conversion.to_model)
    config = config.replaced(change.settings)
    layout = layout_to_write(config, options.tensor_parallel)
    ranks = 1 if options.tensor_parallel is None else options.tensor_parallel
    content, notes = gpt3_json(config, layout, path)
    view = ToMegatronView(with_norms(opened.source, change), layout, config.num_heads)
    check_sizes(view, view.sizes, config, options)
    check_ranks(config, ranks)
    if opened.kind == "megatron":
        file = options.config or config_file_of(path)
        content = _with_other_keys(content, file) if file else content
    files, more = weight_files(target, layout, ranks), configuration(path, target, layout, ranks)
    check_modelscope_folder(target, files, content)
    kind = tokenizer_kind(path if path.is_dir() else path.parent)
    if layout == "parallel" and kind not in (None, JiebaTokenizer.kind):
        notes.append(
            f"the tokenizer beside {path} is {kind}, and ModelScope opens a GPT-3 of this form with jieba and a "
            "tokenizer.json alone"
        )
    say_notes([*opened.notes, *notes], change)
    entries = {name: TensorInfo(info.shape, options.dtype or info.dtype) for name, info in view.entries.items()}
    write_shards(files, entries, with_progress(view, options.dtype, target))
    say_skipped(opened)
    where = files[0] if ranks == 1 else f"{files[0].parent}, {ranks} files"
    print(f"wrote {where}: {summary(view, view.sizes, options.dtype)}")
    write_config(target / CONFIG_FILE, content)
    write_config(target / CONFIGURATION_FILE, more)
    copy_tokenizer(path, target, opened.vocabulary, without=[CONFIGURATION_FILE])


def _with_other_keys(content: dict[str, Any], file: str | Path) -> dict[str, Any]:
    """A config.json of ModelScope with the keys of the one that the weights had, which mean nothing to us."""
    file = Path(file) / CONFIG_FILE if Path(file).is_dir() else Path(file)
    before: Any = read_json(file) if file.is_file() else None
    return {**before, **content} if is_gpt3_json(before) else content
