"""EleutherAI's lm-evaluation-harness with mindgpt among its models.

    mindgpt lm_eval --model_args pretrained=gpt2-hf/ --tasks lambada_openai --batch_size 8
    python -m mindgpt.integrations.lm_eval --model_args pretrained=gpt2-hf/ --tasks lambada_openai

All arguments are those of its own command, `lm_eval`; `--model mindgpt` is added where no model is named.
"""

import importlib
import sys
from collections.abc import Sequence

if __name__ == "__main__":
    import mindgpt.config.program_loading  # noqa: F401

from mindgpt.config.errors import UserError, run_program

NAME = "mindgpt"
_COMMANDS = ("run", "ls", "validate")
_NAMES_A_MODEL = ("--model", "-M", "--config", "-C")


def register() -> None:
    """Add the model `mindgpt` to those that lm_eval knows: it finds no models by entry points.

    Raises:
        UserError: lm_eval is not installed, or a version without its registry.
    """
    try:
        importlib.import_module("lm_eval.models")  # its own models: it does not look for them where there is one
        registry = importlib.import_module("lm_eval.api.registry").model_registry
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] != "lm_eval":
            raise UserError(f"lm_eval needs the package {error.name}: pip install 'mindgpt[lm_eval]'") from error
        raise UserError(
            "The evaluation harness needs lm_eval 0.4.13 or later, which is not installed: "
            "pip install 'mindgpt[lm_eval]'"
        ) from error
    if NAME not in registry:
        registry.register(NAME, target="mindgpt.integrations.lm_eval_model:LmEvalModel")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lm_eval's command line with the model `mindgpt` registered.

    Args:
        arguments: of lm_eval; None: those of this process.

    Raises:
        UserError: lm_eval is not installed, or what it asks of the model is not allowed.
    """
    register()
    command = importlib.import_module("lm_eval.__main__").cli_evaluate
    words = list(sys.argv[1:] if arguments is None else arguments)
    before = sys.argv
    sys.argv = ["lm_eval", *with_model(words)]
    try:
        command()
    finally:
        sys.argv = before


def with_model(words: Sequence[str]) -> list[str]:
    """lm_eval's arguments with its command `run` and `--model mindgpt`, where they name none and ask for no help."""
    words = list(words)
    if not words or (words[0] not in _COMMANDS and words[0] in ("-h", "--help")):
        return words
    if words[0] not in _COMMANDS:
        words.insert(0, "run")
    named = any(word in _NAMES_A_MODEL or word.startswith(("--model=", "--config=")) for word in words)
    if words[0] == "run" and not named and not {"-h", "--help"} & set(words):
        words[1:1] = ["--model", NAME]
    return words


if __name__ == "__main__":
    run_program(main)
