"""LoRA adapters in folders of Hugging Face's PEFT: `adapter_model.safetensors` and `adapter_config.json`.

PEFT adapts the fused `c_attn`, with one pair of factors for query, key and value: A [r, H] and B [3H, r]. mindgpt has
three layers with a pair each. The two forms are converted exactly:

    reading   Each of the three layers gets A, and its third of the rows of B. A zero column in a third of B means that
              this layer does not use that row of A: both are dropped. A layer whose third is all zero has no LoRA.
    writing   The A's are stacked, and B is block diagonal. With two layers adapted:

                  A = [A1; A3]  (2r, H)        B = [B1 0; 0 0; 0 B3]  (3H, 2r)

              So `c_attn` has rank 2r, and alpha is doubled to keep alpha / r. Three equal A's are written once.

A is [r, in] and B [out, r] in both; `fan_in_fan_out: true` tells PEFT that GPT-2's weights are stored [in, out].
Source: `peft.tuners.lora` of PEFT 0.21.
"""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_names import LAYER
from mindgpt.checkpoints.safetensors_format import write_safetensors
from mindgpt.checkpoints.tensor_source import TensorInfo
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.config.section import shown
from mindgpt.io.files import read_json, write_json
from mindgpt.pet.names import FACTOR_A, FACTOR_B, SCORE, by_layers, linears_with_factors, pattern_of

CONFIG_NAME, WEIGHTS_NAME, TORCH_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."

_REFUSED = {  # settings that ask for another update than scaling * B A -> the values that do not
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    "kasa_config": (None, {}),
    "arrow_config": (None, {}),
}
_HARMLESS = frozenset([
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "loftq_config", "eva_config", "corda_config", "megatron_config", "megatron_core", "runtime_config",
    "ensure_weight_tying",
])  # fmt: skip
"""Keys that are read here, or that do not change the update."""
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
"""Initialisations that leave the base weights unchanged. Others subtract the initial update from the base, so the
adapter fits only the changed weights."""
_FACTOR = re.compile(r"(?:\w+\.)*?(?:transformer\.)?h\.(\d{1,4})\.([\w.]+)\.lora_([AB])(?:\.default)?\.weight")
_SCORE = re.compile(rf"{re.escape(PREFIX)}score(?:\.modules_to_save(?:\.default)?)?\.weight")

# PEFT's name of a layer in a block -> ours: {"attn.c_attn": ("attention.dense1", ...), "attn.c_proj": (...), ...}
MODULES: dict[str, tuple[str, ...]] = {
    theirs.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in ours)
    for theirs, shape, ours, _ in LAYER
    if len(shape) == 2
}


class Factors(NamedTuple):
    """The factors of a linear layer and their scaling."""

    a: np.ndarray  # (r, in)
    b: np.ndarray  # (out, r)
    scaling: float


def is_peft_folder(path: Path) -> bool:
    """Whether `path` is a folder that PEFT's `save_pretrained` wrote."""
    return (path / CONFIG_NAME).is_file()


def read_peft(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter under our names.

    Returns:
        Settings of `PetSection`, and name -> array: the factors, and a classification head if there is one.

    Raises:
        UserError: something is missing or broken, or the adapter is more than LoRA with one rank and one scaling on the
            linear layers of a GPT-2.
    """
    config = _checked_config(folder / CONFIG_NAME)
    file = next((folder / name for name in (WEIGHTS_NAME, TORCH_NAME) if (folder / name).exists()), None)
    if file is None:
        raise UserError(f"{folder}: no {WEIGHTS_NAME} in this folder of an adapter. Copy or make it again.")
    layers: dict[str, Factors] = {}
    modules, others = _modules(file)
    for (block, module), pair in modules.items():
        a, b = pair["A"], pair["B"]
        scaling = _scaling(config, f"transformer.h.{block}.{module}", len(a), folder)
        for name, factors in _split(MODULES[module], Factors(a, b, scaling), f"{file}: h.{block}.{module}").items():
            layers[f"backbone.blocks.{block}.{name}"] = factors
    rank, scaling = _one_rank_and_scaling(layers, folder)
    settings = {
        "lora_rank": rank,
        "lora_alpha": scaling * rank,
        "use_rslora": False,
        "lora_dropout": float(config.get("lora_dropout") or 0.0),
        "target_modules": pattern_of(layers),
        "bias": "none",
    }
    arrays = {f"{path}.{FACTOR_A}": factors.a for path, factors in layers.items()}
    arrays |= {f"{path}.{FACTOR_B}": factors.b for path, factors in layers.items()}
    return settings, arrays | others


def write_peft(folder: Path, settings: PetSection, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an adapter as a folder that `peft.PeftModel.from_pretrained(GPT2LMHeadModel, folder)` opens.

    Args:
        folder: created if it is missing.
        settings: of the LoRA; rank, alpha and dropout are used.
        arrays: name -> array: the factors of linear layers, and a classification head if there is one.

    Raises:
        UserError: the adapter holds trained biases, for which PEFT has no exact equivalent, or the folder is a file.
    """
    linears = linears_with_factors(arrays)
    known = {f"{linear}.{factor}" for linear in linears for factor in (FACTOR_A, FACTOR_B)} | {SCORE}
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise UserError(
            f"{folder}: PEFT's folder has a place for factors and a classification head only, not for "
            f"{', '.join(unknown)}. Merge the adapter into the base weights with tools/transform_ckpt_lora.py instead."
        )
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for (block,), names in _blocks(linears).items():
        for module, parts in MODULES.items():
            pairs = [_pair(arrays, f"backbone.blocks.{block}.{part}") if part in names else None for part in parts]
            if not any(pairs):
                continue
            a, b = _fuse(pairs)
            path = f"{PREFIX}transformer.h.{block}.{module}"
            tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
            ranks[f"h.{block}.{module}"] = len(a)
    if SCORE in arrays:
        tensors[PREFIX + SCORE] = arrays[SCORE]
    entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in tensors.items()}
    write_safetensors(folder / WEIGHTS_NAME, entries, tensors.items())
    write_json(folder / CONFIG_NAME, _config(settings, ranks, SCORE in arrays))


