"""What it computes; weights in and out. `MODELS` is the only registry of the package."""

import importlib

MODELS = {
    "GPT2LMHeadModel": "mindgpt.models.gpt2.gpt2",
    "GPT2ForSequenceClassification": "mindgpt.models.gpt2.gpt2_classifier",
}
"""The values of `model.arch.type`, which are names of classes, and the module that each is in."""


def model_class(arch: str) -> type:
    """The class that `model.arch.type` names. It is loaded only here, since it loads MindSpore."""
    return getattr(importlib.import_module(MODELS[arch]), arch)
