"""LoRA in a run: from `pet_config`, `load_checkpoint` and `adapter` to factors in a model."""

from dataclasses import dataclass
from pathlib import Path

from mindspore import Parameter, nn

from mindgpt.checkpoints.resizing import TOKENS
from mindgpt.checkpoints.weights import Weights, load_weights
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import PetSection
from mindgpt.config.run_config import RunConfig
from mindgpt.pet.adapter import Adapter, check_factors, open_adapter, resolve_settings, settings_beside
from mindgpt.pet.lora import add_lora
from mindgpt.pet.names import is_factor, linears_with_factors, shown_paths
from mindgpt.runtime.ranks import say


@dataclass(frozen=True)
class LoRAPlan:
    """What a run does about LoRA, decided before the network is built.

    Attributes:
        settings: rank, scaling and the rest, as they count.
        adapter: what to load on top of the base weights, or None.
        in_weights: whether the base weights hold the factors themselves.
        added: the names that the adapter has and the base weights have not.
    """

    settings: PetSection
    adapter: Adapter | None
    in_weights: bool
    added: frozenset[str]

    def put_on(self, model: nn.Cell) -> None:
        """Give the network its factors, and freeze the rest."""
        paths = add_lora(model, self.settings)
        say(
            f"LoRA: rank {self.settings.lora_rank}, scaling {self.settings.scaling:g}, on {len(paths)} linear layers: "
            f"{shown_paths(paths)}"
        )

    def parameters_of_base(self, model: nn.Cell) -> dict[str, Parameter]:
        """The parameters that the file of `load_checkpoint` has to hold: not new factors, nor what an adapter adds."""
        parameters = model.parameters_dict()
        if self.in_weights:
            return parameters
        return {name: value for name, value in parameters.items() if not is_factor(name) and name not in self.added}

    def load_adapter(self, model: nn.Cell) -> None:
        """Load the adapter, strictly: it must hold what this LoRA trains, and nothing else."""
        if self.adapter is not None:
            trained = {parameter.name: parameter for parameter in model.trainable_params()}
            say(f"adapter: {load_weights(trained, self.adapter.source)}")


def plan_lora(config: RunConfig, weights: Weights | None, adapter_path: Path | None) -> LoRAPlan | None:
    """What the configuration and the weights it names mean for LoRA; None: they have nothing to do with it.

    Args:
        config: the run's.
        weights: what `load_checkpoint` names.
        adapter_path: what `pet_config.adapter` names.

    Raises:
        UserError: the weights hold factors and the configuration has no pet_config, or the other way round where
            nothing is trained; two sources of factors; an adapter without its base; or settings that do not fit.
    """
    section = config.model.config.pet_config
    factors = [] if weights is None else linears_with_factors(weights.source.entries)
    path = None if weights is None else weights.source.path
    if factors and TOKENS not in weights.source.entries:
        raise UserError(
            f"{path}: holds an adapter alone, without the weights it belongs to: name those with --load_checkpoint, "
            f"and this with --adapter {path}"
        )
    if section is None:
        if factors:
            raise UserError(_without_pet_config(weights))
        return None
    resumed = bool(factors and config.resume_training and config.run_mode in ("train", "finetune"))
    # The checkpoint that a run goes on from holds what the adapter it began with has become.
    adapter = open_adapter(adapter_path) if adapter_path and not resumed else None
    problem = _problem(config, bool(factors), weights, adapter)
    if problem:
        raise UserError(f"model.model_config.pet_config: {problem}")
    if factors:
        check_factors(weights.source)
        settings = resolve_settings(
            section, settings_beside(path) if weights.kind == "checkpoint" else {}, weights.source
        )
    elif adapter is not None:
        settings = resolve_settings(section, adapter.settings, adapter.source)
    else:
        settings = resolve_settings(section, {}, None)
    added = frozenset(adapter.source.entries).difference(weights.source.entries) if adapter else frozenset()
    return LoRAPlan(settings, adapter, bool(factors), added)


def _problem(config: RunConfig, in_weights: bool, weights: Weights | None, adapter: Adapter | None) -> str | None:
    if weights is None:
        return (
            "LoRA tunes pretrained weights, and none are named: --load_checkpoint. To train from scratch, take it out"
        )
    if in_weights and adapter is not None:
        return (
            f"{weights.source.path} holds LoRA factors already, and adapter names others. Take adapter out, or name "
            "the plain base weights with --load_checkpoint"
        )
    if config.run_mode in ("eval", "predict") and not in_weights and adapter is None:
        return (
            f"{weights.source.path} holds no LoRA factors, and there is nothing trained to {config.run_mode}. Name a "
            "LoRA checkpoint, or an adapter with --adapter; or take pet_config out to use the base weights alone"
        )
    return None


def _without_pet_config(weights: Weights) -> str:
    path = weights.source.path
    told = settings_beside(path) if weights.kind == "checkpoint" else {}
    keys = ("pet_type", "lora_rank", "lora_alpha", "use_rslora", "target_modules")
    shown = ", ".join(f"{key}: {told[key]!r}" for key in keys if key in told)
    shown = shown or "pet_type: lora, lora_rank: ..., lora_alpha: ..."
    return (
        f"{path}: holds LoRA factors (mindpet_delta_lora_a and _b), and the YAML has no pet_config, without which they "
        f"would be left out. Write model.model_config.pet_config: {{{shown}}}, or merge them: python "
        f"tools/transform_ckpt_lora.py --src_ckpt_path_or_dir {path} --dst_ckpt_dir merged/"
    )
