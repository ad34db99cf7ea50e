"""Compiling for Ascend on a machine without an NPU, as rank R of N cards. Nothing is computed.

MindSpore's wheel contains its Ascend back end. Under `MS_SIMULATION_LEVEL=0` it compiles a graph for N cards without
using any, but it needs the libraries of CANN (Huawei's driver and compiler). An installed CANN is used. Otherwise this
module builds a stub library: empty functions with the names that the back end imports. It is built once for each
version of MindSpore, in the user's cache.

Real with either: shapes and types, differentiation, shard strategies and their errors, pipeline stages, collectives,
each rank's shards of the parameters, strategy files. Not real: every number that "the card" computes, speed, and
memory. Each program needs its own process, since MindSpore loads its back end once.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mindgpt.config.errors import UserError
from mindgpt.io.user_cache import user_cache

_LIBRARIES = (
    "libascend_hal",
    "libascendcl",
    "libc_sec",
    "libge_runner",
    "libgraph",
    "libhccl",
    "libmsprofiler",
    "libnnopbase",
    "libplatform",
    "libruntime",
)
"""CANN's libraries that the back end loads by name. Here all are links to one file."""

_SYSTEM_LIBRARIES = ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libgcc_s.so.1")
_SYSTEM_LIBRARIES += ("libgomp.so.1", "libstdc++.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")

_HEADERS = "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\n"

# Functions whose results are used in a simulation. Every other stub returns 0, which means success in CANN.
_STUBS = """
const char *aclrtGetSocName(void) { return "Ascend910B2"; }
int aclrtGetDeviceCount(unsigned *count) { *count = 8; return 0; }
int aclrtGetDevice(int *device) { *device = 0; return 0; }
int aclrtGetMemInfo(int kind, size_t *free, size_t *total) { *free = 60ull << 30; *total = 64ull << 30; return 0; }
int aclrtGetCurrentContext(void **context) { static int only; *context = &only; return 0; }
int aclrtCreateContext(void **context, int device) { *context = malloc(16); return 0; }
int aclrtCreateStream(void **stream) { *stream = malloc(16); return 0; }
int aclrtCreateStreamWithConfig(void **stream, unsigned priority, unsigned flag) { *stream = malloc(16); return 0; }
int aclrtMalloc(void **place, size_t size, int policy) { *place = malloc(size); return 0; }
int aclrtMallocHost(void **place, size_t size) { *place = malloc(size); return 0; }
int aclrtFree(void *place) { free(place); return 0; }
int aclrtFreeHost(void *place) { free(place); return 0; }
int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) { memcpy(to, from, size); return 0; }
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream) {
  memcpy(to, from, size);
  return 0;
}
"""

_STUBBED = set(re.findall(r"\b(acl\w+)\(", _STUBS))

# ge::StatusFactory::Instance() returns a map that code inlined into the back end fills while it is loaded.
_STATUS_FACTORY = "_ZN2ge13StatusFactory8InstanceEv"
_STATUS_FACTORY_SOURCE = f"""
#include <cstdint>
#include <map>
#include <string>
extern "C" void *status_factory() __asm__("{_STATUS_FACTORY}");
extern "C" void *status_factory() {{
  static auto *messages = new std::map<uint32_t, std::string>();
  return messages;
}}
"""
_SYS_VERSION = '__sys_version__ = "7.7.0"\n'  # which MindSpore reads from CANN's Python package hccl

