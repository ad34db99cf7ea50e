"""Config files of other libraries, which are read with their weights alone."""

from pathlib import Path
from typing import Any, TypeGuard

from mindgpt.config.errors import UserError

_OF_UER = {"layers_num", "heads_num", "feedforward_size"}
_OF_HUGGING_FACE = {"n_embd", "n_layer", "n_head", "mindgpt"}
_OF_GPT3 = {"layernorm_epsilon", "num_hidden_layers", "num_attention_heads"}


def is_uer_json(content: Any) -> bool:
    """Whether the content of a config file is in the form of UER-py and TencentPretrain."""
    return isinstance(content, dict) and bool(_OF_UER & content.keys())


def is_gpt3_json(content: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the content of a config file is in the form of ModelScope's GPT-3, possibly incomplete."""
    if not isinstance(content, dict) or _OF_HUGGING_FACE & content.keys():
        return False
    return content.get("model_type") == "gpt3" or ("model_type" not in content and bool(_OF_GPT3 & content.keys()))


def _is_gpt2_ml_json(content: Any) -> bool:
    """Whether the content of a config file is in the form of GPT2_ML and bert4keras, which is that of Google's BERT."""
    if not isinstance(content, dict) or "model_type" in content or _OF_HUGGING_FACE & content.keys():
        return False
    return "intermediate_size" in content


def refuse_foreign_config(content: Any, file: Path) -> None:
    """Raise a `UserError` if the content of a config file is of a library that gives it another meaning."""
    if is_uer_json(content):
        raise UserError(
            f"{file}: is a config of UER-py or TencentPretrain, which says nothing of the vocabulary and is read with "
            "their weights alone. Name their .bin; convert_weight.py makes a config.json of it for other weights."
        )
    if is_gpt3_json(content) and "layernorm_epsilon" in content:
        raise UserError(
            f"{file}: is a config of ModelScope's GPT-3, whose meaning depends on the names of the weights: it is read "
            "with these alone. Name the folder as weights; convert_weight.py makes a config.json of it for other "
            "weights."
        )
    if _is_gpt2_ml_json(content):
        raise UserError(
            f"{file}: is a config in the form of GPT2_ML and bert4keras, which does not say what network it is of, and "
            "is read with GPT2_ML's weights alone. Name these; without weights, GPT2Config(variant='gpt2_ml', ...) or "
            "a file of configs/gpt2_ml is such a network."
        )
