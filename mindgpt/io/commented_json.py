"""JSON with comments, as in ModelScope's configuration.json: from a `#` outside of a text to the end of its line."""

import json
import re
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.io.files import read_json, read_text

_TEXT_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|#[^\n]*')


def read_commented_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that may have comments.

    Raises:
        UserError: the file cannot be opened, is not UTF-8, or holds something else.
    """
    text = read_text(path)
    # A comment becomes spaces, so that messages name the line and column of the file.
    plain = _TEXT_OR_COMMENT.sub(lambda m: " " * len(m[0]) if m[0].startswith("#") else m[0], text)
    try:
        value = read_json(path) if plain == text else json.loads(plain)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not usable JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object ({{...}}), not a {type(value).__name__}.")
    return value
