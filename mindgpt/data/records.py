"""Records, groups of named fields, from JSON, JSON lines, CSV and TSV files; each knows its file and line.

What is wrong with one record is handed to the caller's `on_bad`, who raises it or leaves the record out; what is wrong
with a file (not UTF-8, broken JSON list, quotes that never close, no usable header) is raised.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.data.files import LONG_NUMBER, read_chunks, read_lines, read_text

RECORD_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
_LARGEST_CELL = 1 << 27  # characters; Python's default of 131,072 is less than a long text


class Record(NamedTuple):
    """The fields of one record, and where it stands: `file:line`."""

    place: str
    fields: dict[str, Any]


OnBad = Callable[[UserError], None]


def refuse(error: UserError) -> None:
    """The `on_bad` of a reader that takes no bad record."""
    raise error


class BadRecords:
    """The `on_bad` of a reader that leaves bad records out: counts them, and keeps the first few messages."""

    def __init__(self) -> None:
        self.count = 0
        self.messages: list[str] = []

    def __call__(self, error: UserError) -> None:
        self.count += 1
        if len(self.messages) < 3:
            self.messages.append(str(error))


def read_records(file: Path, on_bad: OnBad = refuse) -> Iterator[Record]:
    """The records of a file: .csv and .tsv have a header; any other holds a JSON list of objects, or one on each line.

    Raises:
        UserError: the file cannot be read, or is broken as a whole.
    """
    if file.suffix in (".csv", ".tsv"):
        yield from _table(file, on_bad)
    elif _first_character(file) == "[":
        yield from _json_list(file, on_bad)
    else:
        yield from json_lines(file, on_bad)


def text_of(record: Record, key: str) -> str:
    """The text under `key`.

    Raises:
        UserError: there is no such key, or its value is no text.
    """
    if key not in record.fields:
        keys = ", ".join(map(repr, record.fields)) or "none"
        raise UserError(f"{record.place}: no key '{key}'. Name the key that holds the text; there are: {keys}.")
    text = record.fields[key]
    if not isinstance(text, str):
        raise UserError(f"{record.place}: '{key}' should be a text; it is a {type(text).__name__}.")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{record.place}: '{key}' is no valid Unicode: it holds half a surrogate pair.")
    return text


# ---- JSON ------------------------------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\r\n]*")


def json_lines(file: Path, on_bad: OnBad = refuse) -> Iterator[Record]:
    """The objects of a file that has one on each line; blank lines are none.

    Raises:
        UserError: the file cannot be read as UTF-8.
    """
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            yield _record(place, json.loads(line))
        except json.JSONDecodeError as error:
            on_bad(UserError(f"{place}: not valid JSON: {error.msg} at column {error.colno}."))
        except RecursionError:
            on_bad(UserError(f"{place}: not usable JSON: it is nested too deeply."))
        except UserError as error:
            on_bad(error)
        except ValueError:
            on_bad(UserError(f"{place}: not usable JSON: {LONG_NUMBER}."))


def _json_list(file: Path, on_bad: OnBad) -> Iterator[Record]:
    try:
        for line, value in _items(read_text(file)):
            try:
                record = _record(f"{file}:{line}", value)
            except UserError as error:
                on_bad(error)
                continue
            yield record
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise UserError(f"{file}: not usable JSON: it is nested too deeply.") from error


def _items(text: str) -> Iterator[tuple[int, Any]]:
    """The items of the list that `text` is, each with the line it begins on. Raises JSONDecodeError."""
    decode = json.JSONDecoder().raw_decode
    line, counted = 1, 0
    place = _after_space(text, text.index("[") + 1)
    if text[place : place + 1] != "]":
        while True:
            line, counted = line + text.count("\n", counted, place), place
            try:
                value, end = decode(text, place)
            except json.JSONDecodeError:
                raise
            except ValueError:
                raise json.JSONDecodeError(LONG_NUMBER, text, place) from None
            yield line, value
            place = _after_space(text, end)
            if text[place : place + 1] != ",":
                break
            place = _after_space(text, place + 1)
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("expected ',' or ']'", text, place)
    if end := text[_after_space(text, place + 1) :]:
        raise json.JSONDecodeError("extra text behind the list", text, len(text) - len(end))


def _after_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()


def _record(place: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{place}: should be a JSON object, {{...}}; it is a {type(value).__name__}.")
    return Record(place, value)


def _first_character(file: Path) -> str:
    """The first character that is no white space; "" if there is none."""
    return next((text[0] for chunk in read_chunks(file) if (text := chunk.lstrip())), "")


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(file: Path, on_bad: OnBad) -> Iterator[Record]:
    """The rows of a table under its header: commas or, in a .tsv, TABs between cells; `"` round a cell that holds them.

    A quoted cell may go over several lines; `""` inside it is one `"`.
    """
    rows = csv_rows(file)
    line, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    if not any(names) or len(set(names)) < len(names):
        raise UserError(f"{file}:{line}: should be a header, a different name over each column; it is {header}.")
    for line, row in rows:
        if len(row) == len(names):
            yield Record(f"{file}:{line}", dict(zip(names, row, strict=True)))
        else:
            on_bad(UserError(f"{file}:{line}: has {len(row)} columns, but the header has {len(names)}."))


def csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows but for blank lines, each with the line it begins on. Cells without text, `,,`, are a row."""
    csv.field_size_limit(_LARGEST_CELL)
    lines = (f"{line}\n" for line in read_lines(file))
    reader = csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{file}:{line}: broken quotes in the row that begins here: {error}.") from error
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield line, row
