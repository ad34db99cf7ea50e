"""A cache of compiled graphs between runs, so that only the first run of a network on a machine compiles it.

MindSpore can write a graph to a file after its front end, and load that file in a later run. Its own check takes a file
for any network with similar scripts, even with other layers, constants or shapes. Here a file is named by the digest of
everything that determines the graph (`graph_fingerprint.py`), in `$MINDGPT_CACHE` beside the fused kernels
(`kernel_cache.py`), and MindSpore is given it only if the digest is equal.

The first run loads the graph from the file as well. Kernels are fused a little differently then, so otherwise the
second run would have to compile new kernels, and round differently from the first.

Only on CPU, in one process. The file is compressed with a checksum, so damage is noticed.
"""

import contextlib
import ctypes
import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

from mindgpt.config.errors import UserError
from mindgpt.io.files import atomic_write
from mindgpt.io.locks import try_lock
from mindgpt.io.user_cache import user_cache
from mindgpt.runtime.graph_fingerprint import fingerprint
from mindgpt.runtime.kernel_cache import keep_kernels
from mindgpt.runtime.ranks import world_size

_MAX_GRAPHS = 200  # about 0.3 MB each for GPT-2 small
_ON = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_DEV_FORCE_USE_COMPILE_CACHE": "1"}  # the second skips MindSpore's check
_FRONT_END_ONLY = {"MS_DEV_PRECOMPILE_ONLY": "1"}
_FILES = "compile_cache_*.mindir"
_graph_count = 0  # MindSpore names files by the number of graphs that the process has compiled with its cache on


class CachedGraphCell(nn.Cell):
    """A cell whose compiled graphs are cached between runs."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for tensors of these shapes, once, or load the graph that an earlier run compiled."""
        uncached = kwargs or not all(isinstance(value, Tensor) for value in args)
        wanted = None if uncached else (self.training, tuple((value.shape, value.dtype) for value in args))
        compiled = self.__dict__.setdefault("compiled_arguments", set())
        if uncached or wanted in compiled or not _can_cache():
            super().compile(*args, **kwargs)
            return
        digest = fingerprint(self, args)
        with _exchange_folder() as folder:
            if digest is None or folder is None:
                super().compile(*args)
            else:
                self._compile_from_file(cache_folder() / f"{digest}.mindir.gz", folder, args)
        if ms.get_context("enable_graph_kernel"):
            keep_kernels(Path(os.environ["MS_COMPILER_CACHE_PATH"]))  # now, in case the run is interrupted
        compiled.add(wanted)
        _return_freed_memory()

    def _compile_from_file(self, cached: Path, folder: Path, args: tuple[Tensor, ...]) -> None:
        graph = _read(cached)
        if graph is None:
            with _environment(_ON | _FRONT_END_ONLY):
                super().compile(*args)
            self.compile_cache.clear()  # the front end has run only
            graph = _collect(folder)
            if graph is not None:
                _write(cached, graph)
        if graph is not None:
            _provide(folder, graph)
        with _environment({} if graph is None else _ON):
            super().compile(*args)


def _return_freed_memory() -> None:
    """Give the system back what the compiler has freed and the allocator keeps: 2.2 GB after a step of 48 blocks."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def cache_folder() -> Path:
    """The folder of cached graphs."""
    return user_cache() / f"graphs-mindspore-{ms.__version__}"


def _can_cache() -> bool:
    """Whether graphs can be cached: not if the user uses MindSpore's own cache or dumps, and only after
    `prepare_device`."""
    on_cpu = ms.get_context("device_target") == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
    theirs = {"MS_COMPILER_CACHE_ENABLE", "MS_DEV_SAVE_GRAPHS"} & os.environ.keys() or ms.get_context("save_graphs")
    return os.name == "posix" and on_cpu and not theirs and "MS_COMPILER_CACHE_PATH" in os.environ and world_size() == 1


@contextlib.contextmanager
def _exchange_folder() -> Iterator[Path | None]:
    """The emptied folder in which MindSpore writes and looks for graphs; None while another process uses it (two runs
    with one folder), which might otherwise load our graph."""
    folder = Path(os.environ["MS_COMPILER_CACHE_PATH"]) / "rank_0" / "graph_cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / "lock")
    except OSError:
        lock = None
    if lock is None:
        yield None
        return
    try:
        _empty(folder)
        yield folder
        _empty(folder)
    finally:
        lock.release()


def _empty(folder: Path) -> None:
    for file in folder.glob(_FILES):
        file.unlink()


def _provide(folder: Path, graph: bytes) -> None:
    """Write a graph to where MindSpore looks before it compiles its next graph with the cache on."""
    global _graph_count
    (folder / _FILES.replace("*", str(_graph_count))).write_bytes(graph)
    _graph_count += 1


def _collect(folder: Path) -> bytes | None:
    """Take the graph that MindSpore has just written; its name holds MindSpore's count."""
    global _graph_count
    files = list(folder.glob(_FILES))
    if len(files) != 1:
        return None
    _graph_count = int(files[0].stem.rpartition("_")[2]) + 1
    graph = files[0].read_bytes()
    files[0].unlink()
    return graph


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and keep MindSpore from searching the imports of the entry script: our digest covers
    the sources, and the search fails without a script (`python -c`)."""
    api = sys.modules[type(nn.cell._cell_graph_executor).__module__]
    script, api.entry_script_path = api.entry_script_path, None
    os.environ.update(settings)
    try:
        yield
    finally:
        api.entry_script_path = script
        for name in settings:
            del os.environ[name]


def _read(path: Path) -> bytes | None:
    """A cached graph, or None if there is none or it is damaged."""
    try:
        graph = gzip.decompress(path.read_bytes())
        os.utime(path)
    except (OSError, EOFError, zlib.error):
        return None
    return graph or None  # an empty file decompresses to nothing


def _write(path: Path, graph: bytes) -> None:
    """Cache a graph and drop the least recently used ones beyond the limit. A full disk is not an error."""
    with contextlib.suppress(OSError, UserError):
        with atomic_write(path) as file:
            file.write(gzip.compress(graph, compresslevel=1))
        kept = sorted(path.parent.glob("*.gz"), key=lambda file: file.stat().st_mtime)
        for old in kept[: max(0, len(kept) - _MAX_GRAPHS)]:
            old.unlink(missing_ok=True)