def _checked_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise UserError(f"{file}: peft_type must be 'LORA', not {kind!r}: mindgpt has no other adapters.")
    wrong = [f"{key}: {shown(value)}" for key, value in config.items() if _asks_for_more(key, value)]
    if wrong:
        raise UserError(
            f"{file}: asks for more than LoRA's factors: {', '.join(wrong)}. Merge the adapter into its base with PEFT "
            "(merge_and_unload), and convert the result with convert_weight.py."
        )
    start = config.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or str(start).lower() in _KEEPS_BASE):
        raise UserError(
            f"{file}: init_lora_weights {start!r} changes the base weights when the adapter is added, so on the "
            "unchanged base the adapter is another model. Save it with path_initial_model_for_weight_conversion, which "
            "makes a plain LoRA of it, or merge it into its base with PEFT (merge_and_unload), and convert the result."
        )
    for key in ("r", "lora_alpha"):
        if not _is_positive(config.get(key)):
            raise UserError(f"{file}: {key} must be a positive number, not {shown(config.get(key))}.")
    dropout = config.get("lora_dropout") or 0
    if dropout != 0 and not (_is_positive(dropout) and dropout < 1):
        raise UserError(f"{file}: lora_dropout must be a number from 0 to below 1, not {shown(dropout)}.")
    if config.get("use_rslora") not in (None, False, True):
        raise UserError(f"{file}: use_rslora must be true or false, not {shown(config['use_rslora'])}.")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(_is_positive, patterns.values())):
            raise UserError(f"{file}: {key} must give a positive number for each name, not {shown(patterns)}.")
        for name in patterns:
            try:
                _name_pattern(name)
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(f"{file}: {key}: {shown(name)} is not a regular expression: {error}.") from error
    return config


def _asks_for_more(key: str, value: Any) -> bool:
    """Whether a setting asks for another update than LoRA's. Of unknown keys, which newer PEFT may have, only True and
    objects count: numbers and text have no effect without a switch."""
    if value is None or key in _HARMLESS:
        return False
    return value not in _REFUSED[key] if key in _REFUSED else value is True or (isinstance(value, dict) and value != {})


def _is_positive(value: Any) -> bool:
    """Whether a JSON value is a positive finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _name_pattern(name: str) -> re.Pattern[str]:
    """The pattern of a key in rank_pattern or alpha_pattern, as in PEFT: it matches the end of a module's path."""
    return re.compile(rf"(.*\.)?({name})$")


