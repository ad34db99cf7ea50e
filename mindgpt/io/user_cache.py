"""Where this person's machine keeps what mindgpt made once and can make again, and where a process works."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from mindgpt.io.processes import MACHINE, process_runs

_WORK = "work"


def user_cache() -> Path:
    """`$MINDGPT_CACHE`, else `mindgpt` in the user's cache folder. It need not exist yet, nor be writable.

    A user without a home folder (a random uid in a container) has a temporary one, which goes with the process.
    """
    return _permanent_cache() or _temporary_folder()


def why_nothing_is_kept() -> str | None:
    """Why the next run will have to compile again what this one compiles; None if it is kept."""
    cache = _permanent_cache()
    if cache is None:
        return "this user has no home folder"
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else f"{cache} cannot be written"


@functools.cache
def work_folder() -> Path:
    """A folder of this process for what MindSpore writes while it compiles; removed at the end of the process.

    In the user's cache, so that what is to be kept need not be copied; where that cannot be written, in the system's
    folder for temporary files.
    """
    base = user_cache() / _WORK
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        folder = Path(tempfile.mkdtemp(prefix=f"{MACHINE}-{os.getpid()}-", dir=base))
    except OSError:
        return _temporary_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _sweep(base: Path) -> None:
    """Remove the work folders of processes of this machine that were killed."""
    for folder in base.glob(f"{MACHINE}-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not process_runs(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _permanent_cache() -> Path | None:
    named = os.environ.get("MINDGPT_CACHE")
    if named:
        return Path(os.path.expanduser(named)).resolve()
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None
    return Path(os.path.expanduser(base), "mindgpt").resolve()


@functools.cache
def _temporary_folder() -> Path:
    """An empty folder of this process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="mindgpt-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
