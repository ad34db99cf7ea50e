"""The config of a GPT2_ML, from the weights and a JSON of three forms; and the JSON of its PyTorch port.

    GPT2_ML, bert4keras   num_hidden_layers, intermediate_size, hidden_act, ...: mega.json, large.json, config.json
    PyTorch port          n_layer, activation_function, ...: a config.json of transformers' GPT-2
    mindgpt               that with model_type gpt2_ml

Dropout rates are those that the program of a form trains with. GPT2_ML's JSON has one for attention weights, but the
line that would use it is commented out; nor does it drop embeddings. The port does both.

Sources: `train/modeling.py` and `configs/` of imcaspar/gpt2-ml, `modeling_gpt2.py` of ghosthamlet/gpt2-ml-torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindgpt.checkpoints.found_config import HEAD_SIZE, FoundConfig, check_sizes_of_config, checked_vocabulary
from mindgpt.checkpoints.gpt2_config import CONFIG_FILE, GPT2Config, config_from_content, read_config
from mindgpt.checkpoints.gpt2_ml_views import GPT2MLView
from mindgpt.checkpoints.gpt2_names import variant_of
from mindgpt.checkpoints.locations import file_beside, own_config
from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import VARIANTS
from mindgpt.config.paths import expanded_path
from mindgpt.config.section import shown
from mindgpt.io.files import read_json
from mindgpt.tokenizers.loading import MOST_PADDING

VARIANT = "gpt2_ml"
_NO_SPECIAL_TOKENS = {"prompt_special_tokens": "none"}  # none of the three programs puts any around a text
_RATES = {"embedding_dropout_rate": 0.0, "attention_dropout_rate": 0.0}  # of GPT2_ML; that of hidden states is 0.1

_OWN_FORM = {  # keys of GPT2_ML that transformers has under another name; the activations have the same names in both
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "hidden_dropout_prob": "resid_pdrop",
}
_ATTENTION_DROPOUT = "attention_probs_dropout_prob"
_ONLY_THERE = {"num_hidden_layers", "intermediate_size", _ATTENTION_DROPOUT, "hidden_dropout_prob"}
_IN_EVERY_CONFIG = ({"num_hidden_layers", "n_layer"}, {"num_attention_heads", "n_head"})

_SIZES = {  # shape letter of the weights -> setting, GPT2_ML's key
    "V": ("vocab_size", "vocab_size"),
    "L": ("num_layers", "num_hidden_layers"),
    "H": ("hidden_size", "hidden_size"),
    "F": ("ffn_hidden_size", "intermediate_size"),
    "P": ("max_position_embeddings", "max_position_embeddings"),
}
_PORT_KEYS = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "activation_function"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range"),
)
_PORT_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PORT_ACTIVATIONS = ("gelu_erf", "gelu", "relu")


def config_of_gpt2_ml(
    view: GPT2MLView, given: str | None = None, vocabulary: Path | None = None, num_heads: int | None = None
) -> FoundConfig:
    """The config of weights of a GPT2_ML.

    Args:
        view: the weights.
        given: a preset, or a config file or folder; None: `<name>.config.json` or `config.json` beside the weights, or
            the only JSON there that is a config, such as mega.json; without one, the sizes are those of the weights.
        vocabulary: a vocab.txt, or a folder that holds one; None: the one beside the weights, if there is one. The
            table of the published models has up to two rows more.
        num_heads: the number of heads, for weights without config.

    Raises:
        UserError: the config or the vocabulary is broken or not of these weights, or several may be the config.
    """
    vocabulary = checked_vocabulary(view.path, view.sizes["V"], vocabulary, MOST_PADDING)
    named = given or _file_beside(view.path)
    if named is None:
        return _without_config(view, num_heads, vocabulary)
    config, notes = read_ml_config(named, view.sizes)
    held = {key: view.sizes[letter] for letter, (key, _) in _SIZES.items()}
    another = f"variant is {config.variant}, the weights are those of {VARIANTS[VARIANT].model}"
    check_sizes_of_config(config, held, named, view.path, num_heads, () if config.variant == VARIANT else (another,))
    return FoundConfig(config, notes, vocabulary=vocabulary)


def read_ml_config(
    named: str | Path, sizes: Mapping[str, int] | None = None, **changes: Any
) -> tuple[GPT2Config, list[str]]:
    """As `gpt2_config.read_config`, for weights that are a GPT2_ML's, in any of the three forms.

    `sizes`: of the weights, for keys that the file lacks.
    """
    path = expanded_path(named)
    file = _config_in(path) or path / CONFIG_FILE if path.is_dir() else path
    if not file.is_file():
        return read_config(named, **{"variant": VARIANT, **changes})  # a preset
    content = read_json(file)
    is_another = not isinstance(content, dict) or content.get("model_type") not in (None, "gpt2")
    if is_another or "mindgpt" in content:  # ours, or another network's
        return config_from_content(content, file, changes)
    notes: list[str] = []
    if _ONLY_THERE & content.keys():
        content, notes = _from_own_form(content, sizes or {}, str(file))
    config, of_content = config_from_content(
        {**content, "model_type": VARIANT}, file, {**_NO_SPECIAL_TOKENS, **changes}
    )
    return config, notes + of_content


def read_config_for(source: TensorSource, named: str | Path) -> tuple[GPT2Config, list[str]]:
    """The config in a file, in a form that belongs to weights under our names."""
    return (read_ml_config if variant_of(source.entries) == VARIANT else read_config)(named)


def port_json(config: GPT2Config, path: Path) -> dict[str, Any]:
    """The content of the PyTorch port's config.json for a model.

    Args:
        config: of the model.
        path: of the weights, for messages.

    Raises:
        UserError: the port does not compute such a model.
    """
    problems = [] if config.hidden_act in _PORT_ACTIVATIONS else [f"hidden_act {config.hidden_act}"]
    if config.ffn_hidden_size != 4 * config.hidden_size:
        problems.append(f"ffn_hidden_size {config.ffn_hidden_size}, which is not 4 x hidden_size")
    problems += ["layer_norm 'uer'"] if config.layer_norm != "standard" else []
    problems += [] if config.tie_word_embeddings else ["tie_word_embeddings False"]
    problems += [] if config.scale_attn_weights else ["scale_attn_weights False"]
    problems += ["scale_attn_by_inverse_layer_idx True"] if config.scale_attn_by_inverse_layer_idx else []
    if problems:
        raise UserError(f"{path}: the PyTorch port of GPT2_ML computes no such model: {', '.join(problems)}.")
    ours = config.to_hf_dict()
    content = {key: ours[key] for key in _PORT_KEYS}
    content |= {key: ours[key] for key in _PORT_TOKENS if ours[key] is not None}
    return content | {"n_ctx": config.max_position_embeddings, "model_type": "gpt2"}


def _from_own_form(content: Mapping[str, Any], sizes: Mapping[str, int], where: str) -> tuple[dict, list[str]]:
    """The content of a config of GPT2_ML's form under transformers' keys, and notes for the user."""
    of_weights = {key: sizes[letter] for letter, (_, key) in _SIZES.items() if letter in sizes}
    translated = {_OWN_FORM.get(key, key): value for key, value in {**of_weights, **content}.items()}
    rate = translated.pop(_ATTENTION_DROPOUT, None)
    translated |= {"embd_pdrop": _RATES["embedding_dropout_rate"], "attn_pdrop": _RATES["attention_dropout_rate"]}
    if not rate:
        return translated, []
    note = (
        f"{where}: {_ATTENTION_DROPOUT} {shown(rate)} is left out: GPT2_ML was trained without it, though bert4keras "
        f"would fine-tune with it. Set attention_dropout_rate to {shown(rate)} for that"
    )
    return translated, [note]


def _file_beside(weights: Path) -> Path | None:
    """The config file of weights, or None."""
    own = own_config(weights)
    return own if own.is_file() else file_beside(weights, CONFIG_FILE) or _config_in(weights.parent)


def _config_in(folder: Path) -> Path | None:
    """config.json in a folder, or the only JSON that has the keys of a config; None if there is none.

    Raises:
        UserError: there are several.
    """
    if (folder / CONFIG_FILE).is_file():
        return folder / CONFIG_FILE
    found = sorted(file for file in folder.glob("*.json") if file.is_file() and _is_config(file))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder}: holds several configs ({names}). Rename the one of these weights {CONFIG_FILE}.")
    return found[0] if found else None


def _is_config(file: Path) -> bool:
    """Whether a JSON has the keys of a config; one that cannot be read is none."""
    try:
        content = read_json(file)
    except UserError:
        return False
    return isinstance(content, dict) and all(keys & content.keys() for keys in _IN_EVERY_CONFIG)


def _without_config(view: GPT2MLView, num_heads: int | None, vocabulary: Path | None) -> FoundConfig:
    """The config of weights alone; the number of heads is the given one, or that of published models of this width."""
    settings: dict[str, Any] = {key: view.sizes[letter] for letter, (key, _) in _SIZES.items()}
    settings |= {"variant": VARIANT, **_RATES, **_NO_SPECIAL_TOKENS}
    if num_heads is not None:
        return FoundConfig(GPT2Config(**settings, num_heads=num_heads), [], vocabulary=vocabulary)
    if view.sizes["H"] % HEAD_SIZE:
        return FoundConfig(None, [], vocabulary=vocabulary, without_heads=GPT2Config(**settings, num_heads=1))
    heads = view.sizes["H"] // HEAD_SIZE
    note = (
        f"{view.path}: no config lies with it. The sizes are those of the weights; {heads} heads are assumed, of "
        f"{HEAD_SIZE} values as in all published sizes. GPT2_ML's mega.json or a {CONFIG_FILE} beside it, or --config, "
        "says otherwise"
    )
    return FoundConfig(GPT2Config(**settings, num_heads=heads), [note], ("num_heads",), vocabulary)