def _modules(file: Path) -> tuple[dict[tuple[int, str], dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """(block, PEFT's module) -> {"A": ..., "B": ...}; and the other tensors under our names."""
    source = open_source(file)
    modules: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    others: dict[str, np.ndarray] = {}
    unknown = []
    for name in source.entries:
        match = _FACTOR.fullmatch(name)
        if match and match[2] in MODULES:
            modules.setdefault((int(match[1]), match[2]), {})[match[3]] = source.read(name)
        elif _SCORE.fullmatch(name):
            others[SCORE] = source.read(name)
        else:
            unknown.append(name)
    broken = [
        f"h.{block}.{module}"
        for (block, module), pair in modules.items()
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or len(pair["A"]) != pair["B"].shape[1]
    ]
    if unknown or broken or not modules:
        what = "; ".join(
            [
                *([f"no place for {', '.join(unknown)}"] if unknown else []),
                *([f"no pair of lora_A [r, in] and lora_B [out, r] in {', '.join(broken)}"] if broken else []),
                *(["no factors"] if not modules else []),
            ]
        )
        raise UserError(f"{file}: not a LoRA adapter of a GPT-2, whose layers are {', '.join(MODULES)}: {what}.")
    return modules, others


def _scaling(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """PEFT's scaling of B A for a module."""

    def of(pattern: str, default: float) -> float:
        patterns = config.get(pattern) or {}
        return next((value for key, value in patterns.items() if _name_pattern(key).match(module)), default)

    expected = of("rank_pattern", config["r"])
    if expected != rank:
        raise UserError(f"{folder}: {CONFIG_NAME} says rank {expected} for {module}, and its lora_A has {rank} rows.")
    return of("alpha_pattern", config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _split(names: tuple[str, ...], pair: Factors, where: str) -> dict[str, Factors]:
    """The factors of our layers, from those of PEFT's module; see the module docstring."""
    if len(names) == 1:
        return {names[0]: pair}
    if len(pair.b) % len(names):
        raise UserError(f"{where}: lora_B has {len(pair.b)} rows, which are not query, key and value.")
    thirds = np.split(pair.b, len(names))
    used = [np.any(third != 0, axis=0) for third in thirds]  # (r,) each
    if not any(map(np.any, used)):  # not trained yet
        used = [np.ones(len(pair.a), np.bool_) for _ in names]
    return {
        name: Factors(pair.a[rows].copy(), np.ascontiguousarray(third[:, rows]), pair.scaling)
        for name, third, rows in zip(names, thirds, used, strict=True)
        if rows.any()
    }


def _one_rank_and_scaling(layers: Mapping[str, Factors], folder: Path) -> tuple[int, float]:
    first_path, first = next(iter(layers.items()))
    for path, factors in layers.items():
        if len(factors.a) != len(first.a) or not math.isclose(factors.scaling, first.scaling, rel_tol=1e-12):
            raise UserError(
                f"{folder}: layers differ: {first_path} has rank {len(first.a)} and scaling {first.scaling:g}, {path} "
                f"has {len(factors.a)} and {factors.scaling:g}. mindgpt has one rank and one scaling for all; merge "
                "the adapter into its base with PEFT (merge_and_unload) instead."
            )
    return len(first.a), first.scaling


def _blocks(linears: list[str]) -> dict[tuple[int], list[str]]:
    """(block,) -> names of its linear layers, in the order of the blocks."""
    blocks: dict[tuple[int], list[str]] = {}
    for numbers, names in by_layers(linears).items():
        for number in numbers:
            blocks.setdefault((number,), []).extend(names)
    return dict(sorted(blocks.items()))


def _pair(arrays: Mapping[str, np.ndarray], linear: str) -> tuple[np.ndarray, np.ndarray]:
    return arrays[f"{linear}.{FACTOR_A}"], arrays[f"{linear}.{FACTOR_B}"]


def _fuse(pairs: list[tuple[np.ndarray, np.ndarray] | None]) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's factors, from those of our layers (None for a layer without); see the module docstring."""
    present = [pair for pair in pairs if pair]
    if len(present) == len(pairs) and all(np.array_equal(a, pairs[0][0]) for a, _ in pairs):
        return pairs[0][0], np.concatenate([b for _, b in pairs])
    out = len(present[0][1])
    rank = sum(len(a) for a, _ in present)
    fused = np.zeros((out * len(pairs), rank), present[0][1].dtype)
    column = 0
    for row, pair in enumerate(pairs):
        if pair:
            fused[row * out : (row + 1) * out, column : column + len(pair[0])] = pair[1]
            column += len(pair[0])
    return np.concatenate([a for a, _ in present]), fused


def _config(settings: PetSection, ranks: Mapping[str, int], classifies: bool) -> dict[str, Any]:
    """The content of adapter_config.json. ranks: PEFT's path of a layer -> its rank."""
    rank = settings.lora_rank
    others = {path: other for path, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if classifies else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": settings.scaling * rank,
        "rank_pattern": others,
        "alpha_pattern": {path: settings.scaling * other for path, other in others.items()},
        "use_rslora": False,  # alpha contains the scaling, since the ranks of modules may differ
        "lora_dropout": settings.lora_dropout,
        "target_modules": list(ranks),
        "modules_to_save": ["score"] if classifies else None,
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
    }
