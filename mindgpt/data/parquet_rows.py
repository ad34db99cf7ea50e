"""The rows of Parquet files, read a few at a time: a file of gigabytes needs memory for some of its pages."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mindgpt.config.errors import UserError

_ROWS = 64  # read at a time; each may be a long text
_BUFFER = 1 << 20  # bytes read at a time of each column


def parquet_columns(file: Path) -> list[str]:
    """The names of the columns of a file, in its order.

    Raises:
        UserError: as `parquet_rows`.
    """
    return list(_opened(file).schema_arrow.names)


def parquet_rows(file: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file: number, from 1, and column -> value (None where there is none).

    Args:
        file: the file.
        columns: names of those that are needed; others are not read. None: all are. A name that the file lacks is left
            out.

    Raises:
        UserError: the file cannot be read, is damaged or no Parquet file, or pyarrow is not installed.
    """
    opened = _opened(file)
    names = [name for name in opened.schema_arrow.names if columns is None or name in columns]
    batches, number = opened.iter_batches(batch_size=_ROWS, columns=names), 0
    while True:
        try:
            batch = next(batches, None)
            rows = None if batch is None else batch.to_pylist()
        except (OSError, ValueError, MemoryError) as error:  # pyarrow's errors are among these
            raise _damaged(file, error) from None
        if rows is None:
            return
        for row in rows:
            number += 1
            yield number, row


def check_column(file: Path, column: str, flag: str) -> None:
    """Raise a UserError if a file has no such column; it names those that there are, and the flag that chooses one."""
    names = parquet_columns(file)
    if column not in names:
        raise UserError(f"{file}: no column {column!r}; it has: {_listed(names)}. Name the one to read with {flag}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _opened(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{file}: reading Parquet needs the package pyarrow, which fits NumPy 1 in versions below 26: "
            f"pip install 'mindgpt[parquet]' ({error})."
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    except FileNotFoundError:
        raise UserError(f"No such file: {file} (looked from {Path.cwd()}).") from None
    except (OSError, ValueError, MemoryError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    lines = str(error).splitlines() or [type(error).__name__]
    return UserError(f"{file}: not a whole Parquet file ({lines[0].rstrip('.')}). Copy or download it again.")