_CLUSTER_VARIABLES = ("MS_ROLE", "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "DEVICE_ID")


def is_cann_installed() -> bool:
    """Whether CANN is installed and its environment is set (`ASCEND_HOME_PATH`); our stubs do not count."""
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home or not (Path(home) / "lib64" / "libascendcl.so").exists():
        return False
    return not Path(home).resolve().is_relative_to(user_cache())


def simulated_environment(rank: int, size: int) -> dict[str, str]:
    """All environment variables of a program that compiles as one of several Ascend cards.

    The program names the device (`device_target: Ascend`) and calls `mindspore.communication.init()`.

    Args:
        rank: of the card, from 0.
        size: number of cards.

    Raises:
        UserError: there is no CANN, and the stubs cannot be built here.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size} cards: it must be from 0 to {size - 1}")
    environment = {name: value for name, value in os.environ.items() if name not in _CLUSTER_VARIABLES}
    environment |= {"MS_SIMULATION_LEVEL": "0", "RANK_ID": str(rank), "RANK_SIZE": str(size)}
    environment["MS_WORKER_NUM"] = str(size)  # where `mindgpt.runtime.ranks` reads it
    environment.setdefault("GLOG_v", "3")
    if not is_cann_installed():
        home = _stub_cann() / "cann" / "latest"
        environment["ASCEND_HOME_PATH"] = str(home)
        environment["ASCEND_OPP_PATH"] = str(home / "opp")
        environment["LD_LIBRARY_PATH"] = _prepend(home / "lib64", os.environ.get("LD_LIBRARY_PATH"))
        environment["PYTHONPATH"] = _prepend(home.parents[1] / "python", os.environ.get("PYTHONPATH"))
    return environment


def run_simulated(
    command: Sequence[str | os.PathLike[str]],
    rank: int,
    size: int,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    more: Mapping[str, str] | None = None,
    python_path: Sequence[str | os.PathLike[str]] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program as one of several simulated Ascend cards, and wait for it.

    Args:
        command: the program and its arguments.
        rank, size: see `simulated_environment`.
        cwd: its working directory, into which MindSpore writes (`rank_R/`, `kernel_meta/`).
        timeout: seconds after which the program and its children are killed.
        more: further environment variables, which replace those of `simulated_environment`.
        python_path: folders to prepend to the program's PYTHONPATH.

    Returns:
        The exit status and the output on `stdout` and `stderr`.

    Raises:
        UserError: as `simulated_environment`.
        subprocess.TimeoutExpired: it took longer than `timeout`.
    """
    environment = simulated_environment(rank, size) | dict(more or {})
    for folder in reversed(python_path):
        environment["PYTHONPATH"] = _prepend(folder, environment.get("PYTHONPATH"))
    process = subprocess.Popen(
        list(map(os.fspath, command)),
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # MindSpore starts child processes, which have to end with it
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _prepend(folder: str | os.PathLike[str], others: str | None) -> str:
    return f"{folder}{os.pathsep}{others}" if others else str(folder)


def _stub_cann() -> Path:
    """The folder of the CANN stubs for the installed MindSpore, built atomically if it does not exist."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None:
        raise UserError("MindSpore is not installed in this environment: pip install mindspore")
    mindspore = Path(spec.origin).parent
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    name = f"empty-cann-mindspore-{importlib.metadata.version('mindspore')}-{platform.machine()}-{recipe}"
    folder = user_cache() / name
    if folder.is_dir():
        return folder
    _check_can_build(mindspore)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".empty-cann-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {folder.parent} ({error.strerror}), which simulated Ascend needs. Name "
            "another with the environment variable MINDGPT_CACHE"
        ) from error
    try:
        _build(unfinished, mindspore)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _check_can_build(mindspore: Path) -> None:
    missing = [tool for tool in ("gcc", "g++", "nm") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"compiling for Ascend without CANN needs {', '.join(missing)}, which this machine does not have. Install "
            "the compiler (Debian, Ubuntu: apt-get install g++ binutils), or set CANN's environment (set_env.sh)"
        )
    if not _back_end(mindspore)[0].exists():
        raise UserError(
            f"the MindSpore in {mindspore} has no Ascend back end (no {_back_end(mindspore)[0].name}): install the "
            "wheel for Linux with pip install mindspore"
        )


def _back_end(mindspore: Path) -> list[Path]:
    plugin = mindspore / "lib" / "plugin"
    own = [plugin / "libmindspore_ascend.so.2", plugin / "libmindspore_ops_ascend.so"]
    return own + sorted((plugin / "ascend").rglob("*.so"))


def _build(folder: Path, mindspore: Path) -> None:
    home = folder / "cann" / "latest"
    lib64 = home / "lib64"  # MindSpore looks for this name in the path of the loaded library
    for made in (lib64, home / "opp", folder / "python" / "hccl"):
        made.mkdir(parents=True)
    (folder / "python" / "hccl" / "__init__.py").write_text("")
    (folder / "python" / "hccl" / "sys_version.py").write_text(_SYS_VERSION)
    source, factory = folder / "empty.c", folder / "status_factory.cpp"
    source.write_text(_HEADERS + _STUBS + "".join(_definitions(_missing(mindspore) - _STUBBED - {_STATUS_FACTORY})))
    factory.write_text(_STATUS_FACTORY_SOURCE)
    options = ("-c", "-fPIC", "-O1", "-w")
    _compile("gcc", *options, source, "-o", folder / "empty.o")
    # MindSpore and CANN are built with the old ABI of std::string.
    _compile("g++", *options, "-D_GLIBCXX_USE_CXX11_ABI=0", factory, "-o", folder / "status_factory.o")
    library = lib64 / f"{_LIBRARIES[0]}.so"
    _compile("g++", "-shared", "-o", library, folder / "empty.o", folder / "status_factory.o")
    for name in _LIBRARIES[1:]:
        (lib64 / f"{name}.so").symlink_to(library.name)
    for file in folder.glob("*.o"):
        file.unlink()


def _definitions(names: set[str]) -> Iterator[str]:
    """C definitions of stubs; the names may be mangled C++ names."""
    for number, name in enumerate(sorted(names)):
        if name.startswith("_ZT"):  # virtual tables and type information are data
            yield f'char data_{number}[512] __asm__("{name}") = {{0}};\n'
        else:
            yield f'uintptr_t f_{number}(void) __asm__("{name}");\nuintptr_t f_{number}(void) {{ return 0; }}\n'


def _missing(mindspore: Path) -> set[str]:
    """The symbols that the back end imports and neither MindSpore nor the system exports."""
    back_end = _back_end(mindspore)
    own = [*(mindspore / "lib").glob("*.so*"), *mindspore.glob("*.so"), *back_end]
    exported = set()
    for library in own + list(_system_libraries()):
        exported |= {name for _, name in _symbols(library, "--defined-only")}
    imported = {name for library in back_end for kind, name in _symbols(library, "-u") if kind not in ("w", "v")}
    return {name for name in imported - exported if not name.startswith(("Py", "_Py", "__stack"))}


def _system_libraries() -> Iterator[Path]:
    for name in _SYSTEM_LIBRARIES:
        answer = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if answer != name:  # gcc echoes a name that it does not find
            yield Path(answer)


def _symbols(library: Path, which: str) -> Iterator[tuple[str, str]]:
    """The dynamic symbols of a library: (kind, name), kind as nm prints it."""
    listing = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True).stdout
    for line in listing.splitlines():
        *_, kind, name = ["", *line.split()]
        yield kind, name.split("@")[0]


def _compile(*command: str | Path) -> None:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(
            f"building the CANN stub library failed: {' '.join(map(str, command))}\n{result.stderr[-2000:]}"
        )
