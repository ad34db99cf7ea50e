"""Labelled texts from CSV, TSV, JSON and Parquet files, read one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mindgpt.config.errors import UserError
from mindgpt.config.section import nearest
from mindgpt.data.json_values import BadRecordHandler, json_values, raise_error
from mindgpt.data.parquet_rows import check_column, parquet_rows
from mindgpt.data.records import check_separator, checked_text, csv_rows, listed, trimmed
from mindgpt.io.files import PathLike, read_lines

_LONGEST_NUMBER = 640  # digits; the smallest limit that Python can be set to


class LabelledText(NamedTuple):
    """A text and its label, stripped of surrounding space, in `file`; `line` is the first line of the row, from 1, or
    in Parquet the number of the row. `pair` is a second text, or ""."""

    text: str
    label: str
    line: int
    pair: str = ""
    file: PathLike = ""


@dataclass(frozen=True)
class FileLayout:
    """Which columns of a file hold texts and labels.

    Attributes:
        kind: "csv" (quoted where needed), "tsv" (no quoting), "json" (a list of objects, or an object a line) or
            "parquet".
        header: whether the first line names the columns; not for JSON and Parquet.
        text_columns: by name, or without a header by number from 1; several are joined by a space.
        label_column: likewise.
        label_names: the names of the labels, by index; None: the labels in the file.
        first_label: the number of the first label in the file.
        pair_column: column of a second text, if the file has it; not joined with the first.
    """

    kind: Literal["csv", "tsv", "json", "parquet"]
    header: bool = True
    text_columns: tuple[str, ...] = ("text",)
    label_column: str = "label"
    label_names: tuple[str, ...] | None = None
    first_label: int = 0
    pair_column: str | None = None


# Files as they are published. Columns of files with a header may be in any order.
FILE_LAYOUTS = {
    "sst_2": FileLayout("tsv", True, ("sentence",), "label", ("negative", "positive")),
    "cola": FileLayout("tsv", False, ("4",), "2", ("unacceptable", "acceptable")),
    "ag_news": FileLayout("csv", False, ("2", "3"), "1", ("World", "Sports", "Business", "Sci/Tech"), first_label=1),
    "imdb": FileLayout("csv", True, ("review",), "sentiment", ("negative", "positive")),
    "chnsenticorp": FileLayout("tsv", True, ("text_a",), "label", ("negative", "positive")),
    "uer": FileLayout("tsv", True, ("text_a",), "label", pair_column="text_b"),  # UER-py's and TencentPretrain's
    "csv": FileLayout("csv"),
    "tsv": FileLayout("tsv"),
    "json": FileLayout("json"),
    "jsonl": FileLayout("json"),
    "parquet": FileLayout("parquet"),
}


_NAMED = {"json": "every object names its keys", "parquet": "the file names its columns"}


def file_layout(
    dataset_name: str,
    *,
    header: bool | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> FileLayout:
    """The layout of a known data set or kind of file, with the given changes.

    Raises:
        UserError: columns are not numbers though there is no header, or label names repeat.
    """
    layout = FILE_LAYOUTS[dataset_name]
    changes = {
        "header": header,
        "text_columns": tuple(text_columns) if text_columns else None,
        "label_column": label_column,
        "label_names": tuple(label_names) if label_names else None,
    }
    if header is not None and layout.kind in _NAMED:
        raise UserError(f"--header has no meaning for {dataset_name}: {_NAMED[layout.kind]}.")
    if text_columns:
        layout = replace(layout, pair_column=None)
    layout = replace(layout, **{key: value for key, value in changes.items() if value is not None})
    if layout.kind not in _NAMED and not layout.header:
        for column in (*layout.text_columns, layout.label_column):
            if not (_is_whole(column) and int(column) >= 1):
                raise UserError(
                    f"Without a header, columns are numbers from 1, and {column!r} is none. Give --text_column and "
                    "--label_column as numbers, or --header True."
                )
    names = layout.label_names or ()
    if len(set(names)) != len(names):
        raise UserError(f"The names of the labels repeat: {', '.join(names)}.")
    return layout


def read_examples(file: PathLike, layout: FileLayout, on_bad: BadRecordHandler = raise_error) -> Iterator[LabelledText]:
    """The rows of a file in order. Blank lines are skipped; rows of empty fields are not.

    Args:
        file: see `FileLayout.kind`.
        layout: of the file.
        on_bad: gets the error of a row that is broken or lacks a column; raises it, or lets the row be skipped.

    Raises:
        UserError: the header lacks a column, quotes or a JSON list are broken, or the file is not UTF-8 (with file and
            line); or by `on_bad`.
    """
    if layout.kind == "json":
        rows = _json_rows(file, on_bad)
    elif layout.kind == "parquet":
        rows = _parquet_rows(Path(file), layout)
    else:
        rows = _table_rows(file, layout, on_bad)
    for line, fields in rows:
        try:
            texts = [_field(fields, column, file, line) for column in layout.text_columns]
            label = _field(fields, layout.label_column, file, line)
            pair = _field(fields, layout.pair_column, file, line) if layout.pair_column in fields else ""
        except UserError as error:
            on_bad(error)
            continue
        yield LabelledText(" ".join(texts).strip(), label.strip(), line, pair.strip(), file)


def label_names_in(
    files: Sequence[PathLike], layout: FileLayout, skip_empty: bool = False, on_bad: BadRecordHandler = raise_error
) -> tuple[str, ...]:
    """The distinct labels of files, sorted: as numbers if all are integers, else as strings.

    Args:
        files, layout: as of `read_examples`, which reads one file.
        skip_empty: skip rows with an empty text.
        on_bad: gets the error of a row that is broken or has no label; raises it, or lets the row be skipped.

    Raises:
        UserError: as `read_examples`; or there are no rows, or all have one label.
    """
    found, empty = set(), 0
    for example in (example for file in files for example in read_examples(file, layout, on_bad)):
        if skip_empty and not example.text:
            empty += 1
        elif not example.label:
            on_bad(no_label(example))
        else:
            found.add(example.label)
    if not found:
        raise no_rows(files, empty)
    if len(found) == 1:
        raise UserError(
            f"{named(files)}: all rows have one label, {found.pop()!r}: there is nothing to tell apart. Is "
            f"--label_column {layout.label_column!r} the right one? If this is a part of a larger set, name all "
            "labels with --label_names."
        )
    return tuple(sorted(found, key=int) if all(map(_is_whole, found)) else sorted(found))


def named(files: Sequence[PathLike]) -> str:
    """Files as a message names them: the first, and how many others there are."""
    return f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def no_label(example: LabelledText) -> UserError:
    """The error for a row without a label."""
    return UserError(f"{example.file}:{example.line}: the label is empty.")


def no_rows(files: Sequence[PathLike], empty: int) -> UserError:
    """The error for files without usable rows, `empty` of which had no text."""
    left_out = f" with a text; {empty} with an empty one were left out" if empty else ""
    return UserError(f"{named(files)} holds no rows{left_out}.")


def label_number(example: LabelledText, layout: FileLayout, names: Sequence[str]) -> int:
    """The index of a row's label: its position in `names`, or its own number.

    Raises:
        UserError: the label is unknown (with file and line).
    """
    if example.label in names:
        return names.index(example.label)
    if layout.label_names is not None and _is_whole(example.label):
        number = int(example.label) - layout.first_label
        if 0 <= number < len(names):
            return number
    numbers = "" if layout.label_names is None else f", {layout.first_label} to {layout.first_label + len(names) - 1}"
    hint = " Is the first line a header? Then add --header True." if example.line == 1 and not layout.header else ""
    raise UserError(
        f"{example.file}:{example.line}: the label {example.label!r} is none of {listed(names)}{numbers}.{hint} "
        "Correct the file, or give --label_names."
    )


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= _LONGEST_NUMBER


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table_rows(file: PathLike, layout: FileLayout, on_bad: BadRecordHandler) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> field); without a header the columns are named 1, 2, 3 ... Empty fields after the last column,
    which Excel adds, are dropped."""
    rows = _fields(file, layout.kind)
    if layout.header:
        line, columns = next(rows, (1, []))
        columns = trimmed([column.strip() for column in columns], 0)
        _check_header(file, line, columns, layout)
    else:
        columns = None
    for line, fields in rows:
        if columns is None:
            columns = [str(number) for number in range(1, len(fields) + 1)]
        fields = trimmed(fields, len(columns))
        if len(fields) != len(columns):
            sign = "comma" if layout.kind == "csv" else "TAB"
            problem = f"this row has {len(fields)} fields, and the first has {len(columns)}"
            on_bad(UserError(f"{file}:{line}: {problem}. Is a {sign} or a quote missing, or one too many?"))
            continue
        yield line, dict(zip(columns, fields, strict=True))


