"""From `load_checkpoint` and the section `model` to a model with its weights."""

import re
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.config.run import RunConfig
from mindgpt.models.gpt2.gpt2 import GPT2LMHeadModel
from mindgpt.models.gpt2.gpt2_config import GPT2Config
from mindgpt.models.weights import Weights, load_weights, open_weights
from mindgpt.runtime.ranks import say
from mindgpt.train.checkpoints import last_checkpoint

DOWNLOADS = Path("checkpoint_download/gpt2")  # where MindFormers put what it downloaded
_SIZES = {  # the settings that show in the weights' shapes, and where
    "backbone.embedding.word_embedding.embedding_table": ("vocab_size", "hidden_size"),
    "backbone.embedding.position_embedding.embedding_table": ("max_position_embeddings", "hidden_size"),
    "backbone.blocks.0.output.mapping.weight": ("hidden_size", "ffn_hidden_size"),
}
_LAYER = re.compile(r"backbone\.blocks\.(\d+)\.")
_SAME_SHAPES = (  # settings that change the network but no shape, so that strict loading cannot see a difference
    "num_heads",
    "hidden_act",
    "layernorm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)


def build_model(config: RunConfig) -> GPT2LMHeadModel:
    """The network of the section `model`, with weights if the configuration names any.

    Raises:
        UserError: the run needs weights and none are named; they are not there; or they do not fit.
    """
    model_config = GPT2Config.from_section(config.model.config)
    path = weights_path(config)
    weights = None if path is None else open_weights(path)
    if weights is not None:
        _check_same_network(model_config, weights, path)
    model = GPT2LMHeadModel(model_config)
    if weights is None:
        say("weights: random, training from scratch")
    else:
        say(f"weights: {load_weights(model, weights)}")
    say(f"model: {config.trainer.model_name}, {model_config.num_parameters():,} parameters")
    return model


def weights_path(config: RunConfig) -> Path | None:
    """The file or folder of weights that a run starts from, or None to start from scratch.

    `load_checkpoint` goes before `model.model_config.checkpoint_name_or_path`. A bare model name, which MindFormers
    downloaded, is looked for in `./checkpoint_download/gpt2`. A folder of a run's checkpoints means the newest one.

    Raises:
        UserError: what is named is not there, or nothing is named and the run mode needs weights.
    """
    named = config.load_checkpoint or config.model.config.checkpoint_name_or_path
    if not named:
        if config.run_mode == "train":
            return None
        raise UserError(
            f"run_mode {config.run_mode} needs weights: name a .ckpt, a run's checkpoint folder or a Hugging Face "
            "folder with --load_checkpoint"
        )
    path = Path(named)
    if path.is_dir():
        return _newest_in(path)
    if path.exists():
        return path
    downloaded = DOWNLOADS / f"{named}.ckpt"
    if downloaded.exists():
        return downloaded
    if not _is_model_name(named):
        raise UserError(f"load_checkpoint: there is no file or folder {named} (looked from {Path.cwd()})")
    if config.run_mode == "train":
        say(f"weights: {named} is not in {DOWNLOADS}, and nothing is downloaded")
        return None
    raise UserError(
        f"load_checkpoint: {named} is a model name, and there is no {downloaded}. mindgpt downloads nothing: put the "
        "file there, or name your own with --load_checkpoint. convert_weight.py makes one of Hugging Face weights."
    )


def _is_model_name(named: str) -> bool:
    return "/" not in named and not named.endswith((".ckpt", ".bin", ".safetensors"))


def _newest_in(folder: Path) -> Path:
    """`folder` itself if it holds a model; the newest checkpoint if it is a run's checkpoint folder."""
    ranks = folder / "rank_0"
    candidates = ranks if ranks.is_dir() else folder
    try:
        newest = last_checkpoint(candidates)
    except UserError:
        return folder
    say(f"load_checkpoint: the newest in {candidates} is {newest.name}")
    written_last = max(candidates.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if written_last != newest:
        say(f"note: {written_last.name} was written later; if it is of a later run, name it with --load_checkpoint")
    return newest


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
        raise UserError(
            f"{path} holds another network than the YAML describes: {'; '.join(wrong)}. Correct model.model_config, "
            "or name other weights."
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


def _sizes(weights: Weights) -> dict[str, int]:
    """The settings of the network as far as the shapes of its weights tell them."""
    entries = weights.source.entries
    sizes: dict[str, int] = {}
    for name, settings in _SIZES.items():
        if name in entries and len(entries[name].shape) == len(settings):
            sizes |= dict(zip(settings, entries[name].shape, strict=True))
    layers = {match[1] for name in entries if (match := _LAYER.match(name))}
    return sizes | ({"num_layers": len(layers)} if layers else {})
