"""`mindgpt serve`: hands over to `mindgpt.serving`, whose packages are an extra."""

import importlib
from collections.abc import Sequence

from mindgpt.config.errors import UserError

_PACKAGES = {"fastapi", "uvicorn", "starlette", "prometheus_client"}


def main(words: Sequence[str]) -> None:
    """Run the server.

    Raises:
        UserError: its packages are not installed.
    """
    try:
        command = importlib.import_module("mindgpt.serving.command")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES and not str(error.name).startswith("mindgpt.serving"):
            raise
        raise UserError(f"serve needs the package {error.name}: pip install 'mindgpt[serve]'") from None
    command.main(list(words))
