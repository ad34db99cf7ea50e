"""Atomic writing of files, and readers with clear errors.

Files are written with `atomic_write`, text is read with `read_lines`, `read_text` or `read_json`, also from files that
end in .gz or .zst. So a wrong path, a broken byte or a typo ends in one sentence, not in a traceback.
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
from mindgpt.io.compression import PathLike, is_compressed, unpacked
from mindgpt.io.encodings import HEAD, SAMPLE, conversion_hint, not_text
from mindgpt.io.processes import MACHINE, process_runs

DOWNLOADS = Path("checkpoint_download/gpt2")
"""The folder of MindFormers' downloads, in the working directory."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_MAX_BYTES = 1023  # of a pointer, by its specification

LONG_NUMBER = "it holds a number of more digits than Python reads"  # 4300, which limits slow conversions


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb", encoding: str | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, which replaces it when the `with` block ends without an error.

    Readers of `path` always find the complete old file or the complete new one, also after a kill or a power cut.
    Missing folders are created. If `path` is a symbolic link, the file that it points to is replaced. Temporary files
    of killed processes on this machine are removed.

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
    text: dict[str, Any] = {} if "b" in mode else {"encoding": encoding or "utf-8", "newline": ""}
    try:
        # Opened with "x", not by mkstemp, so that the file has the permissions of the user's umask, not 0600.
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
    """Remove temporary files `<stem><pid>-<machine><random>` of dead processes of this machine."""
    for file in folder.glob(f"{glob.escape(stem)}*-{MACHINE}*"):
        pid = file.name[len(stem) :].split("-")[0]
        if pid.isdecimal() and not process_runs(int(pid)):
            with contextlib.suppress(OSError):
                file.unlink()


def _about(error: OSError, temporary: Path) -> bool:
    """Whether an error comes from writing this file, and not from other work in the `with` block."""
    full_disk = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return error.errno in full_disk or error.filename == str(temporary)


def set_aside(path: PathLike) -> Path | None:
    """Rename an existing file to `<stem>-<n><suffix>`, with the first free n, to make room for a new one.

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
def appending_to(path: PathLike) -> Iterator[None]:
    """For a block that appends to a file, such as a log: an OSError becomes a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. What was written before, checkpoints too, is whole."
        ) from error


def make_folder(folder: PathLike) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        UserError: it cannot be created, e.g. because a file has its name; or it would be called `~`.
    """
    if Path(folder).parts[:1] == ("~",):
        raise UserError(f"Cannot create the folder {folder}: ~ is not expanded. Write the path in full.")
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"Cannot create the folder {folder}: a file of that name is in the way.") from error
    except OSError as error:
        raise UserError(f"Cannot create the folder {folder}: {error.strerror}.") from error


def sync(path: PathLike) -> None:
    """Flush a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: PathLike) -> None:
    """Flush the names in a folder to the disk, so that a rename in it survives a power cut."""
    with contextlib.suppress(OSError):  # some file systems cannot; the rename itself has happened
        sync(folder)


@contextlib.contextmanager
def open_to_read(path: PathLike, mode: str = "rb", **arguments: Any) -> Iterator[IO[Any]]:
    """`open` for reading, with errors that name the file.

    Raises:
        UserError: the file is missing, a folder, not readable, or a Git LFS pointer instead of the file.
    """
    try:
        file = open(path, mode, **arguments)  # noqa: SIM115 (closed below; only errors of opening become UserErrors)
    except FileNotFoundError as error:
        raise UserError(f"No such file: {path} (looked from {os.getcwd()}).") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name a file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe can be read only once
            refuse_lfs_pointer(path)
        yield file


def refuse_lfs_pointer(path: PathLike) -> None:
    """Raise a UserError if a file is a pointer, which `git clone` without Git LFS leaves in place of the file."""
    with open(path, "rb") as file:
        start = file.read(_LFS_MAX_BYTES + 1)
    if start.startswith(_LFS_POINTER) and len(start) <= _LFS_MAX_BYTES:
        raise UserError(
            f"{path}: is a Git LFS pointer, not the file itself. Install git-lfs and run git lfs pull in the "
            "repository, or download the file by itself."
        )


def check_readable(path: PathLike) -> None:
    """Raise a UserError if a file is missing, a folder, or not readable."""
    with open_to_read(path):
        pass


# A byte order mark may begin any line, since `cat` joins files that begin with one. Within text it is deprecated since
# Unicode 3.2, in favour of U+2060.
_MARK = "\ufeff"
_LINE_MARKS = re.compile("(?<=\n)\ufeff+")


@contextlib.contextmanager
def _open_text(path: PathLike, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a UTF-8 text file; line ends become LF, unless `newline` is "". A `UserError` says what a file that is not
    text seems to be."""
    with open_to_read(path) as file:
        assert isinstance(file, io.BufferedReader)
        content = unpacked(file, path)
        if problem := not_text(path, content.peek(HEAD)[:HEAD]):
            raise UserError(problem)
        try:
            yield io.TextIOWrapper(content, encoding="utf-8", newline=newline)
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def read_lines(path: PathLike) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without line ends (LF, CRLF or CR) and leading byte order marks.

    Raises:
        UserError: the file cannot be opened, or is not UTF-8 (with line and byte offset of the first wrong byte).
    """
    with _open_text(path) as file:
        for line in file:
            yield line.removesuffix("\n").lstrip(_MARK)


def read_chunks(path: PathLike, characters: int = 1 << 16) -> Iterator[str]:
    """Yield the text of a UTF-8 file in chunks of about `characters`; line ends become LF, byte order marks at the
    beginning of lines are dropped.

    Raises:
        UserError: as `read_lines`.
    """
    begins_line = True
    with _open_text(path) as file:
        while chunk := file.read(characters):
            text = _LINE_MARKS.sub("", chunk.lstrip(_MARK) if begins_line else chunk)
            begins_line = text.endswith("\n") if text else begins_line
            if text:
                yield text


def read_text(path: PathLike) -> str:
    """The text of a UTF-8 file, as in `read_chunks`."""
    return "".join(read_chunks(path))


def read_text_exactly(path: PathLike) -> str:
    """The text of a UTF-8 file with its line ends as they are, without a leading byte order mark.

    Raises:
        UserError: as `read_lines`.
    """
    with _open_text(path, newline="") as file:
        return file.read().removeprefix(_MARK)


def read_json(path: PathLike) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file cannot be opened, is not UTF-8, or is not JSON (with line and column).
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, path: PathLike) -> Any:
    """The value that a text in JSON says; `path` names its file in messages. Raises UserError as `read_json`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}.") from error
    except RecursionError as error:
        raise UserError(f"{path}: not usable JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{path}: not usable JSON: {LONG_NUMBER}.") from error


def _not_utf8(path: PathLike) -> UserError:
    """Find the first byte that is not UTF-8, in a second, binary pass: a text reader counts from its buffer."""
    offset, where = 0, "offset" if not is_compressed(path) else "offset (of the unpacked text)"
    with open_to_read(path) as opened:
        assert isinstance(opened, io.BufferedReader)
        file = unpacked(opened, path)
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return UserError(
                    f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x} at {where} {offset + error.start} "
                    f"({error.reason}). {conversion_hint(path, (line + file.read(SAMPLE))[:SAMPLE])}"
                )
            offset += len(line)
    return UserError(f"{path}: not UTF-8.")
