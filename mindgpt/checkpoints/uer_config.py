"""The config of a model of UER-py or TencentPretrain, from their JSON, the weights and vocab.txt; and their JSON.

Their JSON does not give the size of the vocabulary, and before August 2021 it had eight keys only; flags of the command
line gave the rest. Sources: `models/gpt2/*.json` and `opts.py` of both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.foreign_configs import is_uer_json
from mindgpt.checkpoints.found_config import (
    HEAD_SIZE,
    FoundConfig,
    check_sizes_of_config,
    checked_vocabulary,
)
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, read_config
from mindgpt.checkpoints.locations import file_beside, own_config
from mindgpt.checkpoints.uer_views import UERView
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import UER_EPSILON
from mindgpt.config.section import shown
from mindgpt.io.files import read_json
from mindgpt.tokenizers.wordpiece_files import read_vocab

_ACTIVATIONS = {"gelu": "gelu_erf", "gelu_fast": "gelu", "relu": "relu", "silu": "silu"}
_OF_GPT2 = {  # the values that make a GPT-2; the first is written
    "embedding": (["word", "pos"], "word_pos"),
    "remove_embedding_layernorm": (True,),
    "encoder": ("transformer",),
    "mask": ("causal",),
    "layernorm_positioning": ("pre",),
    "target": (["lm"], "lm"),
}
_OTHERS = {  # that must have this value, which is also their default
    "decoder": None,
    "feed_forward": "dense",
    "layernorm": "normal",
    **dict.fromkeys(
        [
            "relative_position_embedding", "rotary_position_embedding", "alibi_position_embedding",
            "factorized_embedding_parameterization", "parameter_sharing", "has_residual_attention",
            "has_lmtarget_bias", "remove_transformer_bias", "remove_attention_scale", "layer_number_scale",
        ],
        False,
    ),
}  # fmt: skip
_SIZES = {"layers_num": "L", "hidden_size": "H", "emb_size": "H", "feedforward_size": "F", "max_seq_length": "P"}
_SPECIAL_TOKENS = {"bos_token_id": "[CLS]", "eos_token_id": "[SEP]", "pad_token_id": "[PAD]"}


def config_of_uer(
    view: UERView, given: str | None = None, vocabulary: Path | None = None, num_heads: int | None = None
) -> FoundConfig:
    """The config of weights of UER-py.

    Args:
        view: the weights.
        given: a preset, or a config file or folder, in UER-py's form or ours; None: `<name>.config.json` or
            `config.json` beside the weights; without one, the sizes are those of the weights.
        vocabulary: a vocab.txt, or a folder that holds one; None: the one beside the weights, if there is one.
        num_heads: the number of heads, for weights without config.

    Raises:
        UserError: the config or the vocabulary is broken, or not of these weights, or makes another network.
    """
    vocabulary = checked_vocabulary(view.path, view.sizes["V"], vocabulary)
    settings = {
        "vocab_size": view.sizes["V"],
        "num_layers": view.sizes["L"],
        "hidden_size": view.sizes["H"],
        "ffn_hidden_size": view.sizes["F"],
        "max_position_embeddings": view.sizes["P"],
        "layer_norm": "uer",
        "layer_norm_conversion": "uer",
        "layernorm_epsilon": UER_EPSILON,
        "prompt_special_tokens": "bos",
        "tie_word_embeddings": not view.untied,
    }
    settings |= {} if vocabulary is None else _special_ids(vocabulary)
    file = _config_file(view, given)
    content = None if file is None else read_json(file)
    if content is None and given is not None or content is not None and not is_uer_json(content):
        return _in_our_form(given or str(file), settings, view, num_heads, vocabulary)
    if content is None:
        return _without_config(settings, view, num_heads, vocabulary)
    from_json, notes = settings_of_json(content, view.sizes, str(file))
    if num_heads not in (None, from_json["num_heads"]):
        raise UserError(f"--num_heads {num_heads}: {file} says {from_json['num_heads']}. Leave the flag out.")
    return FoundConfig(GPT2Config(**settings | from_json), notes, vocabulary=vocabulary)


def settings_of_json(
    content: Mapping[str, Any], sizes: Mapping[str, int], where: str
) -> tuple[dict[str, Any], list[str]]:
    """The settings of `GPT2Config` in a JSON of UER-py, and notes for the user.

    Args:
        content: of the file.
        sizes: of the weights: "L", "H", "F", "P".
        where: names the file in messages.

    Raises:
        UserError: it describes other weights or another network; all problems are listed.
    """
    problems = [
        f"{key} is {shown(content[key])}, the weights have {sizes[letter]}"
        for key, letter in _SIZES.items()
        if key in content and content[key] != sizes[letter]
    ]
    problems += [
        f"{key} is {shown(content[key])}, a GPT-2 has {shown(allowed[0])}"
        for key, allowed in _OF_GPT2.items()
        if key in content and content[key] not in allowed
    ]
    problems += [
        f"{key} is {shown(content[key])}, which makes another network than GPT-2"
        for key, value in _OTHERS.items()
        if content.get(key, value) not in (value, None)
    ]
    heads, activation = content.get("heads_num"), content.get("hidden_act", "gelu_fast")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or sizes["H"] % heads:
        problems.append(f"heads_num is {shown(heads)}, and must be a number that divides {sizes['H']}")
    elif content.get("attention_head_size", sizes["H"] // heads) != sizes["H"] // heads:
        problems.append(f"attention_head_size is not hidden_size / heads_num = {sizes['H'] // heads}")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        problems.append(f"hidden_act is {shown(activation)}, and must be one of {', '.join(_ACTIVATIONS)}")
    if problems:
        raise UserError(f"{where}: is not the config of these weights:\n  " + "\n  ".join(problems))
    dropout = content.get("dropout", 0.1)
    settings = {
        "num_heads": heads,
        "hidden_act": _ACTIVATIONS[activation],
        "layernorm_epsilon": content.get("layernorm_eps", UER_EPSILON),
        **dict.fromkeys(("embedding_dropout_rate", "hidden_dropout_rate", "attention_dropout_rate"), dropout),
    }
    absent = [key for key in _OF_GPT2 if key not in content]
    note = f"{where}: does not say {', '.join(absent)}, as flags of the command line did; a GPT-2's are taken"
    return settings, [note] if absent else []


def uer_json(config: GPT2Config, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of UER-py's config file for a model, and notes for the user.

    Args:
        config: of the model.
        path: of the weights, for messages.

    Raises:
        UserError: UER-py does not compute such a model.
    """
    activation = next((theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.hidden_act), None)
    problems = [] if activation else [f"hidden_act {config.hidden_act}"]
    problems += [] if config.scale_attn_weights else ["scale_attn_weights False"]
    problems += ["scale_attn_by_inverse_layer_idx True"] if config.scale_attn_by_inverse_layer_idx else []
    if problems:
        raise UserError(f"{path}: UER-py does not compute such a model: {', '.join(problems)}.")
    rates = {config.embedding_dropout_rate, config.hidden_dropout_rate, config.attention_dropout_rate}
    notes = []
    if len(rates) > 1:
        notes.append(f"UER-py has one dropout rate; {config.hidden_dropout_rate:g} is written, that of hidden layers")
    content = {
        "emb_size": config.hidden_size,
        "feedforward_size": config.ffn_hidden_size,
        "hidden_size": config.hidden_size,
        "hidden_act": activation,
        "heads_num": config.num_heads,
        "layers_num": config.num_layers,
        "max_seq_length": config.max_position_embeddings,
        "dropout": config.hidden_dropout_rate,
        "data_processor": "lm",
        **{key: allowed[0] for key, allowed in _OF_GPT2.items()},
        "tie_weights": config.tie_word_embeddings,
    }
    if config.layer_norm == "uer" and config.layernorm_epsilon != UER_EPSILON:
        content["layernorm_eps"] = config.layernorm_epsilon
        notes.append(
            f"the eps of layer norms is {config.layernorm_epsilon:g}: TencentPretrain reads it as layernorm_eps, and "
            f"UER-py always takes {UER_EPSILON:g}"
        )
    return content, notes


