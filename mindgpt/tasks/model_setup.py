"""From `load_checkpoint` and the section `model` to a model with its weights.

MindSpore is loaded by what builds the model, so that what is named can be looked at before.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.resizing import POSITIONS, TOKENS, resized
from mindgpt.checkpoints.run_folder import checkpoints_in, rank_folders
from mindgpt.checkpoints.weights import Weights, find_weights, is_model_name, load_weights, newest_in, open_weights
from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.io.files import DOWNLOADS
from mindgpt.models import model_class
from mindgpt.pet.names import SCORE
from mindgpt.pet.peft_folder import is_peft_folder
from mindgpt.runtime.ranks import rank, say, world_size
from mindgpt.tasks.output_folder import checkpoint_folder

if TYPE_CHECKING:
    from mindgpt.models.gpt2.gpt2_tensor_parallel import ShardOfWeights
    from mindgpt.models.gpt2.pretrained import PretrainedCell
    from mindgpt.tasks.lora_setup import LoRAPlan

_SIZES = {  # the settings that show in the weights' shapes, and where
    TOKENS: ("vocab_size", "hidden_size"),
    POSITIONS: ("max_position_embeddings", "hidden_size"),
    "backbone.blocks.0.output.mapping.weight": ("hidden_size", "ffn_hidden_size"),
    SCORE: ("num_labels", "hidden_size"),
}
_LAYER = re.compile(r"backbone\.blocks\.(\d+)\.")
_SAME_SHAPES = (  # settings that change the network but no shape, so that strict loading cannot see a difference
    "num_heads",
    "hidden_act",
    "layernorm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)


def say_if_kernels_are_missing() -> None:
    """For a task that the C++ kernels could do, if they are missing on this CPU: that it takes longer, and why."""
    from mindgpt.models.acceleration import why_no_kernels

    if reason := why_no_kernels():
        say(f"on CPU, MindSpore's own operators are used, which takes longer than mindgpt's kernels would: {reason}")


def build_model(config: RunConfig, weights_follow: bool = False) -> "PretrainedCell":
    """The network of the section `model`, with weights if the configuration names any; in training modes a classifier
    may start from a language model's.

    Args:
        config: of the run.
        weights_follow: leave them out: a run that is resumed will restore all its parameters.

    Raises:
        UserError: the run needs weights and none are named; they are not there; or they do not fit.
    """
    import mindspore as ms

    from mindgpt.tasks.cards import shares_layers
    from mindgpt.tasks.lora_setup import plan_lora

    model_config = GPT2Config.from_section(config.model.config)
    path = None if weights_follow else weights_path(config)
    weights = None if path is None else open_weights(path, strategy_of(config, path))
    for note in weights.notes if weights else ():
        say(f"note: {note}")
    if config.resize_embeddings:
        weights = _resized(config, model_config, weights)
    if weights is not None:
        _check_same_network(model_config, weights, path)
        _take_label_names(model_config, weights)
    lora = plan_lora(config, weights, adapter_path(config))
    if lora is not None:
        config.model.config.pet_config = lora.settings
        model_config.pet_config = lora.settings.model_copy(update={"adapter": ""})
    model = model_class(config.model.arch.type)(model_config)
    if _trains(config) and config.trainer.class_weights is not None:  # metrics weigh all rows alike
        model.set_class_weights(config.trainer.class_weights)
    if lora is not None:
        lora.put_on(model)
    if shares_layers(config, ms.get_context("device_target")):
        weights = _keep_shard(model, lora, weights)
    if weights_follow:
        say("weights: of the checkpoint to resume from, once the cards have their parts")
    elif weights is None:
        say("weights: random, training from scratch")
    else:
        parameters = lora.parameters_of_base(model) if lora else model
        report = load_weights(parameters, weights, may_be_missing=model.may_be_new if _trains(config) else ())
        say(f"weights: {report}{' (new, and random)' if report.not_in_file else ''}")
    if lora is not None:
        lora.load_adapter(model)
    say(f"model: {config.trainer.model_name}, {sum(value.size for value in model.get_parameters()):,} parameters")
    return model


def _keep_shard(model: "PretrainedCell", lora: "LoRAPlan | None", weights: Weights | None) -> "ShardOfWeights | None":
    """Make the model this card's part; the weights that it takes."""
    if lora is not None:
        raise UserError(
            "LoRA: on several cards a model is evaluated and run with its factors merged. Merge them with "
            "tools/transform_ckpt_lora.py, take pet_config out of the YAML, and name the merged checkpoint."
        )
    from mindgpt.models.gpt2.gpt2_tensor_parallel import ShardOfWeights, keep_shard

    axes = keep_shard(model.backbone, world_size())
    return None if weights is None else ShardOfWeights(weights.source, axes, world_size(), rank())


def _trains(config: RunConfig) -> bool:
    return config.run_mode in ("train", "finetune")


