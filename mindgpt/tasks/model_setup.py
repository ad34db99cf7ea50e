"""From `load_checkpoint` and the section `model` to a model with its weights and its LoRA."""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import Parameter, Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindgpt.checkpoints.gpt2_config import GPT2Config, read_config
from mindgpt.checkpoints.gpt2_names import variant_of
from mindgpt.checkpoints.locations import config_beside
from mindgpt.checkpoints.resizing import POSITIONS, TOKENS, UNTIED_HEAD, resized
from mindgpt.checkpoints.tensor_source import Box
from mindgpt.checkpoints.weights import CheckedWeights, Weights, check_variant, check_weights, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.generation_section import GenerationSection
from mindgpt.config.model_sections import GPT2Section, PetSection
from mindgpt.config.run_config import RunConfig
from mindgpt.config.strategy import Strategy
from mindgpt.generation import GenerationSettings
from mindgpt.models import model_class
from mindgpt.models.acceleration import why_no_kernels
from mindgpt.models.gpt2.gpt2_tensor_parallel import ShardOfWeights, keep_shard
from mindgpt.models.gpt2.pretrained import PretrainedCell
from mindgpt.pet.adapter import (
    Adapter,
    check_adapter_variant,
    check_factors,
    open_adapter,
    resolve_settings,
    settings_beside,
)
from mindgpt.pet.lora import add_lora
from mindgpt.pet.names import SCORE, is_factor, linears_with_factors, shown_paths
from mindgpt.runtime.collectives import strategy
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.tasks.vocabulary_padding import fit_vocabulary
from mindgpt.tasks.weights_files import adapter_path, strategy_file, weights_path

_SIZES = {  # the settings that the shapes of weights imply
    TOKENS: ("vocab_size", "hidden_size"),
    POSITIONS: ("max_position_embeddings", "hidden_size"),
    "backbone.blocks.0.output.mapping.weight": ("hidden_size", "ffn_hidden_size"),
    SCORE: ("num_labels", "hidden_size"),
}
_LAYER = re.compile(r"backbone\.blocks\.(\d+)\.")
# Settings that change the network but no shape, so that strict loading cannot see a difference. Those that a YAML does
# not name are taken from the config of its weights.
_TAKEN_FROM_WEIGHTS = ("hidden_act", "layernorm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")
_SAME_SHAPES = ("num_heads", "layer_norm", *_TAKEN_FROM_WEIGHTS)


@dataclass(frozen=True)
class LoRAPlan:
    """The LoRA of a run, resolved before the network is built.

    Attributes:
        settings: rank, scaling and the rest, resolved.
        adapter: to load on top of the base weights, or None.
        in_weights: whether the base weights hold the factors.
        added: the names that only the adapter has.
    """

    settings: PetSection
    adapter: Adapter | None
    in_weights: bool
    added: frozenset[str]

    def put_on(self, model: nn.Cell) -> None:
        """Add the factors to the network, and freeze the rest."""
        paths = add_lora(model, self.settings)
        say(
            f"LoRA: rank {self.settings.lora_rank}, scaling {self.settings.scaling:g}, on {len(paths)} linear layers: "
            f"{shown_paths(paths)}"
        )

    def parameters_of_base(self, model: nn.Cell) -> dict[str, Parameter]:
        """The parameters that `load_checkpoint` must hold: neither new factors nor what an adapter adds."""
        parameters = model.parameters_dict()
        if self.in_weights:
            return parameters
        return {name: value for name, value in parameters.items() if not is_factor(name) and name not in self.added}

    def checked_adapter(self, model: nn.Cell) -> CheckedWeights | None:
        """The adapter, checked strictly: it must hold what this LoRA trains, and nothing else."""
        if self.adapter is None:
            return None
        trained = {parameter.name: parameter for parameter in model.trainable_params()}
        return check_weights(trained, self.adapter.source)


@dataclass(frozen=True)
class Start:
    """What a built model begins with: weights that fit it and are not read yet.

    Attributes:
        weights: or None.
        without: what is said where there are none.
        adapter: of LoRA, on top of the weights; or None.
        model: what is said of the model.
    """

    weights: CheckedWeights | None
    without: str
    adapter: CheckedWeights | None
    model: str

    def load(
        self,
        parameters: Mapping[str, Parameter],
        boxes: Callable[[Parameter, tuple[int, ...]], Box | None] | None = None,
        masters: Mapping[str, Parameter] | None = None,
        unrounded: dict[str, Tensor] | None = None,
    ) -> None:
        """Set these parameters from the weights, which are read now; as `CheckedWeights.load`. Says what was done."""
        if self.weights is None:
            say(f"weights: {self.without}")
        else:
            report = self.weights.report
            loaded = self.weights.load(parameters, boxes, masters, unrounded)
            shard = f"; the shards of rank {rank()}: {loaded / 2**20:,.1f} of " if boxes else ""
            shard += f"{self.weights.nbytes / 2**20:,.1f} MiB" if boxes else ""
            say(f"weights: {report}{' (new, and random)' if report.not_in_file else ''}{shard}")
        if self.adapter is not None:
            self.adapter.load(parameters, boxes, masters, unrounded)
            say(f"adapter: {self.adapter.report}")
        say(self.model)


