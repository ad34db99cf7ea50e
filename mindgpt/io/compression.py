"""gzip and Zstandard files, unpacked as they are read, in constant memory."""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mindgpt.config.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".gz", ".zst")
_GZIP = b"\x1f\x8b"
_FRAME = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f: a frame of metadata, which pzstd begins with
_BUFFER = 1 << 16
_ZSTD_INPUT = 1 << 8  # bytes unpacked at a time; they can become 8 MiB
_ZSTD_WINDOW = 1 << 31  # bytes; `zstd --long=31`

PathLike = str | os.PathLike[str]


def is_compressed(path: PathLike) -> bool:
    """Whether a file is read as compressed, which its name says."""
    return Path(path).suffix.lower() in SUFFIXES


def plain_name(path: PathLike) -> Path:
    """The name of a file without the suffix of compression: `x.jsonl` for `x.jsonl.gz`."""
    return Path(path).with_suffix("") if is_compressed(path) else Path(path)


def text_suffix(path: PathLike) -> str:
    """The suffix that says what a file holds, in lower case: `.jsonl` for `x.JSONL` and for `x.jsonl.gz`."""
    return plain_name(path).suffix.lower()


def unpacked(file: io.BufferedReader, path: PathLike) -> io.BufferedReader:
    """The content of an open file; of one whose name says that it is compressed, what was compressed.

    Args:
        file: at its beginning.
        path: its name, which also names it in messages.

    Raises:
        UserError: here or when it is read: the file is damaged or cut short, is not compressed as its name says, or
            zstandard is not installed.
    """
    if not is_compressed(path):
        return file
    suffix, head = Path(path).suffix.lower(), file.peek(4)[:4]
    known = head.startswith(_GZIP) if suffix == ".gz" else head == _FRAME or head[1:] == _SKIPPABLE
    if head and not known:
        raise UserError(f"{path}: is not compressed as its name says. Rename it without {suffix}, or copy it again.")
    return io.BufferedReader(_Gzip(file, path) if suffix == ".gz" else _Zstandard(file, path), _BUFFER)


def _damaged(path: PathLike, how: str) -> UserError:
    return UserError(f"{path}: {how}. Copy or download the file again.")


class _Gzip(io.RawIOBase):
    def __init__(self, file: IO[bytes], path: PathLike):
        self._content, self._path = gzip.GzipFile(fileobj=file), path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._content.read1(len(view))
        except EOFError:
            raise _damaged(self._path, "the gzip file is cut short") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(self._path, f"the gzip file is damaged ({error})") from None
        view[: len(data)] = data
        return len(data)


class _Zstandard(io.RawIOBase):
    def __init__(self, file: IO[bytes], path: PathLike):
        self._file, self._path, self._library = file, path, _zstandard(path)
        self._decompressor = self._library.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: Any = None  # of several frames, which follow each other, the one being unpacked
        self._input, self._place = b"", 0  # what is read, and how much of it is unpacked
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._output:
            self._unpack(len(view))
        count = min(len(view), len(self._output))
        view[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _unpack(self, wanted: int) -> None:
        """Fill the output with so many bytes or some more; at the end of the file with what there is."""
        parts: list[bytes] = []
        while wanted > 0:
            if self._place == len(self._input):
                self._input, self._place = self._file.read(_BUFFER), 0
                if not self._input:
                    break
            parts.append(self._unpack_some())
            wanted -= len(parts[-1])
        if not self._input and self._frame is not None and not any(parts):
            raise _damaged(self._path, "the Zstandard file is cut short")
        self._output = memoryview(b"".join(parts))

    def _unpack_some(self) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        some = self._input[self._place : self._place + _ZSTD_INPUT]
        try:
            part = self._frame.decompress(some)
        except self._library.ZstdError as error:
            raise _damaged(self._path, f"the Zstandard file is damaged ({error})") from None
        self._place += len(some)
        if self._frame.eof:
            self._place -= len(self._frame.unused_data)  # of the next frame
            self._frame = None
        return part


def _zstandard(path: PathLike) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path}: reading Zstandard needs the package zstandard: pip install 'mindgpt[zstd]'. Or unpack the file "
            "with unzstd."
        ) from None
    return zstandard
