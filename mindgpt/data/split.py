"""A text in two parts: one to train on, one to judge by."""

import unicodedata
from pathlib import Path
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.data.records import Kind
from mindgpt.data.text import document_pieces, kind_of
from mindgpt.io.files import PathLike, atomic_write, read_text


def help_topics() -> str:
    """The text of Python's own help topics, which lies on every machine that has Python: half a megabyte of English."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def split_text(text: str, fraction: float) -> tuple[str, str]:
    """The text up to a line end, and the rest: about `fraction` of it, from the end.

    Where no line ends near, as in a text of one line, it is split behind a space, or else between two characters.

    Raises:
        UserError: `fraction` is not between 0 and 1, or one part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the fraction to judge by must lie between 0 and 1, not {fraction}")
    place = _place_to_split(text, int(len(text) * (1 - fraction)))
    first, rest = text[:place], text[place:]
    if not first.strip() or not rest.strip():
        raise UserError(f"a text of {len(text)} characters cannot be split: it is too short.")
    return first, rest


def _place_to_split(text: str, wanted: int) -> int:
    """Behind the first line end from `wanted` on, in the half of the rest that follows; or behind a space or
    full stop there; or between two characters, neither of which combines with the other."""
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
    """Whether a character belongs to the one in front of it: accents, joiners, variation selectors, skin colours."""
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
        with atomic_write(file, "w") as output:
            output.write(part)
    return files


def _text_of(file: Path, field: str, read_as: Kind | Literal["text"] | None) -> str:
    kind = kind_of(file, read_as)
    if kind == "text":
        return read_text(file)
    pieces = document_pieces(file, field=field, kind=kind)
    return "".join(piece.text + "\n\n" * piece.ends_document for piece in pieces)
