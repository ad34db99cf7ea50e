"""The dtypes that a model is stored and computed in, chosen once, when it is built."""

from dataclasses import dataclass

import mindspore as ms

from mindgpt.config.model_sections import GPT2Section

_DTYPES: dict[str, ms.Type] = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}


@dataclass(frozen=True)
class Precision:
    """dtypes of stored weights, of matrix products and residuals, of layer norms, and of the softmax."""

    param: ms.Type
    compute: ms.Type
    layernorm: ms.Type
    softmax: ms.Type


def configured_precision(config: GPT2Section) -> Precision:
    """The dtypes that the config names."""
    return Precision(
        param=_DTYPES[config.param_init_type],
        compute=_DTYPES[config.compute_dtype],
        layernorm=_DTYPES[config.layernorm_compute_type],
        softmax=ms.float32 if config.reorder_and_upcast_attn else _DTYPES[config.softmax_compute_type],
    )


def precision_of(config: GPT2Section) -> Precision:
    """The dtypes to build a model with on the current device.

    Ascend follows the config. On CPU everything is computed in fp32: MindSpore's fp16 products go through fp32 there,
    and bf16 products do not exist. Weights are stored as configured, except bf16, for which MindSpore 2.10 has no
    embedding lookup on CPU: they are fp32.
    """
    precision = configured_precision(config)
    if ms.get_context("device_target") != "CPU":
        return precision
    param = ms.float32 if precision.param == ms.bfloat16 else precision.param
    return Precision(param, compute=ms.float32, layernorm=ms.float32, softmax=ms.float32)


def replaced_on_cpu(config: GPT2Section) -> list[str]:
    """What the current device runs differently from the config: one sentence each, for the user."""
    if ms.get_context("device_target") != "CPU":
        return []
    configured = configured_precision(config)
    half = {
        str(dtype).lower()
        for dtype in (configured.compute, configured.layernorm, configured.softmax)
        if dtype != ms.float32
    }
    notes = [f"on CPU, {' and '.join(sorted(half))} compute runs as float32"] if half else []
    if configured.param == ms.bfloat16:
        notes.append("on CPU, bfloat16 weights are stored as float32")
    if config.use_flash_attention:
        notes.append("on CPU, flash attention runs as the plain kernel")
    return notes
