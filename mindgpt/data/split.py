"""Splitting a text into training and validation data."""

import unicodedata
from pathlib import Path
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.data.records import Kind
from mindgpt.data.text import document_pieces, kind_of
from mindgpt.io.files import PathLike, read_text, write_text


def help_topics() -> str:
    """Python's own help topics, half a megabyte of English text that comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def split_text(text: str, fraction: float) -> tuple[str, str]:
    """Split a text after a newline, so that the second part is about `fraction` of it.

    If there is no newline nearby, as in a text of one line, it is split after a space, or else between two characters.

    Raises:
        UserError: `fraction` is not between 0 and 1, or one part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation fraction must lie between 0 and 1, not {fraction}")
    place = _place_to_split(text, int(len(text) * (1 - fraction)))
    first, rest = text[:place], text[place:]
    if not first.strip() or not rest.strip():
        raise UserError(f"a text of {len(text)} characters cannot be split: it is too short.")
    return first, rest


def _place_to_split(text: str, wanted: int) -> int:
    """The index just after the first newline in the first half of the text that follows `wanted`; else after a space or
    an ideographic full stop there; else the next index that does not split a combined character."""
    last = wanted + (len(text) - wanted) // 2
    for sign in ("\n", " ", "\N{IDEOGRAPHIC FULL STOP}"):
        if place := text.find(sign, wanted, last) + 1:
            return place
    place = max(wanted, 1)
    while place < len(text) and (_joins(text[place]) or text[place - 1] == _JOINER):
        place += 1
    return place


_JOINER = "\N{ZERO WIDTH JOINER}"  # between the parts of one emoji


def _joins(character: str) -> bool:
    """Whether a character combines with the one before it: accents, joiners, variation selectors, skin tones."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def split_file(
    source: PathLike | None,
    folder: PathLike,
    fraction: float,
    field: str = "text",
    read_as: Kind | Literal["text"] | None = None,
) -> tuple[Path, Path]:
    """Write `train.txt` and `valid.txt` into `folder`, from a UTF-8 file, or from `help_topics` if `source` is None.

    The texts of a JSON file or a table are joined with a blank line between them.

    Args:
        field, read_as: as in `text.document_pieces` and `text.kind_of`.

    Raises:
        UserError: the file cannot be read or is not UTF-8, or see `split_text`.
    """
    text = help_topics() if source is None else _text_of(Path(source), field, read_as)
    parts = split_text(text, fraction)
    files = Path(folder) / "train.txt", Path(folder) / "valid.txt"
    for file, part in zip(files, parts, strict=True):
        write_text(file, part)
    return files


def _text_of(file: Path, field: str, read_as: Kind | Literal["text"] | None) -> str:
    kind = kind_of(file, read_as)
    if kind == "text":
        return read_text(file)
    pieces = document_pieces(file, field=field, kind=kind)
    return "".join(piece.text + "\n\n" * piece.ends_document for piece in pieces)
