"""Opens a trained LoRA adapter, a PEFT folder, a `.ckpt` of trained parameters or a LoRA file of TencentPretrain, and
resolves its settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.locations import config_beside
from mindgpt.checkpoints.sharded_checkpoint import holds_shards
from mindgpt.checkpoints.tensor_source import TensorInfo, TensorSource
from mindgpt.checkpoints.torch_format import is_torch_file
from mindgpt.checkpoints.weights import CheckpointWeights
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import VARIANTS, PetSection
from mindgpt.pet.names import FACTOR_A, SCORE, check_pairs, is_factor, linears_with_factors
from mindgpt.pet.peft_folder import is_peft_folder, read_peft
from mindgpt.pet.tencentpretrain_lora import read_tencentpretrain_lora


class Arrays:
    """Arrays in memory as a `TensorSource`."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]):
        self.path = path
        self._arrays = arrays
        self.entries = {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._arrays[name].copy()


@dataclass(frozen=True)
class Adapter:
    """The trained parameters of a LoRA under our names, and the settings that lie with them.

    Attributes:
        source: the factors, and whatever else was trained: biases, a classification head.
        settings: keys of `PetSection` with their values; empty if no config lies beside a `.ckpt`.
        variant: of the network it was trained with, as `GPT2Config.variant`; None if no file says.
    """

    source: TensorSource
    settings: dict[str, Any]
    variant: str | None = None


def open_adapter(path: Path) -> Adapter:
    """Open a PEFT folder, a `.ckpt` with only the trained parameters of a LoRA, a sharded checkpoint of them, or a LoRA
    file of TencentPretrain.

    Raises:
        UserError: there is none, it is broken, or it is another kind of file.
    """
    if is_peft_folder(path):
        settings, arrays = read_peft(path)
        return Adapter(Arrays(path, arrays), settings)
    if path.is_file() and is_torch_file(path):
        settings, arrays = read_tencentpretrain_lora(path)
        return Adapter(Arrays(path, arrays), settings, "gpt2")
    if path.suffix != ".ckpt" and not holds_shards(path):
        raise UserError(
            f"{path}: not an adapter. Name a PEFT folder (with adapter_config.json), a .ckpt or folder "
            "checkpoint_trainable of a run with save_trainable_params: True, or a LoRA .bin of TencentPretrain."
        )
    source = CheckpointWeights(open_source(path))
    check_factors(source)
    others = [name for name in source.entries if not is_factor(name) and name != SCORE and not name.endswith(".bias")]
    if others:
        raise UserError(
            f"{path}: holds the base weights, too ({others[0]}, ...): it is a whole LoRA checkpoint. Name it as "
            "load_checkpoint, without an adapter."
        )
    file = config_beside(source.path)
    return Adapter(source, settings_beside(source.path), GPT2Config.from_pretrained(file).variant if file else None)


def check_adapter_variant(adapter: Adapter, built: str | None) -> None:
    """Raise a UserError if an adapter was trained with another variant of GPT-2 than `built`; None: not known."""
    if None not in (adapter.variant, built) and adapter.variant != built:
        raise UserError(
            f"{adapter.source.path}: is an adapter of {VARIANTS[adapter.variant].model} (variant {adapter.variant}), "
            f"and the base model is {VARIANTS[built].model} (variant {built}), another network. Name the base that the "
            "adapter was trained with."
        )


def check_factors(source: TensorSource) -> list[str]:
    """The paths of the linear layers that have factors in `source`.

    Raises:
        UserError: there are none, or one of a pair is missing.
    """
    problems = check_pairs({name: info.shape for name, info in source.entries.items()})
    linears = linears_with_factors(source.entries)
    if not linears:
        problems = ["no mindpet_delta_lora_a and mindpet_delta_lora_b in it"]
    if problems:
        raise UserError(f"{source.path}: not the weights of a LoRA:\n  " + "\n  ".join(problems))
    return linears


def settings_beside(checkpoint: Path) -> dict[str, Any]:
    """The LoRA settings in the config.json of a checkpoint; empty if there are none."""
    file = config_beside(checkpoint)
    settings = GPT2Config.from_pretrained(file).pet_config if file else None
    return settings.model_dump(exclude={"adapter"}) if settings else {}


def resolve_settings(section: PetSection, stored: Mapping[str, Any], source: TensorSource | None) -> PetSection:
    """The settings of the YAML, and for keys that it leaves out, those that lie with the weights.

    Args:
        section: `model.model_config.pet_config`.
        stored: the settings that lie with the LoRA's weights.
        source: those weights, or None for a new LoRA.

    Raises:
        UserError: rank or scaling of the YAML are not those of the weights, or lora_alpha is not known.
    """
    given = section.model_dump(include=section.model_fields_set)
    if source is None:
        return section
    rank = rank_of(source)
    result = PetSection(**{"lora_rank": rank, **stored, **given})
    where = f"model.model_config.pet_config and {source.path}"
    if "lora_alpha" not in {**stored, **given}:
        raise UserError(
            f"{where}: what was lora_alpha? It is not in the YAML, and no config.json with it lies beside the weights."
        )
    if result.lora_rank != rank:
        raise UserError(f"{where} disagree: lora_rank is {result.lora_rank} in the settings and {rank} in the weights.")
    if stored and (scaling := PetSection(**stored).scaling) != result.scaling:
        raise UserError(
            f"{where} disagree: the scaling, of lora_alpha and lora_rank, is {result.scaling:g} in the YAML and "
            f"{scaling:g} in what lies beside the weights. Leave these keys out of the YAML, or correct them."
        )
    return result


def rank_of(source: TensorSource) -> int:
    """The rank of the first factor in `source`; loading checks that all are equal."""
    return next(info.shape[0] for name, info in source.entries.items() if name.endswith(FACTOR_A))