def _check_header(file: PathLike, line: int, columns: list[str], layout: FileLayout) -> None:
    if not columns:
        raise UserError(f"{file} holds no rows.")
    if not set(layout.text_columns) | {layout.label_column} <= set(columns):
        check_separator(f"{file}:{line}", columns, layout.kind)
    for wanted in (*layout.text_columns, layout.label_column):
        if columns.count(wanted) != 1:
            problem = f"names {wanted!r} twice" if wanted in columns else f"has no column {wanted!r}"
            raise UserError(
                f"{file}:{line}: the header {problem}; it has: {listed(columns)}. Name the columns with --text_column "
                "and --label_column; if the first line is no header, add --header False."
            )


def _fields(file: PathLike, kind: str) -> Iterator[tuple[int, list[str]]]:
    """(first line of the row, its fields)"""
    if kind == "tsv":
        for line, text in enumerate(read_lines(file), start=1):
            if text.strip() or "\t" in text:
                yield line, text.split("\t")
        return
    yield from csv_rows(Path(file), "csv")


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet_rows(file: Path, layout: FileLayout) -> Iterator[tuple[int, dict[str, Any]]]:
    for column in layout.text_columns:
        check_column(file, column, "--text_column")
    check_column(file, layout.label_column, "--label_column")
    yield from parquet_rows(file, (*layout.text_columns, layout.label_column, layout.pair_column or ""))


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _json_rows(file: PathLike, on_bad: BadRecordHandler) -> Iterator[tuple[int, dict[str, object]]]:
    for line, value in json_values(file, on_bad):
        if isinstance(value, dict):
            yield line, value
        else:
            on_bad(UserError(f"{file}:{line}: should be a JSON object with a text and a label."))


def _field(fields: dict[str, object], column: str, file: PathLike, line: int) -> str:
    """A column of a row as text, also if it is a JSON integer or boolean."""
    if column not in fields:
        raise UserError(
            f"{file}:{line}: there is no {column!r}; this row has: {listed(list(fields))}; "
            f"{nearest(column, list(fields))} Name the columns with --text_column and --label_column."
        )
    value = fields[column]
    if isinstance(value, bool | int):
        return str(value).lower()
    return checked_text(value, f"{file}:{line}: {column!r}")
