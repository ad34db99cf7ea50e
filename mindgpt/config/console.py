"""Makes standard output and standard error safe to print to, whatever the terminal's encoding, and after a broken
pipe.

Characters that the console cannot encode, such as an emoji under GBK, are printed as escapes. If the reader leaves
(`| head`, a pager, a closed terminal), further output is discarded and the program continues.
"""

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_notes_on_broken_pipe: list[str] = []


def prepare_console() -> None:
    """Make `sys.stdout` and `sys.stderr` safe to print to; once, at the start of a program."""
    _open_missing_descriptors()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the end)
        setattr(sys, name, _safe(stream, descriptor))


@contextlib.contextmanager
def note_on_broken_pipe(message: str) -> Iterator[None]:
    """Within the block, `message` goes to standard error if the reader of standard output leaves."""
    _notes_on_broken_pipe.append(message)
    try:
        yield
    finally:
        _notes_on_broken_pipe.remove(message)


def _open_missing_descriptors() -> None:
    """Open closed descriptors. Otherwise the next file that is opened would become standard output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)


def _safe(stream: IO[str], descriptor: int) -> IO[str]:
    """The stream, set to escape characters that it cannot encode and to survive a broken pipe. A stream that a test or
    a notebook has substituted for the process's own keeps its file descriptor."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    try:
        own = stream.fileno() == descriptor and not isinstance(_raw(stream), _Descriptor)
    except (OSError, ValueError):
        own = False
    if not own:
        return stream
    stream.flush()
    raw = _Descriptor(descriptor, "w", closefd=False)
    raw.name = stream.name
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: io.TextIOWrapper) -> object:
    return getattr(stream.buffer, "raw", stream.buffer)


class _Descriptor(io.FileIO):
    """Standard output or standard error at the lowest level, which every print, progress bar and flush at exit uses."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            left = error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_a_terminal())
            self._write_nowhere()  # or the flush at exit would fail again
            if left:
                if self.fileno() == 1:
                    for message in _notes_on_broken_pipe:
                        print(message, file=sys.stderr, flush=True)
                return memoryview(data).nbytes
            raise OSError(error.errno, error.strerror, self.name) from None  # e.g. a full disk: named, for the message

    def _is_a_terminal(self) -> bool:
        """Whether it is a terminal; `isatty` is False for a closed one."""
        return stat.S_ISCHR(os.fstat(self.fileno()).st_mode)

    def _write_nowhere(self) -> None:
        """Send further output to the null device, also what MindSpore prints from C++."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