def say_if_kernels_are_missing() -> None:
    """On a CPU without the C++ kernels, print that the task takes longer, and why."""
    if reason := why_no_kernels():
        say(f"on CPU, MindSpore's own operators are used, which takes longer than mindgpt's kernels would: {reason}")


def build_model(config: RunConfig) -> tuple[PretrainedCell, RunConfig]:
    """As `plan_model`; the weights are loaded."""
    model, config, start = plan_model(config)
    start.load(model.parameters_dict())
    return model, config


def plan_model(config: RunConfig, weights_follow: Path | None = None) -> tuple[PretrainedCell, RunConfig, Start]:
    """The network of the section `model`, and the weights that it begins with if the configuration names any; in
    training modes a classifier may start from a language model's.

    If it is to be sharded, its parameters have no values yet: `sharded_start.load_shards` gives them these, or loading.

    Args:
        config: of the run.
        weights_follow: build it without weights, which a resumed run restores afterwards from this checkpoint of a
            rank's shards.

    Returns:
        The model, the configuration resolved with the weights, and these, which fit the model and are not loaded.

    Raises:
        UserError: the run needs weights and none are named; they are not there; or they do not fit.
    """
    path = None if weights_follow else weights_path(config)
    weights = None if path is None else open_weights(path, strategy_file(config, path))
    for note in weights.notes if weights else ():
        say(f"note: {note}")
    config, weights = fit_vocabulary(config, weights)
    if config.resize_embeddings:
        weights = _resized(config, weights)
    if weights_follow and (file := config_beside(weights_follow)):
        found = read_config(file)[0]
        config = _with_network_of(config, found, weights_follow, untied=not found.tie_word_embeddings)
    config, lora = resolve_with_weights(config, weights)
    section = config.model.config
    if lora is not None:  # the path of an adapter says nothing about the network
        section = section.replaced({"pet_config.adapter": ""})
    will_shard = strategy() in (Strategy.SEMI_AUTO, Strategy.TENSOR_PARALLEL)
    with no_init_parameters() if will_shard else contextlib.nullcontext():
        model = model_class(config.model.arch.type)(GPT2Config.from_section(section))
        if config.trains and config.trainer.class_weights is not None:  # metrics weigh all rows alike
            model.set_class_weights(config.trainer.class_weights)
        if lora is not None:
            lora.put_on(model)
    if strategy() is Strategy.TENSOR_PARALLEL:
        weights = _shard(model, lora, weights)
    checked, without = None, "random, training from scratch"
    if weights_follow:
        without = "of the checkpoint to resume from"
    elif weights is not None:
        parameters = lora.parameters_of_base(model) if lora else model
        checked = check_weights(parameters, weights, model.may_be_new if config.trains else (), model.leaves_out)
    adapter = None if lora is None else lora.checked_adapter(model)
    if checked is not None and strategy() is Strategy.SEMI_AUTO:
        say(f"weights: {checked.report.path} fits the model; each card reads its shards once the step is compiled")
    size = sum(value.size for value in model.get_parameters())
    start = Start(checked, without, adapter, f"model: {config.trainer.model_name}, {size:,} parameters")
    return model, config, start


def resolve_with_weights(config: RunConfig, weights: Weights | None) -> tuple[RunConfig, LoRAPlan | None]:
    """The second step of resolving a configuration, after `load_config`: what depends on opened weights.

    Args:
        config: of the run.
        weights: what it starts from, or None.

    Returns:
        The configuration with the layer norm, output head, label names and LoRA settings that count, and what to do
        about LoRA.

    Raises:
        UserError: weights or adapter do not fit the configuration or each other.
    """
    if weights is not None:
        untied = UNTIED_HEAD in weights.source.entries if TOKENS in weights.source.entries else None
        found = weights.config or weights.without_heads
        check_variant(config.model.config.variant, variant_of(weights.source.entries), weights.source.path)
        config = _with_network_of(config, found, weights.source.path, untied, weights.assumed)
        _check_same_network(config.model.config, weights)
        config = config.replaced({"model.config.label_names": _label_names(config.model.config, weights)})
    lora = plan_lora(config, weights, adapter_path(config))
    if lora is not None:
        config = config.replaced({"model.config.pet_config": lora.settings})
    return config, lora


