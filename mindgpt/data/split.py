"""Splitting a text into training and validation data."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mindgpt.config.errors import UserError
from mindgpt.data.records import Kind
from mindgpt.data.text import document_pieces, input_files, kind_of
from mindgpt.io.files import PathLike, atomic_write, read_chunks


def help_topics() -> str:
    """Python's own help topics, half a megabyte of English text that comes with Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def split_text(chunks: Callable[[], Iterable[str]], fraction: float) -> tuple[Iterator[str], Iterator[str]]:
    """Split a text after a newline, so that the second part is about `fraction` of it.

    If there is no newline nearby, as in a text of one line, it is split after a space, or else between two characters.

    Args:
        chunks: gives the text, in chunks of any size; called several times, so that the text need not fit into memory.
        fraction: of the characters.

    Returns:
        The chunks of both parts.

    Raises:
        UserError: `fraction` is not between 0 and 1, or one part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the validation fraction must lie between 0 and 1, not {fraction}")
    length = sum(map(len, chunks()))
    place = _place_to_split(chunks, length, int(length * (1 - fraction)))
    parts = _between(chunks(), 0, place), _between(chunks(), place, length)
    if any(all(not chunk.strip() for chunk in _between(chunks(), *ends)) for ends in ((0, place), (place, length))):
        raise UserError(f"a text of {length} characters cannot be split: it is too short.")
    return parts


def _between(chunks: Iterable[str], begin: int, end: int) -> Iterator[str]:
    """The text between two indices."""
    place = 0
    for chunk in chunks:
        if place >= end:
            return
        if part := chunk[max(begin - place, 0) : end - place]:
            yield part
        place += len(chunk)


def _place_to_split(chunks: Callable[[], Iterable[str]], length: int, wanted: int) -> int:
    """The index just after the first newline in the first half of the text that follows `wanted`; else after a space or
    an ideographic full stop there; else the next index that does not split a combined character."""
    last = wanted + (length - wanted) // 2
    found: dict[str, int] = {}
    place = wanted
    for chunk in _between(chunks(), wanted, last):
        for sign in _SIGNS:
            if sign not in found and (index := chunk.find(sign)) >= 0:
                found[sign] = place + index + 1
        if _SIGNS[0] in found:
            break
        place += len(chunk)
    if sign := next((sign for sign in _SIGNS if sign in found), ""):
        return found[sign]
    place = max(wanted, 1)
    before = ""
    for character in (character for chunk in _between(chunks(), place - 1, length) for character in chunk):
        if before and not (_joins(character) or before == _JOINER):
            break
        place += bool(before)
        before = character
    return place


_SIGNS = ("\n", " ", "\N{IDEOGRAPHIC FULL STOP}")  # to split after, the best first
_JOINER = "\N{ZERO WIDTH JOINER}"  # between the parts of one emoji


def _joins(character: str) -> bool:
    """Whether a character combines with the one before it: accents, joiners, variation selectors, skin tones."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def split_file(
    source: PathLike | Sequence[PathLike] | None,
    folder: PathLike,
    fraction: float,
    field: str = "text",
    read_as: Kind | Literal["text"] | None = None,
) -> tuple[Path, Path]:
    """Write `train.txt` and `valid.txt` into `folder`, from UTF-8 text, or from `help_topics` if `source` is None.

    The texts of a JSON file or a table are joined with a blank line between them, and so are files. Files are read
    several times, and never held in memory.

    Args:
        source: a file, folder or pattern, or several, as `text.input_files` takes them.
        field, read_as: as in `text.document_pieces` and `text.kind_of`.

    Raises:
        UserError: a file cannot be read or is not UTF-8, or see `split_text`.
    """
    if source is None:
        text = help_topics()
        parts = split_text(lambda: [text], fraction)
    else:
        inputs = input_files([source] if isinstance(source, str | os.PathLike) else source)
        if all(map(Path.is_file, inputs)):
            parts = split_text(lambda: _chunks_of(inputs, field, read_as), fraction)
        else:  # a pipe can be read only once
            held = list(_chunks_of(inputs, field, read_as))
            parts = split_text(lambda: held, fraction)
    files = Path(folder) / "train.txt", Path(folder) / "valid.txt"
    with atomic_write(files[0], "w") as train, atomic_write(files[1], "w") as valid:  # one may be among the inputs
        train.writelines(parts[0])
        valid.writelines(parts[1])
    return files


def _chunks_of(files: Sequence[Path], field: str, read_as: Kind | Literal["text"] | None) -> Iterator[str]:
    for number, file in enumerate(files):
        kind = kind_of(file, read_as)
        if kind != "text":
            for piece in document_pieces(file, field=field, kind=kind):
                yield piece.text + "\n\n" * piece.ends_document
            continue
        yield from read_chunks(file)
        if number < len(files) - 1:
            yield "\n\n"
