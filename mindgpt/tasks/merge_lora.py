"""Merges LoRA into base weights, and converts it to PEFT or TencentPretrain and back."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config
from mindgpt.checkpoints.gpt2_ml_config import VARIANT as GPT2_ML
from mindgpt.checkpoints.gpt2_names import MF_EMBEDDING, variant_of
from mindgpt.checkpoints.locations import newest_in, own_config
from mindgpt.checkpoints.mindspore_format import write_checkpoint
from mindgpt.checkpoints.run_folder import rank_folders
from mindgpt.checkpoints.sharded_checkpoint import holds_shards
from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.checkpoints.torch_format import is_torch_file
from mindgpt.checkpoints.weights import Weights, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.loader import load_config
from mindgpt.config.model_sections import PetSection
from mindgpt.io.files import atomic_write, read_json
from mindgpt.pet.adapter import check_adapter_variant, check_factors, open_adapter, rank_of, settings_beside
from mindgpt.pet.merge import MergedWeights
from mindgpt.pet.names import FACTOR_A, SCORE, is_factor, linears_with_factors, pattern_of
from mindgpt.pet.peft_folder import is_peft_folder, write_peft
from mindgpt.pet.tencentpretrain_lora import write_tencentpretrain_lora

RUN_CONFIGS = ("finetune_config.yaml", "train_config.yaml")


def merge(
    source: Path,
    folder: Path,
    prefix: str = "checkpoint_",
    adapter: Path | None = None,
    scaling: float | None = None,
    alpha: float | None = None,
    strategy: Path | None = None,
) -> Path:
    """Write `<folder>/rank_0/<prefix>0.ckpt`, the plain model that computes what the LoRA model computes.

    Args:
        source: a LoRA checkpoint or a run's checkpoint folder, of a parallel run, too; with `adapter` the base
            weights, a Hugging Face folder among them.
        folder: of the result; not the source's.
        prefix: of the file's name.
        adapter: a PEFT folder, a `.ckpt` of trained parameters, or a LoRA file of TencentPretrain.
        scaling: what multiplies B A; None: `alpha` by the rank, or what lies with the checkpoint or its run.
        alpha: see `scaling`.
        strategy: strategy files of a sharded source; None: the folder `strategy` beside the source.

    Returns:
        The path of the file. `config.json` lies beside it if the source has one.

    Raises:
        UserError: the source is incomplete, holds no LoRA, or does not fit; the scaling is unknown; or the result would
            be written into the source.
    """
    weights = _open(source, strategy)
    if adapter is None:
        factors, metadata = weights.source, settings_beside(weights.source.path)
        if MF_EMBEDDING not in factors.entries:
            raise UserError(f"{factors.path}: holds an adapter alone. Name its base weights, and this with --adapter.")
    else:
        opened = open_adapter(_newest(adapter) if not is_peft_folder(adapter) else adapter)
        factors, metadata = opened.source, opened.settings
        check_adapter_variant(opened, variant_of(weights.source.entries))
    check_factors(factors)
    if weights.without_heads is not None:
        raise UserError(f"{weights.source.path}: its number of heads is unknown. Put its config.json beside it.")
    chosen = _scaling(factors, metadata, scaling, alpha)
    target = folder / "rank_0" / f"{prefix}0.ckpt"
    _check_target(target, weights.source.path, factors.path)
    merged = MergedWeights(weights.source, factors, chosen)
    write_checkpoint(target, _with_progress(merged, target))
    print(f"merged {len(merged.merged)} LoRA updates, scaling {chosen:g}, into {len(merged.entries)} tensors: {target}")
    if weights.config is not None:
        plain = weights.config.replaced({"pet_config": None})
        _write_config(target, plain, SCORE in merged.entries)
    return target


def export_peft(source: Path, folder: Path, alpha: float | None = None) -> None:
    """Write the LoRA in a checkpoint or adapter as a PEFT folder. Raises UserError as `merge` does.

    Args:
        source: a LoRA checkpoint, or an adapter: a `.ckpt`, or a LoRA file of TencentPretrain.
        folder: of PEFT.
        alpha: what lora_alpha was; None: as it lies with the source.
    """
    settings, arrays, variant = _trained(source, alpha)
    if settings is None:
        raise UserError(_no_scaling(source) + " Put its config.json, with pet_config, beside it, or give --lora_alpha.")
    write_peft(folder, settings, arrays)
    print(f"wrote {folder}: {sum(map(is_factor, arrays)) // 2} LoRA updates of rank {settings.lora_rank}")
    if variant == GPT2_ML:
        print("note: transformers has no network of this kind; the adapter is for mindgpt's GPT2_ML alone")


def export_tencentpretrain(source: Path, file: Path) -> None:
    """Write the LoRA in a checkpoint or adapter as a LoRA file of TencentPretrain, and say what lora_alpha was.

    Raises:
        UserError: as `merge` does; or the LoRA has more than factors of query and value, or is of a GPT2_ML.
    """
    if not is_torch_file(file):
        raise UserError(f"--tencentpretrain_path: {file} must be the name of a file that ends in .bin.")
    settings, arrays, variant = _trained(source, None)
    if variant == GPT2_ML:
        raise UserError(
            f"{source}: is a LoRA of a GPT2_ML, a network that TencentPretrain does not have. Merge it with "
            "tools/transform_ckpt_lora.py instead."
        )
    write_tencentpretrain_lora(file, arrays)
    print(f"wrote {file}: {len(arrays) // 2} LoRA updates")
    if settings is not None:
        alpha = settings.scaling * settings.lora_rank
        print(f"TencentPretrain needs --lora_r {settings.lora_rank} --lora_alpha {alpha:g} for it")


def import_adapter(source: Path, target: Path, base_config: Path | None, alpha: float | None = None) -> None:
    """Write a PEFT folder or a LoRA file of TencentPretrain as an adapter `.ckpt`.

    Args:
        source: the folder or file.
        target: a name that ends in `.ckpt`.
        base_config: the config of the model it belongs to, to be written beside it with the LoRA's settings; None:
            the settings are printed for the YAML.
        alpha: what lora_alpha was, which a file of TencentPretrain does not say.

    Raises:
        UserError: source or config is missing or broken, lora_alpha is not known, or something else than an adapter is
            at `target`.
    """
    _check_adapter_target(target)
    config = None if base_config is None else GPT2Config.from_pretrained(base_config)
    opened = open_adapter(source)
    check_adapter_variant(opened, config and config.variant)
    arrays = {name: opened.source.read(name) for name in opened.source.entries}
    metadata = _with_alpha(opened.settings, arrays, alpha)
    if not metadata:
        raise UserError(f"{source}: does not say what lora_alpha was. Give --lora_alpha (16 is TencentPretrain's).")
    write_checkpoint(target, arrays.items())
    print(f"wrote {target}: {sum(map(is_factor, arrays)) // 2} LoRA updates of rank {metadata['lora_rank']}")
    if config is None:
        print(f"model.model_config.pet_config for it: {metadata}")
        return
    _write_config(target, config.replaced({"pet_config": PetSection(**metadata)}), SCORE in arrays)


def _trained(source: Path, alpha: float | None) -> tuple[PetSection | None, dict[str, np.ndarray], str | None]:
    """The settings of a LoRA, None if they are unknown; what was trained: factors, biases, a classifier's head; and the
    variant of the network, None if it is unknown."""
    if source.is_file() and is_torch_file(source):
        opened = open_adapter(source)
        arrays = {name: opened.source.read(name) for name in opened.source.entries}
        metadata = _with_alpha(opened.settings, arrays, alpha)
        return PetSection(**metadata) if metadata else None, arrays, opened.variant
    weights = _open(source, None)
    check_factors(weights.source)
    settings = _settings(weights.source, settings_beside(weights.source.path))
    trained = {name for name in weights.source.entries if is_factor(name) or name == SCORE}
    if settings is not None and settings.bias != "none":
        trained |= {name for name in weights.source.entries if name.endswith(".bias")}
    arrays = {name: weights.source.read(name) for name in weights.source.entries if name in trained}
    if settings is None and alpha is not None:
        settings = PetSection(**_with_alpha({}, arrays, alpha))
    elif alpha is not None and settings.lora_alpha != alpha:
        raise UserError(f"--lora_alpha {alpha:g}: the config of {source} says {settings.lora_alpha:g}.")
    config = weights.config or weights.without_heads
    return settings, arrays, variant_of(weights.source.entries) or (config and config.variant)


def _with_alpha(settings: dict[str, Any], arrays: dict[str, np.ndarray], alpha: float | None) -> dict[str, Any]:
    """Settings of `PetSection`; if there are none, those of the factors and `alpha`; {} if that is unknown, too.

    Raises:
        UserError: the settings say another alpha.
    """
    if alpha is None:
        return settings
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"--lora_alpha must be a positive number, not {alpha:g}.")
    if settings:
        if settings["lora_alpha"] != alpha:
            raise UserError(f"--lora_alpha {alpha:g}: what lies with the adapter says {settings['lora_alpha']:g}.")
        return settings
    linears = linears_with_factors(arrays)
    rank = len(arrays[f"{linears[0]}.{FACTOR_A}"])
    return {"lora_rank": rank, "lora_alpha": alpha, "target_modules": pattern_of(linears)}


def _check_adapter_target(target: Path) -> None:
    if target.suffix != ".ckpt":
        raise UserError(f"--mindspore_path: {target} must be the name of a file that ends in .ckpt.")
    if target.exists():
        try:
            open_adapter(target)
        except UserError as error:
            raise UserError(
                f"--mindspore_path: would write over what is no adapter; name another file. {error}"
            ) from error


def _open(source: Path, strategy: Path | None) -> Weights:
    """The weights that `source` names: one file, the newest in a run's folder, or the shards of a parallel run.

    Raises:
        UserError: there are none, or they are incomplete.
    """
    if not source.exists():
        raise UserError(f"--src_ckpt_path_or_dir: there is no {source}.")
    if strategy is not None and not strategy.exists():
        raise UserError(f"--src_ckpt_strategy: there is no {strategy}. Leave it out for a checkpoint of one rank.")
    if strategy is not None and not (source.is_dir() and rank_folders(source)):
        raise UserError(f"--src_ckpt_strategy is for the checkpoint folder of a parallel run, and {source} is none.")
    return open_weights(_newest(source) if strategy is None else source, strategy)


def _newest(source: Path) -> Path:
    """A file, or a folder that is one checkpoint by itself.

    Raises:
        UserError: several ranks have written, and there is no strategy for their files.
    """
    if source.is_file() or holds_shards(source):
        return source
    ranks = rank_folders(source)
    if len(ranks) > 1 and not (source.absolute().parent / "strategy").is_dir():
        raise UserError(
            f"{source}: holds the files of {len(ranks)} ranks, and no strategy that says how they belong together. "
            "Name the run's strategy folder with --src_ckpt_strategy; or the file of one rank, if each has the whole "
            "model (data parallel)."
        )
    return newest_in(source)


def _scaling(factors: TensorSource, metadata: dict[str, Any], scaling: float | None, alpha: float | None) -> float:
    """The scaling that the arguments give, or else the metadata of the weights."""
    if scaling is not None and alpha is not None:
        raise UserError("--lora_scaling and --lora_alpha say the same in two ways; keep one.")
    settings = _settings(factors, metadata)
    rank = rank_of(factors)
    if alpha is not None:
        scaling = alpha / (math.sqrt(rank) if settings is not None and settings.use_rslora else rank)
    if scaling is None and settings is None:
        raise UserError(_no_scaling(factors.path) + " Give --lora_alpha, or --lora_scaling (lora_alpha / lora_rank).")
    if scaling is None:
        return settings.scaling
    if not (math.isfinite(scaling) and scaling > 0):
        raise UserError(f"--lora_scaling must be a positive number, not {scaling:g}; so must --lora_alpha.")
    if settings is not None and settings.scaling != scaling:
        print(f"note: the config of {factors.path} says scaling {settings.scaling:g}; {scaling:g} is obeyed")
    return scaling


def _settings(factors: TensorSource, metadata: dict[str, Any]) -> PetSection | None:
    """The LoRA settings from the metadata of the weights or the configuration of their run; None: there are none.

    Raises:
        UserError: they are of factors of another rank.
    """
    metadata = metadata or _settings_of_run(factors.path)
    if not metadata:
        return None
    rank = rank_of(factors)
    if metadata["lora_rank"] != rank:
        raise UserError(
            f"{factors.path}: the configuration beside it is of another LoRA: lora_rank is "
            f"{metadata['lora_rank']} there and {rank} in the weights. Move the checkpoint to a folder of its own and "
            "say what lora_alpha was."
        )
    return PetSection(**metadata)


def _no_scaling(path: Path) -> str:
    return (
        f"{path}: with what lora_alpha was it trained? There is no config.json with pet_config beside it, and no "
        f"{' or '.join(RUN_CONFIGS)} of its run."
    )


def _settings_of_run(checkpoint: Path) -> dict[str, Any]:
    """The LoRA settings of the run in whose output folder a checkpoint is; empty if its configuration is not there.

    Raises:
        UserError: two configurations there disagree.
    """
    found = {}
    for folder in checkpoint.resolve().parents[:3]:
        for file in (folder / name for name in RUN_CONFIGS):
            settings = load_config(file)[0].model.config.pet_config if file.is_file() else None
            if settings is not None:
                found[file] = settings
    if len({settings.scaling for settings in found.values()}) > 1:
        scalings = ", ".join(f"{settings.scaling:g} ({file})" for file, settings in found.items())
        raise UserError(f"{checkpoint}: which scaling is its own: {scalings}? Give --lora_scaling.")
    return next((settings.model_dump(exclude={"adapter"}) for settings in found.values()), {})


def _check_target(target: Path, *sources: Path) -> None:
    for source in sources:
        folder = source if source.is_dir() else source.parent
        if target.resolve() == source.resolve() or target.resolve().parent == folder.resolve():
            raise UserError(f"--dst_ckpt_dir: {target} would lie among the sources in {folder}. Name another folder.")


def _with_progress(source: TensorSource, target: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name in tqdm(source.entries, desc=target.name, unit=" tensors", disable=None):
        yield name, source.read(name)


def _write_config(checkpoint: Path, config: GPT2Config, classifies: bool) -> None:
    """Write the config beside `x.ckpt`: as config.json, or as x.config.json if another model's has that name."""
    content = config.to_hf_dict("GPT2ForSequenceClassification" if classifies else "GPT2LMHeadModel")
    file = checkpoint.with_name(CONFIG_FILE)
    if file.exists() and read_json(file) != content:
        file = own_config(checkpoint)
    with atomic_write(file, "w") as output:
        output.write(json.dumps(content, indent=2) + "\n")
    print(f"config: {file}")