def plan_lora(config: RunConfig, weights: Weights | None, adapter_path: Path | None) -> LoRAPlan | None:
    """The LoRA that the configuration and the weights ask for; None: none.

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
    resumed = bool(factors and config.resume_training and config.trains)
    # A resumed run continues the adapter that its checkpoint holds.
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
        check_adapter_variant(adapter, config.model.config.variant)
        settings = resolve_settings(section, adapter.settings, adapter.source)
    else:
        settings = section
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
    metadata = settings_beside(path) if weights.kind == "checkpoint" else {}
    keys = ("pet_type", "lora_rank", "lora_alpha", "use_rslora", "target_modules")
    shown = ", ".join(f"{key}: {metadata[key]!r}" for key in keys if key in metadata)
    shown = shown or "pet_type: lora, lora_rank: ..., lora_alpha: ..."
    return (
        f"{path}: holds LoRA factors (mindpet_delta_lora_a and _b), and the YAML has no pet_config, without which they "
        f"would be left out. Write model.model_config.pet_config: {{{shown}}}, or merge them: python "
        f"tools/transform_ckpt_lora.py --src_ckpt_path_or_dir {path} --dst_ckpt_dir merged/"
    )


def _shard(model: PretrainedCell, lora: LoRAPlan | None, weights: Weights | None) -> ShardOfWeights | None:
    """Make the model this rank's shard. Returns the weights of the shard."""
    if lora is not None:
        raise UserError(
            "LoRA: on several cards a model is evaluated and run with its factors merged. Merge them with "
            "tools/transform_ckpt_lora.py, take pet_config out of the YAML, and name the merged checkpoint."
        )
    axes = keep_shard(model.backbone, world_size())
    return None if weights is None else ShardOfWeights(weights.source, axes, world_size(), rank())


def _resized(config: RunConfig, weights: Weights | None) -> Weights | None:
    """The weights with embedding tables of the YAML's size; says what was resized from what to what.

    Raises:
        UserError: a smaller vocabulary, or untrained rows in a run that does not train.
    """
    model_config = config.model.config
    if weights is None:
        say("resize_embeddings has no effect: there are no weights to resize")
        return None
    if not config.trains:
        for name, size in _sizes(weights).items():
            if name in ("max_position_embeddings", "vocab_size") and size < getattr(model_config, name):
                raise UserError(
                    f"resize_embeddings: {name} is {size} in {weights.source.path} and {getattr(model_config, name)} "
                    f"in the YAML: run_mode {config.run_mode} would use rows that nobody has trained. Correct "
                    "model.model_config, or fine-tune first."
                )
    weights, changes = resized(weights, model_config, config.seed)
    for change in changes:
        say(f"resize_embeddings: {change}")
    return weights


def _check_same_network(config: GPT2Section, weights: Weights) -> None:
    """Compare the weights with the YAML: names settings where loading could only list parameters, or see nothing.

    Raises:
        UserError: the weights are of a network of another size, or with another number of heads.
    """
    sizes, path = _sizes(weights), weights.source.path
    wrong = [
        f"{name} is {size} in the file and {getattr(config, name)} in the YAML"
        for name, size in sizes.items()
        if size != getattr(config, name)
    ]
    if wrong:
        resizable = {"max_position_embeddings", "vocab_size"}
        differing = {name for name, size in sizes.items() if size != getattr(config, name)}
        hint = " resize_embeddings: True resizes the embedding tables." if differing <= resizable else ""
        raise UserError(
            f"{path} holds another network than the YAML describes: {'; '.join(wrong)}. Correct model.model_config, "
            f"or name other weights.{hint}"
        )
    if weights.config is None:
        return
    differences = [
        f"{name} is {getattr(weights.config, name)!r} there and {getattr(config, name)!r} in the YAML"
        for name in _SAME_SHAPES
        if getattr(weights.config, name) != getattr(config, name) and name not in weights.assumed
    ]
    if weights.config.num_heads != config.num_heads and "num_heads" not in weights.assumed:
        raise UserError(
            f"{path}: the config.json beside the weights describes another network: {'; '.join(differences)}. "
            "Correct model.model_config."
        )
    if differences:
        say(f"note: the config.json beside {path} differs: {'; '.join(differences)}. The YAML is obeyed.")


