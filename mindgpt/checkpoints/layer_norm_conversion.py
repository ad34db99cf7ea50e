"""Conversion of layer norms between the arithmetic of UER-py and the standard one.

UER-py and TencentPretrain divide by the unbiased standard deviation, GPT-2 by the biased one, which is
sqrt((H - 1) / H) times it, for H values. There are three ways to use weights of one with the other, and the config
records which was taken as `layer_norm_conversion`:

    uer     Nothing changes: the model computes with UER-py's arithmetic, eps 1e-6.
    copy    gamma as it is, the standard arithmetic, eps 1e-5. So do UER-py's own converters, which made the published
            Hugging Face folders. Outputs of a norm are larger than UER-py's by 0.07 % at H = 768.
    folded  gamma * sqrt((H - 1) / H), the standard arithmetic, eps 1e-7. What the model computes stays the same, but
            for the epsilons: UER-py's is added to the deviation, the standard one to the variance. With 1e-7 a norm
            differs by less than 3e-5, relatively, for inputs of deviation 0.028 (a new model's embeddings) and more.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from mindgpt.checkpoints.gpt2_config import GPT2Config
from mindgpt.checkpoints.tensor_source import TensorSource
from mindgpt.config.errors import UserError
from mindgpt.config.model_sections import UER_EPSILON

CONVERSIONS = ("uer", "copy", "folded")
_ARITHMETIC = {  # of each conversion: the settings of a config
    "uer": {"layer_norm": "uer", "layernorm_epsilon": UER_EPSILON},
    "copy": {"layer_norm": "standard", "layernorm_epsilon": 1e-5},
    "folded": {"layer_norm": "standard", "layernorm_epsilon": 1e-7},
}

_COPIED = (  # without a record, nothing tells whether weights ever were UER-py's
    "the gammas of layer norms are copied, which is right for weights that came from UER-py. For others its results "
    "differ a little, since it divides by the unbiased deviation; --layer_norm folded makes up for most of that"
)


class NormChange(NamedTuple):
    """What a conversion does to layer norms.

    Attributes:
        settings: of the config, to be replaced.
        factor: what gammas are multiplied by; 1: they stay as they are, bit for bit.
        note: a sentence for the user, or "".
    """

    settings: dict[str, Any]
    factor: float
    note: str


class ScaledNorms:
    """A `TensorSource` under our names with the gammas of all layer norms multiplied by a factor, in float64."""

    def __init__(self, source: TensorSource, factor: float):
        self._source, self._factor = source, factor
        self.path, self.entries = source.path, source.entries

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource.read`."""
        array = self._source.read(name)
        if not name.endswith(".gamma"):
            return array
        return (array.astype(np.float64) * self._factor).astype(array.dtype)


def with_norms(source: TensorSource, change: NormChange) -> TensorSource:
    """`source` with the gammas that the change asks for."""
    return source if change.factor == 1 else ScaledNorms(source, change.factor)


def to_model(config: GPT2Config, wanted: str | None) -> NormChange:
    """What happens to layer norms when weights are converted to a model of mindgpt or transformers.

    Args:
        config: of the weights.
        wanted: a key of `CONVERSIONS`, or None to leave them as they are.
    """
    recorded = config.layer_norm_conversion or config.layer_norm  # "standard": from a converter that copied, or GPT-2's
    if wanted is None or wanted == recorded:
        return NormChange({}, 1, "")
    settings = {**_ARITHMETIC[wanted], "layer_norm_conversion": wanted}
    if config.layer_norm == settings["layer_norm"] and "folded" not in (wanted, recorded):
        settings["layernorm_epsilon"] = config.layernorm_epsilon
    factor = _folding(config) ** ((wanted == "folded") - (recorded == "folded"))
    note = _last_bit("they were folded") if recorded == "folded" else ""
    return NormChange(settings, factor, note)


def to_uer(config: GPT2Config, wanted: str | None) -> NormChange:
    """What happens to layer norms when weights are written for UER-py, which always computes with its own arithmetic.

    Args:
        config: of the weights.
        wanted: "copy" keeps gammas; "folded" divides them by sqrt((H - 1) / H), so that UER-py computes what the model
            computes; None: what undoes the recorded conversion, or else "copy" with a note.

    Raises:
        UserError: `wanted` makes no sense for these weights.
    """
    if config.layer_norm == "uer":
        if wanted not in (None, "uer", "copy"):
            raise UserError(f"--layer_norm {wanted}: the weights have UER-py's arithmetic already; leave the flag out.")
        return NormChange({}, 1, "")
    if wanted == "uer":
        raise UserError(
            "--layer_norm uer: the weights have the standard arithmetic. Choose copy, which leaves gamma as it is, or "
            "folded, which makes UER-py compute what this model computes."
        )
    known = wanted or config.layer_norm_conversion
    if known in (None, "copy"):
        return NormChange({}, 1, "" if known else _COPIED)
    return NormChange({}, 1 / _folding(config), _last_bit("they were folded, or are made to compute the same"))


def _folding(config: GPT2Config) -> float:
    return math.sqrt((config.hidden_size - 1) / config.hidden_size)


def _last_bit(why: str) -> str:
    return f"the gammas of layer norms are divided by sqrt((H - 1) / H), since {why}; their last bit may differ"
