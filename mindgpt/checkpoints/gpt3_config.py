"""The config of ModelScope's Chinese GPT-3, from and to their `config.json`.

Which of its keys count depends on the layout of the weights' names (`megatron_names.LAYOUTS`):

    key                             base and large                      parallel: 1.3B and up
    feed-forward width              always 4 x hidden_size              ffn_hidden_size, or 4 x hidden_size
    activation                      the exact gelu (erf)                bias_gelu_fusion (True): the tanh form; else erf
    dropout                         hidden_dropout_prob,                hidden_dropout,
                                    attention_probs_dropout_prob        attention_dropout
    initialisation                  initializer_range                   init_method_std

`intermediate_size` and `hidden_act` are in the file and ignored by ModelScope. A text ends with `eod_id`; beside a
tokenizer.json also with its `<sep>`, since ModelScope shows nothing of what follows it. Source: its `models/nlp/gpt3`,
of which `configuration.py` has `GPT3Config`, whose class defaults are those here.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.foreign_configs import is_gpt3_json
from mindgpt.checkpoints.found_config import FoundConfig, check_sizes_of_config
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, read_config
from mindgpt.checkpoints.locations import file_beside, own_config
from mindgpt.checkpoints.megatron_views import MegatronView
from mindgpt.config.errors import UserError
from mindgpt.config.section import shown
from mindgpt.io.files import read_json
from mindgpt.tokenizers.jieba_files import separator_id

_SIZES = {"vocab_size": "V", "hidden_size": "H", "num_hidden_layers": "L", "max_position_embeddings": "P"}
_NEEDED = {  # what weights do not say and nobody may guess; and vocab_size, without which ModelScope takes 25600
    "base": ("vocab_size", "num_attention_heads", "layernorm_epsilon"),
    "parallel": ("vocab_size", "num_attention_heads", "layernorm_epsilon", "eod_id"),
}
_DROPOUT = {
    "base": {"hidden_dropout_prob": "hidden_dropout_rate", "attention_probs_dropout_prob": "attention_dropout_rate"},
    "parallel": {"hidden_dropout": "hidden_dropout_rate", "attention_dropout": "attention_dropout_rate"},
}
_INITIALISATION = {"base": "initializer_range", "parallel": "init_method_std"}
_NEW_TOKENS = 100  # the default of ModelScope


def config_of_gpt3(view: MegatronView, given: str | None = None) -> FoundConfig:
    """The config of weights of ModelScope's GPT-3; tells `view` the number of heads.

    Args:
        view: the weights.
        given: a config file or folder, in ModelScope's form or ours, or a preset; None: the config.json of the weights.

    Raises:
        UserError: there is none, it lacks keys that the result depends on, or it describes other weights or another
            network; all problems are listed.
    """
    named = given or config_file_of(view.path)
    if named is None:
        raise UserError(
            f"{view.path}: no {CONFIG_FILE} lies with these weights, and they do not tell "
            f"{', '.join(_NEEDED[view.layout][1:])}. Put the model's own {CONFIG_FILE} there, or convert the weights "
            "with convert_weight.py --config FILE."
        )
    file = Path(named) / CONFIG_FILE if Path(named).is_dir() else Path(named)
    content = read_json(file) if file.is_file() else None
    if content is not None and is_gpt3_json(content):
        settings, notes = settings_of_gpt3(content, view, file)
        config = GPT2Config(**settings)
    else:
        config, notes = _in_our_form(str(named), view)
    view.set_heads(config.num_heads)
    return FoundConfig(config, notes)


def config_file_of(weights: Path) -> Path | None:
    """The config file of weights: `x.config.json` of a file x, or config.json; None if there is neither."""
    own = own_config(weights)
    return own if weights.is_file() and own.is_file() else file_beside(weights, CONFIG_FILE)


def settings_of_gpt3(content: Mapping[str, Any], view: MegatronView, file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of `GPT2Config` in a config.json of ModelScope, and notes for the user.

    Args:
        content: of the file.
        view: the weights.
        file: for messages.

    Raises:
        UserError: as `config_of_gpt3`.
    """
    layout, sizes = view.layout, view.sizes
    content = {key: value for key, value in content.items() if value is not None}
    missing = [key for key in _NEEDED[layout] if key not in content]
    problems = [*_wrong_sizes(content, view), *_other_networks(content, layout), *_wrong_values(content, view)]
    if missing:
        problems.append(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there. The result depends on "
            f"{'it' if len(missing) == 1 else 'each of them'}, and no default is right for all models. Add what the "
            f"model's own {CONFIG_FILE} says, or name that with convert_weight.py --config FILE"
            + (" (eod_id is the id of <|endoftext|> in tokenizer.json)" if "eod_id" in missing else "")
        )
    if problems:
        raise UserError(f"{file}: is not the config of {view.path}:\n  " + "\n  ".join(problems))
    tanh = layout == "parallel" and content.get("bias_gelu_fusion", True)
    settings = {
        "vocab_size": sizes["V"],
        "hidden_size": sizes["H"],
        "ffn_hidden_size": sizes["F"],
        "num_layers": sizes["L"],
        "num_heads": content["num_attention_heads"],
        "max_position_embeddings": sizes["P"],
        "hidden_act": "gelu" if tanh else "gelu_erf",
        "layernorm_epsilon": content["layernorm_epsilon"],
        "initializer_range": content.get(_INITIALISATION[layout], 0.02),
        **{ours: content.get(theirs, 0.1) for theirs, ours in _DROPOUT[layout].items()},
        "tie_word_embeddings": not view.untied,
        "prompt_special_tokens": "bos" if layout == "base" else "none",
    }
    if "eod_id" in content:
        settings["eos_token_id"] = _ends(content["eod_id"], view)
    generation, notes = _generation(content, layout, file)
    activation = content.get("hidden_act", "gelu")
    if activation != "gelu":
        notes.append(f"{file}: hidden_act {shown(activation)} is ignored, as ModelScope does; {settings['hidden_act']}")
    return settings | generation, notes