def weights_path(config: RunConfig) -> Path | None:
    """The file or folder of weights that a run starts from, or None to start from scratch.

    `load_checkpoint` goes before `model.model_config.checkpoint_name_or_path`. A bare model name, which MindFormers
    downloaded, is looked for in `./checkpoint_download/gpt2`. A folder of a run's checkpoints means the newest one. An
    evaluation or prediction for which none are named takes those in its own output folder, and says so.

    Raises:
        UserError: what is named is not there, or nothing is named and the run mode needs weights.
    """
    named = config.load_checkpoint or config.model.config.checkpoint_name_or_path
    own = None if _trains(config) else _checkpoints_in_output_folder(config)
    if own is not None and _names_no_weights_of_this_kind(config, named):
        what = f"{named} has no classification head" if named else "none are named"
        say(f"weights: {what}, so those of the run in this output folder are used (--load_checkpoint names others)")
        return newest_in(own)
    if not named:
        if config.run_mode == "train":
            return None
        raise UserError(
            f"run_mode {config.run_mode} needs weights: name a .ckpt, a run's checkpoint folder or a Hugging Face "
            "folder with --load_checkpoint"
        )
    somewhere = Path(named).exists() or (DOWNLOADS / f"{named}.ckpt").exists()
    if config.run_mode == "train" and is_model_name(named) and not somewhere:
        say(f"weights: {named} is not in {DOWNLOADS}, and nothing is downloaded")
        return None
    try:
        return find_weights(named)
    except UserError as error:
        hint = f" A run has left some in this output folder: --load_checkpoint {own}" if own else ""
        raise UserError(f"load_checkpoint: {error}{hint}") from None


def _checkpoints_in_output_folder(config: RunConfig) -> Path | None:
    """The folder of checkpoints that an earlier run with these settings has left, or None."""
    folder = checkpoint_folder(config)
    return folder if any(checkpoints_in(ranks) for ranks in rank_folders(folder).values()) else None


def _names_no_weights_of_this_kind(config: RunConfig, named: str) -> bool:
    """Whether no weights are named, or for a classifier only a model: those that have names are language models."""
    if not named:
        return True
    classifies = config.trainer.type == "TextClassificationTrainer"
    return classifies and is_model_name(named) and not Path(named).exists()


def strategy_of(config: RunConfig, path: Path) -> str | None:
    """The strategy by which the weights at `path` were cut, if one is named; else it is looked for beside them.

    With `auto_trans_ckpt` or without it, slices are put together and cut anew for the cards of this run.

    Raises:
        UserError: one is named, and there is nothing that it could be of.
    """
    named = config.src_strategy_path_or_dir
    if named and not (path.is_dir() and rank_folders(path)):
        raise UserError(
            f"src_strategy_path_or_dir: {named} tells how slices belong together, but load_checkpoint {path} is no "
            "folder of them (rank_0, rank_1, ...). Leave it out for weights that are whole."
        )
    return named or None


def adapter_path(config: RunConfig) -> Path | None:
    """The PEFT folder or file of a LoRA adapter that a run loads on top of its weights, or None.

    A run's folder `checkpoint_trainable` means the newest in it.

    Raises:
        UserError: what is named is not there.
    """
    section = config.model.config.pet_config
    if section is None or not section.adapter:
        return None
    path = Path(section.adapter)
    if not path.exists():
        raise UserError(f"adapter: there is no file or folder {path} (looked from {Path.cwd()})")
    return newest_in(path) if path.is_dir() and not is_peft_folder(path) else path


def _resized(config: RunConfig, model_config: GPT2Config, weights: Weights | None) -> Weights | None:
    """The weights with embedding tables of the YAML's size; says what was resized from what to what.

    Raises:
        UserError: a smaller vocabulary, or rows that nobody has trained in a run that does not train.
    """
    if weights is None:
        say("resize_embeddings has no effect: there are no weights to resize")
        return None
    if not _trains(config):
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


def _check_same_network(config: GPT2Config, weights: Weights, path: Path) -> None:
    """Say in the YAML's words what would otherwise be a page of misshapen parameters, or would not be seen at all.

    Raises:
        UserError: the weights are of a network of another size, or with another number of heads.
    """
    sizes = _sizes(weights)
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
        if getattr(weights.config, name) != getattr(config, name)
    ]
    if weights.config.num_heads != config.num_heads:
        raise UserError(
            f"{path}: the config.json beside the weights describes another network: {'; '.join(differences)}. "
            "Correct model.model_config."
        )
    if differences:
        say(f"note: the config.json beside {path} differs: {'; '.join(differences)}. The YAML is obeyed.")


def _take_label_names(config: GPT2Config, weights: Weights) -> None:
    """A classifier's names of its labels, from the weights if neither YAML nor data name them.

    Raises:
        UserError: the weights were trained with other names, or the same in another order.
    """
    names = weights.config.label_names if weights.config else None
    if names is None or SCORE not in weights.source.entries:
        return
    if config.label_names is None:
        config.label_names = names
    elif config.label_names != names:
        raise UserError(
            f"{weights.source.path} was trained to tell apart {', '.join(names)}, in this order; the data or the YAML "
            f"say {', '.join(config.label_names)}. Make the data with --label_names {' '.join(names)}, or start from "
            "the weights of a language model."
        )


def _sizes(weights: Weights) -> dict[str, int]:
    """The settings of the network as far as the shapes of its weights tell them."""
    entries = weights.source.entries
    sizes: dict[str, int] = {}
    for name, settings in _SIZES.items():
        if name in entries and len(entries[name].shape) == len(settings):
            sizes |= dict(zip(settings, entries[name].shape, strict=True))
    layers = {match[1] for name in entries if (match := _LAYER.match(name))}
    return sizes | ({"num_layers": len(layers)} if layers else {})