def _special_ids(vocabulary: Path) -> dict[str, int]:
    ids = read_vocab(vocabulary)
    return {key: ids[token] for key, token in _SPECIAL_TOKENS.items() if token in ids}


def _config_file(view: UERView, given: str | None) -> Path | None:
    """The config file that is given or lies beside the weights; None: none, or a preset is given."""
    if given is not None:
        path = Path(given)
        return path / CONFIG_FILE if path.is_dir() else path if path.is_file() else None
    own = own_config(view.path)
    return own if own.is_file() else file_beside(view.path, CONFIG_FILE)


def _without_config(
    settings: Mapping[str, Any], view: UERView, num_heads: int | None, vocabulary: Path | None
) -> FoundConfig:
    """The config of weights alone; the number of heads is the given one, or that of published models of this width."""
    heads = num_heads
    assumed: tuple[str, ...] = ("hidden_act",)
    if heads is None:
        if view.sizes["H"] % HEAD_SIZE:
            return FoundConfig(None, [], assumed, vocabulary, without_heads=GPT2Config(**settings, num_heads=1))
        heads, assumed = view.sizes["H"] // HEAD_SIZE, ("num_heads", "hidden_act")
    how = f" {heads} heads are assumed, of {HEAD_SIZE} values as in all published sizes;" if num_heads is None else ""
    note = (
        f"{view.path}: no config lies with it. The sizes are those of the weights;{how} the activation is taken to "
        "be gelu_fast. A config.json of UER-py beside it, or --config, says otherwise"
    )
    return FoundConfig(GPT2Config(**settings, num_heads=heads), [note], assumed, vocabulary)


def _in_our_form(
    named: str, settings: Mapping[str, Any], view: UERView, num_heads: int | None, vocabulary: Path | None
) -> FoundConfig:
    """The config of a preset or a file of ours or Hugging Face's, with the sizes checked and UER-py's arithmetic."""
    config, notes = read_config(named)
    check_sizes_of_config(config, settings, named, view.path, num_heads)
    kept = {key: settings.get(key, getattr(config, key)) for key in _SPECIAL_TOKENS}
    if config.layer_norm == "uer":
        kept["layernorm_epsilon"] = config.layernorm_epsilon
    return FoundConfig(config.replaced({**settings, **kept}), notes, vocabulary=vocabulary)
