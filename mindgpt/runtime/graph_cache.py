"""Compiled graphs of earlier runs, so that only the first run of a network on a machine has to compile it.

MindSpore can write a graph to a file after its front end and begin from that file in a later run. By itself it would
take a file for any network whose scripts look alike, even with other layers, constants or shapes. Here a file is kept
under the digest of all that the graph follows from (`graph_fingerprint.py`), in `$MINDGPT_CACHE` beside the fused
kernels (`kernel_cache.py`), and MindSpore finds it only where the digest is equal.

The first run, too, computes with the graph as the file tells it. It is fused a little differently from what the front
end hands over, so otherwise the second run would have new kernels to make, and round differently from the first.

On CPU only, in one process. The file is compressed, and its checksum tells if it is damaged.
"""

import contextlib
import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

from mindgpt.io.user_cache import user_cache
from mindgpt.runtime.graph_fingerprint import fingerprint
from mindgpt.runtime.kernel_cache import keep_kernels
from mindgpt.runtime.ranks import world_size

try:
    import fcntl
except ImportError:  # Windows, where nothing is kept
    fcntl = None

_MOST_GRAPHS = 200  # some 0.3 MB each for GPT-2 small
_ON = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_DEV_FORCE_USE_COMPILE_CACHE": "1"}  # the second: the digest is our check
_FRONT_END_ONLY = {"MS_DEV_PRECOMPILE_ONLY": "1"}
_FILES = "compile_cache_*.mindir"
_graphs_exchanged = 0  # MindSpore counts the graphs that a process compiles with its cache on, and names files by it


class KeptGraphCell(nn.Cell):
    """A cell whose compiled graphs are kept between runs; in all else a cell like any other."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for tensors of these shapes, once, or take what an earlier run has compiled."""
        plain = kwargs or not all(isinstance(value, Tensor) for value in args)
        wanted = None if plain else (self.training, tuple((value.shape, value.dtype) for value in args))
        compiled = self.__dict__.setdefault("compiled_arguments", set())
        if plain or wanted in compiled or not _can_keep():
            super().compile(*args, **kwargs)
            return
        digest = fingerprint(self, args)
        with _exchange_folder() as folder:
            if digest is None or folder is None:
                super().compile(*args)
            else:
                self._compile_by_file(cache_folder() / f"{digest}.mindir.gz", folder, args)
        if ms.get_context("enable_graph_kernel"):
            keep_kernels(Path(os.environ["MS_COMPILER_CACHE_PATH"]))  # now: a run that is interrupted keeps them, too
        compiled.add(wanted)

    def _compile_by_file(self, kept: Path, folder: Path, args: tuple[Tensor, ...]) -> None:
        graph = _read(kept)
        if graph is None:
            with _environment(_ON | _FRONT_END_ONLY):
                super().compile(*args)
            self.compile_cache.clear()  # nothing is there yet that could be run
            graph = _take_written(folder)
            if graph is not None:
                _write(kept, graph)
        if graph is not None:
            _put_for_reading(folder, graph)
        with _environment({} if graph is None else _ON):
            super().compile(*args)


def cache_folder() -> Path:
    """Where graphs are kept."""
    return user_cache() / f"graphs-mindspore-{ms.__version__}"


def _can_keep() -> bool:
    """Not where the person uses MindSpore's own cache or reads its dumps, and only after `prepare_device`."""
    on_cpu = ms.get_context("device_target") == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
    theirs = {"MS_COMPILER_CACHE_ENABLE", "MS_DEV_SAVE_GRAPHS"} & os.environ.keys() or ms.get_context("save_graphs")
    return on_cpu and not theirs and "MS_COMPILER_CACHE_PATH" in os.environ and world_size() == 1


@contextlib.contextmanager
def _exchange_folder() -> Iterator[Path | None]:
    """The folder through which MindSpore gives and takes graphs, empty; None if another process is just using it
    (two runs into one output folder), which might otherwise be given our graph."""
    folder = Path(os.environ["MS_COMPILER_CACHE_PATH"]) / "rank_0" / "graph_cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield None
        return
    try:
        mine = _try_to_lock(lock)
        if mine:
            _empty(folder)
        yield folder if mine else None
        if mine:
            _empty(folder)
    finally:
        os.close(lock)  # which unlocks it


def _try_to_lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _empty(folder: Path) -> None:
    for file in folder.glob(_FILES):
        file.unlink()


def _put_for_reading(folder: Path, graph: bytes) -> None:
    """Where MindSpore will look before it compiles its next graph with the cache on."""
    global _graphs_exchanged
    (folder / _FILES.replace("*", str(_graphs_exchanged))).write_bytes(graph)
    _graphs_exchanged += 1


def _take_written(folder: Path) -> bytes | None:
    """The one graph that MindSpore has written; its name tells how many it has counted."""
    global _graphs_exchanged
    files = list(folder.glob(_FILES))
    if len(files) != 1:
        return None
    _graphs_exchanged = int(files[0].stem.rpartition("_")[2]) + 1
    graph = files[0].read_bytes()
    files[0].unlink()
    return graph


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """`settings` in the environment, and no search through the entry script for what it imports: the digest of all
    our sources takes its place, and the search ends in an error where there is no script (`python -c`)."""
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
    """A kept graph, or None if there is none that is whole."""
    try:
        graph = gzip.decompress(path.read_bytes())
        os.utime(path)
    except (OSError, EOFError, zlib.error):
        return None
    return graph or None  # an empty file decompresses to nothing


def _write(path: Path, graph: bytes) -> None:
    """Keep a graph; a full disk is no error. Those that were not used for longest go when there are too many."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(gzip.compress(graph, compresslevel=1))
        os.replace(temporary, path)
        kept = sorted(path.parent.glob("*.gz"), key=lambda file: file.stat().st_mtime)
        for old in kept[: max(0, len(kept) - _MOST_GRAPHS)]:
            old.unlink(missing_ok=True)
