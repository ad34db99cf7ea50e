"""Lock files, each held by one process, that are released when the process ends in any way."""

import contextlib
import errno
import json
import os
import platform
import time
from pathlib import Path
from types import ModuleType
from typing import Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


class Lock:
    """A locked file.

    Attributes:
        path: the file; its content names the holder, as JSON with the keys `pid`, `machine` and `since`.
    """

    def __init__(self, path: Path, descriptor: int | None):
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file and release the lock."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def try_lock(path: Path) -> Lock | None:
    """Lock a file, which is created if it is missing. Returns None if another process holds the lock.

    The system's lock (`flock`) ends with the process in any case, and child programs do not inherit it. On a file
    system without locks, and on Windows, the lock is granted to everyone.

    Raises:
        OSError: the file cannot be created.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                os.close(descriptor)
                return None
        if _is_still(path, descriptor):  # otherwise its last holder has just removed it
            break
        os.close(descriptor)
    holder = {"pid": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return Lock(path, descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder_of(path: Path) -> str:
    """The holder of a lock, in words: "process 123 on node7, since 2026-01-31 12:00:00"."""
    try:
        holder: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['machine']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
