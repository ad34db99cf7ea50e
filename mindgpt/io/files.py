"""Files that are whole or absent, and readers that say what is wrong with a file.

Every room that writes a file goes through `atomic_write`; every reader of text goes through `read_lines`, `read_text`
or `read_json`, so a wrong path, a broken byte or a typo ends in one sentence, not in a traceback.
"""

import contextlib
import errno
import glob
import io
import itertools
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mindgpt.config.errors import UserError
from mindgpt.io.encodings import HEAD, SAMPLE, conversion_hint, not_text
from mindgpt.io.processes import MACHINE, process_runs

PathLike = str | os.PathLike[str]

DOWNLOADS = Path("checkpoint_download/gpt2")
"""Where MindFormers put what it downloaded, below the working directory."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_MOST_BYTES = 1023  # of a pointer, by its specification

LONG_NUMBER = "it holds a number of more digits than Python reads"  # 4300, a guard against slow conversions


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place only when the `with` block ends without an error.

    Whoever looks at `path`, also after a kill or a power cut at any instant, sees the old file or the new one, whole.
    Missing folders are created. A `path` that is a symbolic link keeps being one: the file it points at is replaced.
    What a writer of the same file left that was killed on this machine is swept away.

    Args:
        path: the file to write.
        mode: "wb", or "w" for text (UTF-8 unless `encoding` says otherwise, line ends written as given).

    Raises:
        UserError: the folder or file cannot be written, or the disk is full.
    """
    if mode not in ("w", "wb"):
        raise AssertionError(f"atomic_write writes whole files: mode is 'w' or 'wb', not {mode!r}")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"Cannot write {path}: it is a folder. Name a file.")
    make_folder(target.parent)
    stem = f".{target.name[:200]}.tmp-"
    _sweep(target.parent, stem)
    temporary = target.with_name(f"{stem}{os.getpid()}-{MACHINE}{secrets.token_hex(4)}")
    text = {} if "b" in mode else {"encoding": encoding or "utf-8", "newline": ""}
    try:
        # Opened by name with "x", not by mkstemp: the file gets the permissions of the user's umask, not 0600.
        with open(temporary, mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if _about(error, temporary):
            raise UserError(f"Cannot write {path}: {error.strerror}.") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    sync_folder(target.parent)


def write_text(path: PathLike, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all. Raises UserError as `atomic_write`."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: PathLike, value: Any) -> None:
    """Write an indented JSON file, whole or not at all. Raises UserError as `atomic_write`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _sweep(folder: Path, stem: str) -> None:
    """Remove the temporary files `<stem><pid>-<machine><random>` of processes of this machine that no longer run."""
    for file in folder.glob(f"{glob.escape(stem)}*-{MACHINE}*"):
        pid = file.name[len(stem) :].split("-")[0]
        if pid.isdecimal() and not process_runs(int(pid)):
            with contextlib.suppress(OSError):
                file.unlink()


def _about(error: OSError, temporary: Path) -> bool:
    """Whether the error comes from writing this file, rather than from other work done inside the `with` block."""
    full_disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return error.errno in full_disk or error.filename == str(temporary)


def set_aside(path: PathLike) -> Path | None:
    """Give a file that is in the way of a new one the name `<stem>-<n><suffix>`, with the first n that is free.

    Returns:
        The new name, or None if there was no file.

    Raises:
        UserError: it cannot be renamed.
    """
    path = Path(path)
    if not path.exists():
        return None
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    target = next(name for name in numbered if not name.exists())
    try:
        os.rename(path, target)
    except OSError as error:
        raise UserError(f"Cannot rename {path} to {target}: {error.strerror}.") from error
    return target


@contextlib.contextmanager
def adding_to(path: PathLike) -> Iterator[None]:
    """For a block that adds to a file which grows, such as a log: what goes wrong is a `UserError` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. What was written before, checkpoints too, is whole."
        ) from error


def make_folder(folder: PathLike) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        UserError: it cannot be created, e.g. because a file is in the way; or it would be called `~`.
    """
    if Path(folder).parts[:1] == ("~",):
        raise UserError(f"Cannot create the folder {folder}: ~ is not expanded. Write the path in full.")
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"Cannot create the folder {folder}: a file of that name is in the way.") from error
    except OSError as error:
        raise UserError(f"Cannot create the folder {folder}: {error.strerror}.") from error


def sync_folder(folder: PathLike) -> None:
    """Flush a folder's list of names to the disk, so that a rename in it outlives a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot; the rename itself has happened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def open_to_read(path: PathLike, mode: str = "rb", **arguments: Any) -> Iterator[IO[Any]]:
    """`open` for reading, with errors that name the file.

    Raises:
        UserError: the file is missing, is a folder, may not be read, or is a Git LFS pointer to what it should hold.
    """
    try:
        file = open(path, mode, **arguments)  # noqa: SIM115 (closed below; only the opening may become a UserError)
    except FileNotFoundError as error:
        raise UserError(f"No such file: {path} (looked from {os.getcwd()}).") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name a file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # what is read from a pipe is gone
            refuse_lfs_pointer(path)
        yield file


def refuse_lfs_pointer(path: PathLike) -> None:
    """Raise a UserError if a file is only a pointer, which `git clone` without Git LFS leaves in place of a file."""
    with open(path, "rb") as file:
        start = file.read(_LFS_MOST_BYTES + 1)
    if start.startswith(_LFS_POINTER) and len(start) <= _LFS_MOST_BYTES:
        raise UserError(
            f"{path}: is a Git LFS pointer, not the file itself. Install git-lfs and run git lfs pull in the "
            "repository, or download the file by itself."
        )


def check_readable(path: PathLike) -> None:
    """Raise a UserError now, not after an hour of work, if a file is missing, is a folder, or may not be read."""
    with open_to_read(path):
        pass


# A byte order mark may begin any line: `cat` joins files that each begin with one. In text it has meant nothing since
# Unicode 3.2, which has U+2060 for what it meant before.
_MARK = "\ufeff"
_MARKS_OF_LINES = re.compile("(?<=\n)\ufeff+")


@contextlib.contextmanager
def _open_text(path: PathLike) -> Iterator[IO[str]]:
    """A UTF-8 file's text; line ends become LF. A `UserError` says what a file is that begins like no text."""
    with open_to_read(path) as file:
        if problem := not_text(path, file.peek(HEAD)[:HEAD]):
            raise UserError(problem)
        try:
            yield io.TextIOWrapper(file, encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def read_lines(path: PathLike) -> Iterator[str]:
    """Yield a UTF-8 file's lines without their ends (LF, CRLF or CR), one at a time; a BOM that begins one is dropped.

    Raises:
        UserError: the file cannot be opened, or is not UTF-8 (with line and byte offset of the first wrong byte).
    """
    with _open_text(path) as file:
        for line in file:
            yield line.removesuffix("\n").lstrip(_MARK)


def read_chunks(path: PathLike, characters: int = 1 << 16) -> Iterator[str]:
    """Yield a UTF-8 file's text in chunks of about `characters`; line ends become LF, a BOM that begins a line is
    dropped.

    Raises:
        UserError: as `read_lines`.
    """
    begins_line = True
    with _open_text(path) as file:
        while chunk := file.read(characters):
            text = _MARKS_OF_LINES.sub("", chunk.lstrip(_MARK) if begins_line else chunk)
            begins_line = text.endswith("\n") if text else begins_line
            if text:
                yield text


def read_text(path: PathLike) -> str:
    """A whole UTF-8 file, as `read_chunks` gives it."""
    return "".join(read_chunks(path))


def read_json(path: PathLike) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file cannot be opened, is not UTF-8, or is not JSON (with line and column).
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: not usable JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{path}: not usable JSON: {LONG_NUMBER}.") from error


def _not_utf8(path: PathLike) -> UserError:
    """Find the first byte that is not UTF-8. A second, binary pass: a text reader's error counts from its buffer."""
    offset = 0
    with open_to_read(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return UserError(
                    f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start} "
                    f"({error.reason}). {conversion_hint(path, (line + file.read(SAMPLE))[:SAMPLE])}"
                )
            offset += len(line)
    return UserError(f"{path}: not UTF-8.")
