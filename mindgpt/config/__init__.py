"""The configuration: typed sections, the YAML file, the command line. Imports no MindSpore."""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "CommandLine": "command_line",
    "GPT2Section": "model_sections",
    "PetSection": "model_sections",
    "RunConfig": "run_config",
    "UserError": "errors",
    "config_from_command_line": "command_line",
    "dump_config": "loader",
    "load_config": "loader",
    "parse_arguments": "command_line",
}
__all__ = [
    "CommandLine",
    "GPT2Section",
    "PetSection",
    "RunConfig",
    "UserError",
    "config_from_command_line",
    "dump_config",
    "load_config",
    "parse_arguments",
]

if TYPE_CHECKING:
    from mindgpt.config.command_line import CommandLine, config_from_command_line, parse_arguments
    from mindgpt.config.errors import UserError
    from mindgpt.config.loader import dump_config, load_config
    from mindgpt.config.model_sections import GPT2Section, PetSection
    from mindgpt.config.run_config import RunConfig


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that what needs only `errors` does not load the sections."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