def _ends(eod_id: int, view: MegatronView) -> int | list[int]:
    """The ids that end a text."""
    tokenizer = file_beside(view.path, "tokenizer.json") if view.layout == "parallel" else None
    separator = separator_id(tokenizer) if tokenizer else None
    if separator is None or separator >= view.sizes["V"] or separator == eod_id:
        return eod_id
    return [eod_id, separator]


def _wrong_sizes(content: Mapping[str, Any], view: MegatronView) -> Iterator[str]:
    """What the weights contradict."""
    for key, letter in _SIZES.items():
        if key in content and content[key] != view.sizes[letter]:
            yield f"{key} is {shown(content[key])}, the weights have {view.sizes[letter]}"
    hidden, width = view.sizes["H"], view.sizes["F"]
    if view.layout == "base" and width != 4 * hidden:
        yield f"the feed-forward layers are {width} wide, and of base and large 4 x hidden_size = {4 * hidden}"
    if view.layout == "parallel" and width != content.get("ffn_hidden_size", 4 * hidden):
        said = shown(content["ffn_hidden_size"]) if "ffn_hidden_size" in content else f"not there, so {4 * hidden}"
        yield f"ffn_hidden_size is {said}, the weights have {width}"


def _other_networks(content: Mapping[str, Any], layout: str) -> Iterator[str]:
    """What makes another network than ours."""
    key = "apply_residual_connection_post_layernorm"
    if layout == "parallel" and content.get(key):
        yield f"{key} is {shown(content[key])}: blocks would add the output of a layer norm. mindgpt has no such block"
    heads: Any
    hidden: Any
    heads, hidden, channels = (content.get(key) for key in ("num_attention_heads", "hidden_size", "kv_channels"))
    if channels is not None and all(_is_count(value) for value in (heads, hidden)) and channels * heads != hidden:
        yield f"kv_channels is {shown(channels)}, and must be hidden_size / num_attention_heads = {hidden / heads:g}"
    experts = content.get("num_experts", 0)
    if experts not in (0, 1, [0], [1]):
        yield f"num_experts is {shown(experts)}: mindgpt has no mixture of experts"


def _wrong_values(content: Mapping[str, Any], view: MegatronView) -> Iterator[str]:
    """Values that are not allowed."""
    heads, hidden = content.get("num_attention_heads"), view.sizes["H"]
    if heads is not None and (not _is_count(heads) or hidden % heads):
        yield f"num_attention_heads is {shown(heads)}, and must be a number that divides the hidden size, {hidden}"
    elif heads is not None and heads % view.ranks:
        yield f"num_attention_heads is {heads}, and the {view.ranks} ranks must have equally many"
    epsilon = content.get("layernorm_epsilon", 1)
    if not _is_number(epsilon) or epsilon <= 0:
        yield f"layernorm_epsilon is {shown(epsilon)}, and must be a number above 0"
    end = content.get("eod_id", 0)
    if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end < view.sizes["V"]:
        yield f"eod_id is {shown(end)}, and must be the id of one of {view.sizes['V']} tokens"
    for key in _DROPOUT[view.layout]:
        if key in content and not (_is_number(content[key]) and 0 <= content[key] < 1):
            yield f"{key} is {shown(content[key])}, and must be a number from 0 to below 1"
    key = _INITIALISATION[view.layout]
    if key in content and not (_is_number(content[key]) and content[key] > 0):
        yield f"{key} is {shown(content[key])}, and must be a number above 0"
    key = "bias_gelu_fusion"
    if view.layout == "parallel" and not isinstance(content.get(key, True), bool):
        yield f"{key} is {shown(content[key])}, and must be true (the tanh form of gelu) or false (erf)"


