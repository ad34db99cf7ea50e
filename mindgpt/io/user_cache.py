"""The user's cache folder, and a work folder for this process."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from mindgpt.io.processes import MACHINE, process_runs

_WORK = "work"


def user_cache() -> Path:
    """`$MINDGPT_CACHE`, or else `mindgpt` in the user's cache folder. It may not exist yet, or not be writable.

    For a user without a home folder (a random uid in a container), a temporary folder of this process.
    """
    return _permanent_cache() or _temporary_folder()


def why_not_cached() -> str | None:
    """Why compiled code cannot be cached for the next run; None if it can."""
    cache = _permanent_cache()
    if cache is None:
        return "this user has no home folder"
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else f"{cache} cannot be written"


@functools.cache
def work_folder() -> Path:
    """A folder in which MindSpore writes while it compiles; removed at the end of the process.

    It lies in the user's cache, so that files can be cached by hard links; if the cache is not writable, in the
    system's temporary folder.
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
    """Remove the work folders of dead processes of this machine."""
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
    except RuntimeError:  # no HOME, and no entry in the user database
        return None
    return Path(os.path.expanduser(base), "mindgpt").resolve()


@functools.cache
def _temporary_folder() -> Path:
    """A temporary folder, removed at the end of the process."""
    folder = Path(tempfile.mkdtemp(prefix="mindgpt-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
