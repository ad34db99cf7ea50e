"""Expands `~` in paths. A shell does so at the beginning of a word only: not in `--output_dir=~/run`, nor in a YAML."""

import os
from pathlib import Path

from mindgpt.config.errors import UserError


def expanded(path: str) -> str:
    """`path` with `~` or `~name` at its beginning replaced by the home folder that it means.

    Raises:
        UserError: there is no such home folder. A folder named `~` is never meant.
    """
    if not path.startswith("~") or "\0" in path:  # no path holds NUL: opening it reports that
        return path
    full_path = os.path.expanduser(path)
    if full_path.startswith("~"):
        name = path.split(os.sep)[0]
        whose = "your home folder, but HOME is not set" if name == "~" else f"the home folder of a user {name[1:]!r}"
        none = "" if name == "~" else ", whom this machine does not know"
        raise UserError(f"{path!r}: {name} means {whose}{none}. Write the path in full (./{name} for that very name)")
    return full_path


def expanded_path(path: str | os.PathLike[str]) -> Path:
    """`expanded`, as a `Path`: for functions that a Python program calls with a path."""
    return Path(expanded(os.fspath(path)))