def _generation(content: Mapping[str, Any], layout: str, file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of generation, and notes. ModelScope samples by top_k or by top_p, never by both. base and large
    always add 100 tokens."""
    notes = []

    def value(key: str, default: float, is_allowed: Any) -> Any:
        found = content.get(key, default)
        if _is_number(found) and is_allowed(found):
            return found
        notes.append(
            f"{file}: {key} {shown(found)} is not allowed, and left out; ModelScope's default {default} is taken"
        )
        return default

    top_k = value("top_k", 0, lambda number: number >= 0 and number == int(number))
    top_p = value("top_p", 0.9, lambda number: 0 <= number <= 1)
    temperature = value("temperature", 1.0, lambda number: number > 0)
    length = value("tokens_to_generate", _NEW_TOKENS, lambda number: number >= 1 and number == int(number))
    settings: dict[str, Any] = {"max_new_tokens": int(length) if layout == "parallel" else _NEW_TOKENS}
    settings |= {"do_sample": True, "temperature": temperature, "exclusive_filters": True}
    if top_k and content.get("top_p"):
        notes.append(f"{file}: top_k {top_k} and top_p {top_p}: ModelScope samples by one of the two; top_k is taken")
    if top_k:
        settings["top_k"] = int(top_k)
    elif top_p:
        settings["top_p"] = top_p
    return settings, notes


def gpt3_json(config: GPT2Config, layout: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of ModelScope's config.json for a model, and notes for the user.

    Args:
        config: of the model.
        layout: a key of `megatron_names.LAYOUTS`.
        path: of the weights, for messages.

    Raises:
        UserError: ModelScope does not compute such a model.
    """
    problems = list(_not_in_modelscope(config, layout))
    ends = config.eos_token_ids
    if layout == "parallel" and not ends:
        problems.append("no eos_token_id, which ModelScope needs as eod_id: add it to the config, or pass --config")
    if problems:
        raise UserError(f"{path}: ModelScope's GPT-3 cannot be made of such a model: {'; '.join(problems)}.")
    notes = []
    if config.embedding_dropout_rate != config.hidden_dropout_rate:
        notes.append(
            f"ModelScope has one dropout rate for embeddings and layers; {config.hidden_dropout_rate:g}, that of the "
            "layers, is written"
        )
    if len(ends) > 1:
        notes.append(f"ModelScope ends a text with one token; eod_id is {ends[0]}, the first of eos_token_id")
    content: dict[str, Any] = {
        "model_type": "gpt3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "layernorm_epsilon": config.layernorm_epsilon,
        _INITIALISATION[layout]: config.initializer_range,
        **{theirs: getattr(config, ours) for theirs, ours in _DROPOUT[layout].items()},
    }
    if layout == "base":
        content |= {"intermediate_size": config.ffn_hidden_size, "hidden_act": "gelu"}
    else:
        content |= {"ffn_hidden_size": config.ffn_hidden_size, "bias_gelu_fusion": config.hidden_act == "gelu"}
    return content | ({"eod_id": ends[0]} if ends else {}) | _generation_json(config), notes


def _not_in_modelscope(config: GPT2Config, layout: str) -> Iterator[str]:
    """What ModelScope's GPT-3 cannot express."""
    if config.variant != "gpt2":
        yield f"another network ({config.variant})"
    allowed = ("gelu_erf",) if layout == "base" else ("gelu", "gelu_erf")
    if config.hidden_act not in allowed:
        yield f"hidden_act {config.hidden_act}, which must be {' or '.join(allowed)}"
    if layout == "base" and config.ffn_hidden_size != 4 * config.hidden_size:
        yield f"ffn_hidden_size {config.ffn_hidden_size}, which in base and large is 4 x hidden_size"
    if config.layer_norm != "standard":
        yield f"layer_norm '{config.layer_norm}': pass --layer_norm copy or folded"
    if not config.scale_attn_weights:
        yield "scale_attn_weights False"
    if config.scale_attn_by_inverse_layer_idx:
        yield "scale_attn_by_inverse_layer_idx True"


def _generation_json(config: GPT2Config) -> dict[str, Any]:
    """ModelScope's keys of generation."""
    content: dict[str, Any] = {} if config.max_new_tokens is None else {"tokens_to_generate": config.max_new_tokens}
    if not config.do_sample:
        return content | {"top_k": 1, "top_p": 0.0}
    top_p = config.top_p if config.top_k is None and config.top_p < 1 else 0.0
    return content | {"top_k": config.top_k or 0, "top_p": top_p, "temperature": config.temperature}


def _in_our_form(named: str, view: MegatronView) -> tuple[GPT2Config, list[str]]:
    """The config of a preset, or of a file of ours or Hugging Face's, with the sizes checked."""
    config, notes = read_config(named)
    held = {
        "vocab_size": view.sizes["V"],
        "num_layers": view.sizes["L"],
        "hidden_size": view.sizes["H"],
        "ffn_hidden_size": view.sizes["F"],
        "max_position_embeddings": view.sizes["P"],
    }
    check_sizes_of_config(config, held, named, view.path)
    return config.replaced({"tie_word_embeddings": not view.untied}), notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
