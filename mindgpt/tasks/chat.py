"""`mindgpt chat`: reads prompts one after another and prints what follows each as it is generated."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.config.run_config import RunConfig
from mindgpt.config.yaml_file import parse_value
from mindgpt.data.instructions import TEMPLATES, read_templates
from mindgpt.generation.pipeline import TextGenerationPipeline
from mindgpt.generation.streaming import print_text
from mindgpt.runtime.ranks import say
from mindgpt.tasks.model_setup import build_model, say_if_kernels_are_missing
from mindgpt.tasks.prompts import find_tokenizer

COMMANDS = """\
/set KEY VALUE   change a setting, such as: /set temperature 0.7
/settings        those that were changed
/help            this list
/quit            end; so does Ctrl-D
An empty line goes on with the last text."""
_NAMED = "alpaca"


def prompt_template(named: str | None) -> str | None:
    """The wording of a prompt, a text with {instruction} or {prompt} in it; None: as it is typed.

    Args:
        named: "alpaca", or a file as `read_templates` takes it.

    Raises:
        UserError: there is no such file, or it has no wording without an input.
    """
    if named is None:
        return None
    if named == _NAMED:
        return TEMPLATES["prompt_no_input"]
    if not Path(named).exists():
        raise UserError(f"--template: {named} is no file, and not {_NAMED!r}, the only wording with a name")
    templates = read_templates(named)
    for name in ("prompt_no_input", "prompt"):
        if name in templates:
            return templates[name]
    raise UserError(f"--template: {named}: has neither prompt_no_input nor prompt")


def chat(config: RunConfig, settings: dict[str, Any], template: str | None) -> None:
    """Run the loop until the input ends.

    Args:
        config: of `run_mode: predict`.
        settings: of generation, in place of those of the configuration.
        template: see `prompt_template`.

    Raises:
        UserError: no tokenizer, weights that do not fit, or settings that make no sense.
    """
    tokenizer = find_tokenizer(config)
    model, config = build_model(config)
    say_if_kernels_are_missing()
    pipeline = TextGenerationPipeline(model, tokenizer, prompt_special_tokens=config.model.config.prompt_special_tokens)
    settings = dict(settings)
    pipeline.settings.changed(**settings)
    say("type a prompt; /help lists the commands")
    last = ""
    for line in _typed():
        if line.startswith("/"):
            if line.split()[0] in ("/quit", "/exit"):
                return
            with _reported():
                settings = _command(line, settings, pipeline)
            continue
        if line.strip():
            text = line if template is None else template.replace("{instruction}", line).replace("{prompt}", line)
        elif last:
            text = last
        else:
            continue
        with _reported():
            pieces = []
            for piece in pipeline.stream(text, **settings):
                print_text(piece)
                pieces.append(piece)
            print_text("\n")
            last = text + "".join(pieces)


def _typed() -> Iterator[str]:
    """The lines that are typed, or that come from a pipe."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and a history)
    while True:
        try:
            yield input("\n> " if at_terminal else "")
        except EOFError:
            if at_terminal:
                print_text("\n")
            return


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Print a `UserError`, such as a prompt that is too long, and go on."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)


def _command(line: str, settings: dict[str, Any], pipeline: TextGenerationPipeline) -> dict[str, Any]:
    """The settings after a command."""
    words = line.replace("=", " ").split(None, 2)
    if words[0] == "/help":
        say(COMMANDS)
    elif words[0] == "/settings":
        say(", ".join(f"{key} {value}" for key, value in settings.items()) or "none was changed")
    elif words[0] == "/set" and len(words) == 3:
        changed = settings | {words[1]: parse_value(words[2])}
        pipeline.settings.changed(**changed)
        return changed
    else:
        raise UserError(f"{line}: there is no such command; /help lists them")
    return settings
