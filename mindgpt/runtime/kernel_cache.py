"""A cache of fused kernels between runs, so that only the first run of a network on a machine compiles them.

MindSpore compiles about 80 kernels for a training step, a third of the time to the first step, and looks for them in
one folder, which is a work folder of the process. Between runs they are kept in `$MINDGPT_CACHE` (default: `mindgpt` in
the user's cache folder), one folder for each version of MindSpore. Kernels are cached atomically: a run that is killed
while it compiles leaves nothing that a later run would load. On one disk, cache and work folder share a kernel by hard
links.
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
_SUFFIXES = (".o", ".so", ".info", ".json")  # MindSpore looks for the last one, so it is copied last
_MAX_KERNELS = 5000  # about 45 kB each


def cache_folder() -> Path:
    """The folder of cached kernels for this version of MindSpore and this architecture."""
    return user_cache() / f"kernels-mindspore-{ms.__version__}-{platform.machine()}"


def fetch_kernels(compile_dir: Path) -> int:
    """Copy all cached kernels to where MindSpore looks for them; returns how many. A missing cache is not an error."""
    return _copy_kernels(cache_folder(), compile_dir / FOLDER)


def keep_kernels(compile_dir: Path) -> int:
    """Add the new kernels of this run to the cache; returns how many. A full disk is not an error."""
    count = _copy_kernels(compile_dir / FOLDER, cache_folder())
    with contextlib.suppress(OSError):
        _drop_oldest(cache_folder())
    return count


def _copy_kernels(source: Path, target: Path) -> int:
    """Link or copy the complete kernels of `source` that `target` lacks, each file atomically."""
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
    """The names of complete kernels."""
    by_suffix = [{path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")} for suffix in _SUFFIXES]
    return set.intersection(*by_suffix)


def _put(file: Path, target: Path) -> None:
    temporary = target / f".{file.name}.{uuid.uuid4().hex}"
    try:
        try:
            os.link(file, temporary)
        except OSError:  # another disk, or a file system without hard links
            shutil.copyfile(file, temporary)
        os.replace(temporary, target / file.name)
    finally:
        temporary.unlink(missing_ok=True)  # a rename onto another link of the same file does nothing


def _last_used(kernel: Path) -> float:
    """When a run last read or made a kernel, under any of its links. Precise to a day on most Linux disks
    (`relatime`)."""
    status = kernel.stat()
    return max(status.st_atime, status.st_mtime)


def _drop_oldest(folder: Path) -> None:
    """Delete the least recently used kernels beyond `_MAX_KERNELS`."""
    kernels = sorted(folder.glob("*.json"), key=_last_used)
    for path in kernels[: max(0, len(kernels) - _MAX_KERNELS)]:
        for suffix in reversed(_SUFFIXES):
            path.with_suffix(suffix).unlink(missing_ok=True)
