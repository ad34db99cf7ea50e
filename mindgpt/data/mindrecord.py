"""MindRecord files: atomic writing, recognition, and reading of headers without MindSpore.

A MindRecord is a pair, `x.mindrecord` and its index `x.mindrecord.db`. Its name is stored inside, so it can be moved
but not renamed. A set of several splits is `x.0.mindrecord`, `x.1.mindrecord`, ...: these names end in `mindrecord`, as
those of a data folder must (MindSpore's own shards, `x.mindrecord0`, do not).

To write a set atomically, the pairs are written into a staging folder beside the target,

    .x.mindrecord.tmp-<pid>-<random>     while writing; the next writer removes it if its process is dead
    .x.mindrecord.ready                  renamed to this, the new set exists

and then moved into place. A kill before the rename leaves the old set as it was. After it, the next caller of
`find_mindrecord_files`, or the next writer in the folder, finishes the move.
"""

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindgpt.config.errors import UserError
from mindgpt.io.files import (
    PathLike,
    make_folder,
    open_to_read,
    read_json,
    sync,
    sync_folder,
    write_json,
)
from mindgpt.io.processes import process_runs
from mindgpt.runtime.mindspore_errors import data_error_reason

try:
    import fcntl
except ImportError:  # Windows: no locks; two processes must not clean up the same folder at once
    fcntl = None

