"""LoRA files of TencentPretrain: a state dict that holds the factors alone.

`encoder.transformer.<i>.self_attn.linear_layers.<n>.lora_A` [r, in] and `lora_B` [out, r], for query (0) and value (2).
As ours, the update is B A, times alpha / r; alpha is not in the file. Source: `utils/lora.py` of TencentPretrain.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE
from mindgpt.checkpoints.locations import own_config
from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.checkpoints.torch_format import write_torch
from mindgpt.checkpoints.uer_names import LINEARS, LORA_FACTOR, without_prefix
from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.io.files import read_json
from mindgpt.pet.names import FACTOR_A, FACTOR_B, check_pairs, linears_with_factors, pattern_of

_FACTORS = {"A": FACTOR_A, "B": FACTOR_B}
_ADAPTED = ("self_attn.linear_layers.0", "self_attn.linear_layers.2")  # no others have factors in TencentPretrain


def read_tencentpretrain_lora(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter under our names.

    Returns:
        Settings of `PetSection`, if a config of TencentPretrain with `lora_params` lies beside it, else {}; and
        name -> array of the factors.

    Raises:
        UserError: the file holds other tensors than factors, or a factor without its pair.
    """
    source = open_source(file)
    arrays, unknown = {}, []
    for stored, name in without_prefix(source.entries).items():
        match = LORA_FACTOR.fullmatch(name)
        if match and match[2] in LINEARS:
            arrays[f"backbone.blocks.{match[1]}.{LINEARS[match[2]]}.{_FACTORS[match[3]]}"] = source.read(stored)
        else:
            unknown.append(stored)
    problems = check_pairs({name: array.shape for name, array in arrays.items()})
    if unknown:
        problems.append(f"no factors of a LoRA: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}")
    if problems:
        raise UserError(f"{file}: not a LoRA file of TencentPretrain:\n  " + "\n  ".join(problems))
    return _settings(source, arrays), arrays


def write_tencentpretrain_lora(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write factors as a LoRA file of TencentPretrain.

    Args:
        file: a name that ends in `.bin`.
        arrays: our names -> the factors.

    Raises:
        UserError: there are tensors besides factors, or factors of other layers than query and value.
    """
    theirs = {ours: name for name, ours in LINEARS.items() if name in _ADAPTED}
    made, unknown = {}, []
    for name, array in arrays.items():
        linear, _, factor = name.rpartition(".")
        block, _, inside = linear.removeprefix("backbone.blocks.").partition(".")
        if inside in theirs and factor in _FACTORS.values():
            letter = "A" if factor == FACTOR_A else "B"
            made[f"encoder.transformer.{block}.{theirs[inside]}.lora_{letter}"] = array
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{file}: TencentPretrain has LoRA on query and value only, and no place for {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}. Merge the LoRA with tools/transform_ckpt_lora.py instead."
        )
    write_torch(file, made.items())


def _settings(source: TensorSource, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The settings of the LoRA, if a config beside it says what alpha is."""
    for file in (own_config(source.path), source.path.with_name(CONFIG_FILE)):
        content = read_json(file) if file.is_file() else None
        given = content.get("lora_params") if isinstance(content, dict) else None
        if isinstance(given, dict) and isinstance(given.get("lora_alpha"), int | float):
            linears = linears_with_factors(arrays)
            rank = len(arrays[f"{linears[0]}.{FACTOR_A}"])
            if given.get("lora_r", rank) != rank:
                raise UserError(
                    f"{file}: is of another LoRA: lora_r is {shown(given['lora_r'])} there, and {source.path} has rank "
                    f"{rank}. Move the LoRA to a folder of its own, and say what lora_alpha was."
                )
            return {
                "lora_rank": rank,
                "lora_alpha": float(given["lora_alpha"]),
                "use_rslora": False,
                "lora_dropout": float(given.get("lora_dropout") or 0),
                "target_modules": pattern_of(linears),
                "bias": "none",
            }
    return {}
