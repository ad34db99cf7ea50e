"""JSON as in ModelScope's configuration.json: with comments, from a `#` outside of a text to the end of its line, and
with commas before a closing bracket."""

import re
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError
from mindgpt.io.files import parse_json, read_text

_NOT_JSON = re.compile(r'("(?:[^"\\]|\\.)*")|#[^\n]*|,(?=(?:\s|#[^\n]*\n)*[}\]])')


def read_commented_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that may have comments.

    Raises:
        UserError: the file cannot be opened, is not UTF-8, or holds something else.
    """
    # What is left out becomes spaces, so that messages name the line and column of the file.
    plain = _NOT_JSON.sub(lambda match: match[1] or " " * len(match[0]), read_text(path))
    value = parse_json(plain, path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object ({{...}}), not a {type(value).__name__}.")
    return value
