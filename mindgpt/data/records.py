"""Records (named fields) from JSON, JSON lines, CSV, TSV and Parquet files, each with its file and line (or row).

The error of one bad record is passed to the caller's `on_bad`, which raises it or lets the record be skipped. Errors of
a whole file (not UTF-8, broken JSON list, unclosed quotes, no usable header) are raised.
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.data.json_values import BadRecordHandler, json_values, raise_error
from mindgpt.data.parquet_rows import parquet_rows
from mindgpt.io.compression import is_compressed, text_suffix
from mindgpt.io.files import read_lines

Kind = Literal["json", "csv", "tsv", "parquet"]
KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
RECORD_SUFFIXES = tuple(KINDS)
_LISTED = 8
_LARGEST_CELL = 1 << 27  # characters; Python's default of 131,072 is less than a long text


class Record(NamedTuple):
    """The fields of a record, and its place: `file:line`."""

    place: str
    fields: dict[str, Any]


class BadRecords:
    """An `on_bad` that skips bad records: it counts them and keeps the first messages."""

    SHOWN = 3

    def __init__(self) -> None:
        self.count = 0
        self.messages: list[str] = []

    def __call__(self, error: UserError) -> None:
        self.count += 1
        if len(self.messages) < self.SHOWN:
            self.messages.append(str(error))

    @property
    def first(self) -> str:
        """The first messages."""
        return " ".join(self.messages) + (" ..." if self.count > self.SHOWN else "")

    def __str__(self) -> str:
        return f"{self.count} bad record(s) left out: {self.first}"


def refuse_with_hint(error: UserError) -> None:
    """An `on_bad` that raises the error, with a hint at `--skip_bad`."""
    raise_error(UserError(f"{error} --skip_bad leaves such records out."))


def kind_by_name(file: Path) -> Kind | None:
    """The kind of a file by its suffix, in any letter case, also before .gz or .zst; None for suffixes other than those
    of `KINDS`.

    Raises:
        UserError: it is a Parquet file that is compressed once more, which cannot be read in pieces.
    """
    kind = KINDS.get(text_suffix(file))
    if kind == "parquet" and is_compressed(file):
        raise UserError(f"{file}: a Parquet file is compressed inside already; unpack this one first.")
    return kind


def read_records(file: Path, on_bad: BadRecordHandler = raise_error) -> Iterator[Record]:
    """The records of a file: a table for .csv, .tsv (with a header) and .parquet, else a JSON list of objects or a
    sequence of objects.

    Raises:
        UserError: the file cannot be read, or is broken as a whole.
    """
    kind = kind_by_name(file) or "json"
    if kind != "json":
        yield from table_records(file, kind, on_bad)
        return
    for line, value in json_values(file, on_bad):
        if isinstance(value, dict):
            yield Record(f"{file}:{line}", value)
        else:
            on_bad(UserError(f"{file}:{line}: should be a JSON object, {{...}}; it is a {type(value).__name__}."))


def text_of(record: Record, key: str) -> str:
    """The text under `key`.

    Raises:
        UserError: there is no such key, or its value is not text.
    """
    if key not in record.fields:
        keys = listed(list(record.fields)) or "none"
        raise UserError(f"{record.place}: no key '{key}'. Name the key that holds the text; there are: {keys}.")
    return checked_text(record.fields[key], f"{record.place}: '{key}'")


def listed(names: Sequence[str]) -> str:
    """The first names, quoted, and how many more there are."""
    return ", ".join(map(repr, names[:_LISTED])) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def checked_text(value: Any, name: str) -> str:
    """`value`, if it is a string of valid Unicode; `name` names it in messages.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be a string; it is a {type(value).__name__}.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{name} is not valid Unicode: it holds an unpaired surrogate.")
    return value


# ---- tables ----------------------------------------------------------------------------------------------------------


def table_records(
    file: Path,
    kind: Literal["csv", "tsv", "parquet"],
    on_bad: BadRecordHandler = raise_error,
    columns: Collection[str] | None = None,
) -> Iterator[Record]:
    """The rows of a table.

    A CSV or TSV has a header. Its cells are separated by commas or, in a TSV, by TABs, and quoted by `"`. A quoted cell
    may span several lines; `""` inside it is one `"`. Columns without name and content, which Excel adds, are dropped;
    one with content, such as the index that pandas adds, is named `column <number>`.

    Args:
        file, kind: the file, and what it is.
        on_bad: gets the error of a bad row.
        columns: of Parquet, those that are read if they are there; None: all.

    Raises:
        UserError: the file cannot be read, is damaged, has broken quotes, or no header.
    """
    if kind == "parquet":
        for number, fields in parquet_rows(file, columns):
            yield Record(f"{file}:{number}", fields)
        return
    rows = csv_rows(file, kind)
    line, header = next(rows, (1, []))
    names = trimmed([name.strip() for name in header], 0)
    named = [name for name in names if name]
    if not named or len(set(named)) < len(named):
        raise UserError(f"{file}:{line}: should be a header, a different name over each column; it is {header}.")
    check_separator(f"{file}:{line}", named, kind)
    for line, row in rows:
        try:
            yield Record(f"{file}:{line}", _fields(row, names))
        except UserError as error:
            on_bad(UserError(f"{file}:{line}: {error}"))


_SEPARATORS = {"csv": (",", "commas"), "tsv": ("\t", "TABs")}


def check_separator(place: str, header: list[str], kind: Literal["csv", "tsv"]) -> None:
    """Raise a UserError for a header of one column that seems to be several with another separator."""
    if header[0].lower().startswith("sep="):
        raise UserError(f"{place}: {header[0]!r} is a separator line that only Excel understands; remove it.")
    if len(header) > 1:
        return
    other: Kind = "tsv" if kind == "csv" else "csv"
    sign, name = _SEPARATORS[other]
    wanted = f"the columns of a {kind} file are separated by {_SEPARATORS[kind][1]}"
    if sign in header[0]:
        raise UserError(f"{place}: {wanted}, but these by {name}. Rename the file to .{other}.")
    if ";" in header[0]:
        raise UserError(
            f"{place}: {wanted}, but these by semicolons. Save it again with the right separator; Excel takes it from "
            "the region settings."
        )


def trimmed(row: list[str], columns: int) -> list[str]:
    """A row without empty cells after the given number of columns."""
    while len(row) > columns and not row[-1].strip():
        row = row[:-1]
    return row


def _fields(row: list[str], names: list[str]) -> dict[str, str]:
    """Column name -> cell. A nonempty cell in an unnamed column has the key `column <number>`."""
    row = trimmed(row, len(names))
    if len(row) != len(names):
        raise UserError(f"has {len(row)} columns, but the header has {len(names)}.")
    numbered = enumerate(zip(names, row, strict=True), start=1)
    return {name or f"column {number}": cell for number, (name, cell) in numbered if name or cell.strip()}


def csv_rows(file: Path, kind: Literal["csv", "tsv"]) -> Iterator[tuple[int, list[str]]]:
    """The rows with the lines that they begin on; blank lines are skipped, but rows of empty cells, `,,`, are not."""
    csv.field_size_limit(_LARGEST_CELL)
    lines = (f"{line}\n" for line in read_lines(file))
    reader = csv.reader(lines, delimiter="\t" if kind == "tsv" else ",", strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{file}:{line}: broken quotes in the row that begins here: {error}. A quoted cell ends at the next "
                'lone double quote ("); a double quote inside it is doubled ("").'
            ) from error
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield line, row
