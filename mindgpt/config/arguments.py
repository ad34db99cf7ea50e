"""What the command lines of all programs share: a parser that raises `UserError`, types for paths, --version.

Imports nothing that takes time.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from mindgpt.config.errors import UserError
from mindgpt.config.paths import expanded

_NO_VALUE = re.compile(r"argument (?:\S+/)?(--\w+): expected (?:one|at least one) argument")
_UNKNOWN = "unrecognized arguments: "


class CheckedParser(argparse.ArgumentParser):
    """A parser of a program's flags. Raises `UserError` where argparse would print its usage and exit."""

    @classmethod
    def documented(cls, text: str) -> "CheckedParser":
        """The parser of a program with this docstring: its first paragraph, the flags, and the rest are what -h prints.
        Flags cannot be abbreviated."""
        title, rest = text.split("\n\n", 1)
        layout = argparse.RawDescriptionHelpFormatter
        return cls(description=title, epilog=rest, formatter_class=layout, allow_abbrev=False)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def flag_names(self) -> list[str]:
        """Every flag, with its dashes."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError`."""
        raise UserError(f"command line: {message}{self._about_dashes(message)}\n{self.prog} -h lists the flags")

    def _about_dashes(self, message: str) -> str:
        """A hint for a value that begins with a dash, which argparse takes for a flag."""
        if message.startswith(_UNKNOWN):
            return self._after_two_dashes(message.removeprefix(_UNKNOWN).split()[0])
        match = _NO_VALUE.match(message)
        if match is None or match[1] not in self._words[:-1]:
            return ""
        following = self._words[self._words.index(match[1]) + 1]
        if not following.startswith("-") or following.split("=")[0] in self._option_string_actions:
            return ""
        return f". A value that begins with '-' is joined to its flag by '=': {shlex.quote(f'{match[1]}={following}')}"

    def _after_two_dashes(self, word: str) -> str:
        positional = next((action for action in self._actions if not action.option_strings), None)
        if positional is None or not word.startswith("-"):
            return ""
        return f". If it is a {positional.metavar or positional.dest}: put -- before it"


def path_argument(text: str) -> str:
    """The type of an argument that is a path, or a pattern of paths: `~` is expanded after a `=`, too."""
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_argument(text: str) -> Path:
    """`path_argument` as a `Path`."""
    return Path(path_argument(text))


def text_or_path(word: str) -> str:
    """A word that is a text or the name of a file. `~` is expanded if that names something that exists."""
    if not word.startswith("~") or os.sep not in word:
        return word
    try:
        path = expanded(word)
        return path if os.path.exists(path) else word
    except ValueError:  # there is no such home folder, or a NUL in the word
        return word


class ShowVersion(argparse.Action):
    """`--version`: prints the versions of mindgpt and MindSpore, without loading the latter, and exits."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()


def versions() -> str:
    """The versions of mindgpt, MindSpore and Python, in one line."""
    package = sys.modules[__name__.split(".")[0]]  # the package is above all rooms, so it is not imported here
    return f"mindgpt {package.__version__}, {_mindspore()}, Python {platform.python_version()}"


def _mindspore() -> str:
    try:
        return f"MindSpore {importlib.metadata.version('mindspore')}"
    except importlib.metadata.PackageNotFoundError:
        return "MindSpore is not installed"