def _with_network_of(
    config: RunConfig, found: GPT2Config | None, path: Path, untied: bool | None, assumed: tuple[str, ...] = ()
) -> RunConfig:
    """The configuration with the settings of its weights that change no shape and that the YAML does not name; says
    what was taken from there.

    Args:
        config: of the run.
        found: the config that lies with the weights, or None.
        path: of the weights.
        untied: whether they have an untied output head; None: they have no head to compare.
        assumed: settings of `found` that no file says.

    Raises:
        UserError: the YAML names another, or another variant.
    """
    section = config.model.config
    named = section.model_fields_set
    changes = {}
    if found is not None:
        check_variant(section.variant, found.variant, path)
        changes = _layer_norm_of(section, found, path)
        for name in _TAKEN_FROM_WEIGHTS:
            value = getattr(found, name)
            if name not in named and name not in assumed and value != getattr(section, name):
                changes[name] = value
                say(f"{name}: {value}, as the config of {path} says")
        changes |= _generation_of(config, found, path)
    is_language_model = config.model.arch.type == "GPT2LMHeadModel"
    if is_language_model and untied is not None and untied == section.tie_word_embeddings:
        head = "an output head of its own (head.weight)" if untied else "the token embedding as its output head"
        if "tie_word_embeddings" in named:
            raise UserError(
                f"{path} has {head}, and the YAML says tie_word_embeddings: {section.tie_word_embeddings}. Correct "
                "model.model_config.tie_word_embeddings, or take it out."
            )
        changes["tie_word_embeddings"] = not untied
        say(f"tie_word_embeddings: {not untied}: {path} has {head}")
    return config.replaced({f"model.config.{name}": value for name, value in changes.items()})


def _generation_of(config: RunConfig, found: GPT2Config, path: Path) -> dict[str, Any]:
    """The settings of generation that a YAML leaves to the config of its weights, if these are of ModelScope's GPT-3,
    whose config.json has its users' defaults."""
    section = config.model.config
    if not found.exclusive_filters:
        return {}
    given = {name: getattr(section, name) for name in section.model_fields_set & {*GenerationSection.model_fields}}
    if "max_decode_length" in section.model_fields_set:
        given["max_length"] = section.max_decode_length
    settings = GenerationSettings.from_config(found, **given)
    values = {name: getattr(settings, name) for name in GenerationSection.model_fields}
    values["max_decode_length"] = settings.max_length
    if "prompt_special_tokens" not in section.model_fields_set:
        values["prompt_special_tokens"] = found.prompt_special_tokens
    changes = {name: value for name, value in values.items() if value != getattr(section, name)}
    if changes and config.run_mode == "predict":
        listed = ", ".join(f"{name} {value}" for name, value in changes.items())
        say(f"generation: {listed}, as the config of {path} says")
    return changes


def _layer_norm_of(section: GPT2Section, found: GPT2Config, path: Path) -> dict[str, Any]:
    """The settings of layer norms that a YAML leaves to the config of its weights.

    Raises:
        UserError: the YAML names others, with which the same weights would be another network.
    """
    named, changes = section.model_fields_set, {}
    if found.layer_norm != section.layer_norm:
        if named & {"layer_norm", "layer_norm_conversion"}:
            raise UserError(
                f"{path}: its config says layer_norm {found.layer_norm!r}, the YAML {section.layer_norm!r}: the "
                "same weights would be another network. Correct model.model_config.layer_norm, or convert the weights."
            )
        changes["layer_norm"] = found.layer_norm
        say(f"layer_norm: {found.layer_norm}, as the config of {path} says")
    conversion = found.layer_norm_conversion
    if "layer_norm_conversion" not in named:
        changes["layer_norm_conversion"] = conversion
    elif conversion not in (None, section.layer_norm_conversion):
        raise UserError(
            f"{path}: its config says layer_norm_conversion {conversion!r}, the YAML "
            f"{section.layer_norm_conversion!r}. Take model.model_config.layer_norm_conversion out of the YAML: it "
            "only records what was done to the weights."
        )
    return changes


def _label_names(config: GPT2Section, weights: Weights) -> list[str] | None:
    """A classifier's label names: of the weights, if neither YAML nor data name them.

    Raises:
        UserError: the weights were trained with other names, or the same in another order.
    """
    names = weights.config.label_names if weights.config else None
    if names is None or SCORE not in weights.source.entries or config.label_names == names:
        return config.label_names
    if config.label_names is None:
        return names
    raise UserError(
        f"{weights.source.path} was trained to tell apart {', '.join(names)}, in this order; the data or the YAML "
        f"say {', '.join(config.label_names)}. Make the data with --label_names {' '.join(names)}, or start from "
        "the weights of a language model."
    )


def _sizes(weights: Weights) -> dict[str, int]:
    """The settings of the network that the shapes of its weights imply."""
    entries = weights.source.entries
    sizes: dict[str, int] = {}
    for name, settings in _SIZES.items():
        if name in entries and len(entries[name].shape) == len(settings):
            sizes |= dict(zip(settings, entries[name].shape, strict=True))
    layers = {match[1] for name in entries if (match := _LAYER.match(name))}
    return sizes | ({"num_layers": len(layers)} if layers else {})
