"""Fused kernels of earlier runs, so that only the first run of a network on a machine has to make them.

MindSpore compiles some 80 kernels for a training step, which is a third of the time to the first step, and looks for
them in one folder, which here is a part of the run's output. Between runs they are kept in `$MINDGPT_CACHE` (default:
`mindgpt` in the user's cache folder), one folder for each version of MindSpore. A kernel goes there whole: a run that
is killed while it compiles leaves nothing there that a later one would load. Where cache and output are on one disk, a
kernel is there once, with two names.
"""

import contextlib
import os
import platform
import shutil
import uuid
from pathlib import Path

import mindspore as ms

from mindgpt.io.user_cache import user_cache

FOLDER = "akg_kernel_meta"  # MindSpore's name for it, below MS_COMPILER_CACHE_PATH
_SUFFIXES = (".o", ".so", ".info", ".json")  # the last is what MindSpore looks for, so it is copied last
_MOST_KERNELS = 5000  # some 45 kB each


def cache_folder() -> Path:
    """Where kernels are kept for this version of MindSpore on this kind of machine."""
    return user_cache() / f"kernels-mindspore-{ms.__version__}-{platform.machine()}"


def bring_kernels(compile_dir: Path) -> int:
    """Put all kept kernels to where MindSpore looks for them; returns how many. No cache is no error."""
    return _put_kernels(cache_folder(), compile_dir / FOLDER)


def keep_kernels(compile_dir: Path) -> int:
    """Put the kernels of this run that are new into the cache; returns how many. A full disk is no error."""
    count = _put_kernels(compile_dir / FOLDER, cache_folder())
    with contextlib.suppress(OSError):
        _drop_oldest(cache_folder())
    return count


def _put_kernels(source: Path, target: Path) -> int:
    """Link or copy what `source` has whole and `target` has not, each file under its name only when it is whole."""
    count = 0
    with contextlib.suppress(OSError):
        new = _names(source) - _names(target)
        if new:
            target.mkdir(parents=True, exist_ok=True)
        for name in sorted(new):
            for suffix in _SUFFIXES:
                _put(source / f"{name}{suffix}", target)
            count += 1
    return count


def _names(folder: Path) -> set[str]:
    """The kernels of which every file is there."""
    by_suffix = [{path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")} for suffix in _SUFFIXES]
    return set.intersection(*by_suffix)


def _put(file: Path, target: Path) -> None:
    temporary = target / f".{file.name}.{uuid.uuid4().hex}"
    try:
        try:
            os.link(file, temporary)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, temporary)
        os.replace(temporary, target / file.name)
    finally:
        temporary.unlink(missing_ok=True)  # a rename onto another name of the same file leaves it, too


def _last_used(kernel: Path) -> float:
    """When a run last read or made a kernel; reading it under a link's name counts, linking it does not. To the day
    only, on most Linux disks (`relatime`)."""
    status = kernel.stat()
    return max(status.st_atime, status.st_mtime)


def _drop_oldest(folder: Path) -> None:
    """Beyond `_MOST_KERNELS`, those go first that have not been used for longest."""
    kernels = sorted(folder.glob("*.json"), key=_last_used)
    for path in kernels[: max(0, len(kernels) - _MOST_KERNELS)]:
        for suffix in reversed(_SUFFIXES):
            path.with_suffix(suffix).unlink(missing_ok=True)