METADATA_KEY = "mindgpt"  # the schema's description holds {"mindgpt": {...}} in files written here
FORBIDDEN_IN_NAMES = set("\\/:*?\"<>|`&';")  # MindSpore's rule
SHARD_NAME = re.compile(r"mindrecord\d*$")  # with MindSpore's own shard numbers
MANIFEST = "manifest.json"


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The header of a MindRecord file."""

    columns: dict[str, dict[str, Any]]  # name -> {"type": "int32", "shape": [-1]}
    num_rows: int
    names: list[str]  # of all files that one FileWriter wrote together
    metadata: dict[str, Any]  # of files written by mindgpt; empty for others


def read_header(path: PathLike) -> Header:
    """Read the header of a MindRecord file, and check that the pair is complete and of plausible size.

    Format: 8 bytes little-endian length, a JSON header of that length in `header_size` bytes, pages of `page_size`.

    Raises:
        UserError: the file or its .db is missing, empty, truncated, renamed, or not a MindRecord.
    """
    path = Path(path)
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size == 0:
            raise UserError(f"{path} is empty (0 bytes). Make it again.")
        if not 2 <= length <= size - 8:
            raise UserError(
                f"{path} is not a MindRecord file, or only the beginning of one. text_to_mindrecord.py in "
                "tools/dataset_preprocess makes one of a text, or of a data set of UER-py (.pt)."
            )
        content = file.read(length)
    try:
        fields = json.loads(content)
        pages = fields["page"] or []  # null where nothing was written
        header = _parse_header(fields, pages)
        ends = [fields["header_size"] + page["page_id"] * fields["page_size"] + page["page_size"] for page in pages]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not a MindRecord file, or a broken one. Make it again.") from error
    end = max(ends, default=0)
    if size < end:
        raise UserError(f"{path} is cut short: it has {size} bytes of {end}. Copy or make it again.")
    if path.name not in header.names:
        raise UserError(
            f"{path} was renamed; it was written as {' and '.join(header.names)}. MindSpore keeps the name inside the "
            "file: give it its old name back (with its .db), or make it again."
        )
    _check_index(path)
    return header


def _parse_header(fields: dict[str, Any], pages: list[dict[str, Any]]) -> Header:
    schema = fields["schema"][0]
    rows = sum(page["end_row_id"] - page["start_row_id"] for page in pages if page["page_type"] == "BLOB_DATA")
    metadata: Any = {}
    with contextlib.suppress(ValueError):
        metadata = json.loads(schema["desc"])
    metadata = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    return Header(
        columns=schema["schema"],
        num_rows=rows,
        names=[os.path.basename(name) for name in fields["shard_addresses"]],
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _check_index(path: Path) -> None:
    index = Path(f"{path}.db")
    if not index.is_file():
        raise UserError(f"{index} is missing. A MindRecord is two files; copy {index.name} along with {path.name}.")
    with open_to_read(index) as file:
        if file.read(16) != b"SQLite format 3\0":
            raise UserError(f"{index} is not a MindRecord index, or a broken one. Copy or make {path.name} again.")


def find_mindrecord_files(path: PathLike) -> list[str]:
    """The MindRecord files that a path means, checked.

    A folder means every file in it whose name ends in `mindrecord` (or in MindSpore's `mindrecord<digits>`), sorted by
    name; a file means itself and the shards that one FileWriter wrote with it. A write that was interrupted while its
    files were moved into place is finished first.

    Raises:
        UserError: there is no file, or one is broken (see `read_header`).
    """
    if not str(path):
        raise UserError("No data set was named: give a MindRecord file, or a folder of them.")
    path = Path(path)
    finish_interrupted_writes(path if path.is_dir() else path.parent)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_mindrecord(file))
        if not files:
            raise UserError(f"The folder {path} holds no file whose name ends in 'mindrecord'.{_hint(path)}")
        for file in files:
            read_header(file)
        return [str(file) for file in files]
    if not path.exists():
        raise UserError(f"No such file or folder: {path} (looked from {os.getcwd()}).{_hint(path)}")
    files = [path.with_name(name) for name in read_header(path).names]
    for file in files:
        if file.name != path.name:
            read_header(file)
    return [str(file) for file in files]


def _is_mindrecord(file: Path) -> bool:
    return bool(SHARD_NAME.search(file.name)) and not file.name.startswith(".") and file.is_file()


def _hint(path: Path) -> str:
    """A sentence about where the files may be instead, or ""."""
    if path.is_dir():
        below = sorted({str(file.parent) for file in path.glob("[!.]*/*") if _is_mindrecord(file)})
        return f" There are some in {', '.join(below[:3])}." if below else ""
    folder = path.parent
    splits = (
        sorted(file.name for file in folder.iterdir() if _split_of(file.name, path.name)) if folder.is_dir() else []
    )
    return f" It was written in splits ({splits[0]}, ...): name their folder, {folder}." if splits else ""


# ---- writing ---------------------------------------------------------------------------------------------------------


def _split_prefix(name: str) -> str:
    stem = name.removesuffix("mindrecord").rstrip(".")
    return f"{stem}." if stem else ""


def split_names(name: str, num_splits: int) -> list[str]:
    """File names of a set: `x.mindrecord`, or `x.0.mindrecord`, `x.1.mindrecord`, ... (zero-padded, so names sort)."""
    if num_splits == 1:
        return [name]
    width = len(str(num_splits - 1))
    return [f"{_split_prefix(name)}{number:0{width}}.mindrecord" for number in range(num_splits)]


def _split_of(candidate: str, name: str) -> bool:
    """Whether `candidate` is the name of a split of `name`."""
    return re.fullmatch(rf"{re.escape(_split_prefix(name))}\d+\.mindrecord", candidate) is not None


_PAGES = 1 << 14  # aimed at; about 80,000 fit into a header
_PAGE_BYTES = (1 << 18, 1 << 25)  # smallest and largest


def page_bytes_for(total_bytes: int, row_bytes: int) -> int:
    """A page size for files of about `total_bytes`, with rows of `row_bytes` each.

    When MindSpore finishes a file, it makes the index of each page in memory: about 1.4 KB a row, and the entries of 37
    rows fit into 1 KB of a page. With its pages of 32 MB, that grows to almost 2 GB. Small pages take less, but the
    header, of 16 MB, lists all pages.
    """
    smallest, largest = _PAGE_BYTES
    wanted = max(total_bytes // _PAGES, 4 * row_bytes, smallest)
    return max(min(1 << (wanted - 1).bit_length(), largest), 2 * row_bytes)


class MindRecordWriter:
    """Writes a set of MindRecord files. Use it with `with`: the files appear when the block ends without an error.

    Args:
        path: output file; its name ends in `mindrecord`. Missing folders are created.
        columns: names of int32 columns with one-dimensional rows.
        num_splits: number of files to distribute the rows over, in turn.
        overwrite: replace an existing file or set of splits, when the new one is complete.
        metadata: stored in every file; `read_header` returns it.
        page_bytes: size of the file's pages; None: MindSpore's 32 MB. See `page_bytes_for`.

    Raises:
        UserError: a name that is not allowed, files that exist, a folder that cannot be written, a full disk.
    """

    def __init__(
        self,
        path: PathLike,
        columns: Iterable[str],
        *,
        num_splits: int = 1,
        overwrite: bool = False,
        metadata: dict[str, Any] | None = None,
        page_bytes: int | None = None,
    ):
        self._target = Path(os.path.abspath(path))
        name = self._target.name
        if not name.endswith("mindrecord") or name.startswith(".") or set(name) & FORBIDDEN_IN_NAMES:
            raise UserError(
                f"The output file must have a name that ends in 'mindrecord', does not begin with a dot and holds none "
                f"of {' '.join(sorted(FORBIDDEN_IN_NAMES))}; it is {name!r}."
            )
        if num_splits < 1:
            raise UserError(f"num_splits must be at least 1; it is {num_splits}.")
        self.files = [Path(path).with_name(split) for split in split_names(name, num_splits)]
        self._columns = list(columns)
        self._metadata = metadata or {}
        self._page_bytes = page_bytes
        self._overwrite = overwrite
        self._rows_written = 0
        self._writers: list[Any] = []

    def __enter__(self) -> "MindRecordWriter":
        folder = self._target.parent
        make_folder(folder)
        finish_interrupted_writes(folder)
        _sweep(folder, self._target.name)
        existing = [name for name in _existing_set(folder, self._target.name) if (folder / name).exists()]
        if existing and not self._overwrite:
            found = self.files[0].with_name(existing[0])
            raise UserError(f"{found} exists already. Use --overwrite to replace it, or another name.")
        self._stage = folder / f".{self._target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._stage.mkdir()
        except OSError as error:
            raise UserError(f"Cannot write in the folder {folder}: {error.strerror}.") from error
        self._lock = _lock_folder(self._stage, wait=False)
        return self

    def _open(self, name: str) -> Any:
        from mindspore.mindrecord import FileWriter  # here, so that bad input is reported before MindSpore is loaded

        writer = FileWriter(str(self._stage / name), 1)
        if self._page_bytes is not None:
            writer.set_page_size(self._page_bytes)
        description = json.dumps({METADATA_KEY: {**self._metadata, "set": self._target.name}})
        writer.add_schema({column: {"type": "int32", "shape": [-1]} for column in self._columns}, description)
        return writer

    def write(self, rows: dict[str, np.ndarray]) -> None:
        """Add rows: for every column an int32 array of shape (rows, length).

        Raises:
            UserError: they cannot be written, e.g. because the disk is full.
        """
        count = len(rows[self._columns[0]])
        records = [{column: rows[column][number] for column in self._columns} for number in range(count)]
        splits = len(self.files)
        with self._writing():
            self._writers = self._writers or [self._open(file.name) for file in self.files]
            for number, writer in enumerate(self._writers):
                if part := records[(number - self._rows_written) % splits :: splits]:
                    writer.write_raw_data(part)
        self._rows_written += count

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)
            _unlock(self._lock)

    def _commit(self) -> None:
        if self._rows_written < len(self.files):
            raise UserError(f"{self._target}: {self._rows_written} rows are too few for {len(self.files)} file(s).")
        with self._writing():
            for writer in self._writers:
                writer.commit()
            names = [file.name for file in self.files]
            write_json(self._stage / MANIFEST, {"set": self._target.name, "files": names})
            for entry in self._stage.iterdir():
                sync(entry)
            sync_folder(self._stage)
            ready = self._target.with_name(f".{self._target.name}.ready")
            with contextlib.suppress(OSError):  # of another writer of the same name, since this one began
                _move_into_place(ready)
            os.rename(self._stage, ready)
            sync_folder(ready.parent)
            _unlock(self._lock)  # the folder was renamed; `_move_into_place` locks it again
            self._lock = None
            _move_into_place(ready)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, RuntimeError) as error:  # MindSpore raises RuntimeErrors
            raise UserError(f"Cannot write {self._target}: {data_error_reason(error)}") from error


def _existing_set(folder: Path, name: str) -> list[str]:
    """Existing names of the set `name`: the file itself, and splits whose metadata name the set."""
    found = [name] if (folder / name).exists() or (folder / f"{name}.db").exists() else []
    for file in sorted(folder.iterdir()):
        if _split_of(file.name, name):
            with contextlib.suppress(UserError):
                if read_header(file).metadata.get("set") == name:
                    found.append(file.name)
    return found


# ---- finishing and cleaning up ---------------------------------------------------------------------------------------


def finish_interrupted_writes(folder: PathLike) -> None:
    """Move complete sets into place whose writer was killed while it moved them.

    Raises:
        UserError: a file cannot be moved, e.g. because the folder may not be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for ready in sorted(folder.glob(".*mindrecord.ready")):
        try:
            _move_into_place(ready)
        except OSError as error:
            raise UserError(
                f"{ready} holds data whose writing was interrupted; moving it into place failed: {error.strerror}. "
                "Do so as a user who may write there."
            ) from error


def _move_into_place(ready: Path) -> None:
    """Move a complete set out of its staging folder, possibly after an earlier attempt. Safe to repeat after a kill."""
    lock = _lock_folder(ready, wait=True)
    try:
        if not (ready / MANIFEST).is_file():  # everything has been moved
            shutil.rmtree(ready, ignore_errors=True)
            return
        manifest = read_json(ready / MANIFEST)
        folder, names = ready.parent, manifest["files"]
        for old in _existing_set(folder, manifest["set"]):
            if old not in names:
                _remove_pair(folder / old)
        for name in names:
            if (ready / name).exists():  # an old index must never be read with new data
                (folder / f"{name}.db").unlink(missing_ok=True)
                os.replace(ready / name, folder / name)
            if (ready / f"{name}.db").exists():
                os.replace(ready / f"{name}.db", folder / f"{name}.db")
        sync_folder(folder)
        (ready / MANIFEST).unlink()
        shutil.rmtree(ready, ignore_errors=True)
    finally:
        _unlock(lock)


def _remove_pair(file: Path) -> None:
    file.unlink(missing_ok=True)
    Path(f"{file}.db").unlink(missing_ok=True)


def _sweep(folder: Path, name: str) -> None:
    """Remove the staging folders of dead writers of `name`: no process holds their lock or has their number."""
    for stage in folder.glob(f".{glob.escape(name)}.tmp-*"):
        pid = stage.name.rsplit("-", 2)[-2]
        if pid.isdecimal() and process_runs(int(pid)):
            continue
        lock = _lock_folder(stage, wait=False)
        if lock is not None or fcntl is None:
            shutil.rmtree(stage, ignore_errors=True)
        _unlock(lock)


def _lock_folder(folder: Path, wait: bool) -> int | None:
    """Lock a folder for this process; None if another holds the lock, which ends with its process in any case."""
    if fcntl is None:
        return None
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        except FileNotFoundError:  # removed while this process waited
            pass
        except OSError:  # held by another process, or a file system without locks
            os.close(descriptor)
            return None
        os.close(descriptor)


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
