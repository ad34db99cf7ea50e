"""What can be turned: typed sections, the YAML file, the command line. Imports no MindSpore."""

from mindgpt.config.command_line import CommandLine, config_from_command_line, parse_arguments
from mindgpt.config.errors import UserError
from mindgpt.config.loader import dump_config, load_config
from mindgpt.config.model import GPT2Section, PetSection
from mindgpt.config.run import RunConfig

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
