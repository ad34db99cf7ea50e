"""Programs of the checkout as a user runs them: each in a process of its own.

Loading MindSpore takes longer than most of them compute. The second program of an environment, and all that follow, are
forked from a process that has loaded it (`tests/program_server.py`). Under `--slow` each is started from nothing.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

from mindgpt.runtime import simulated_ascend

SERVER = Path(__file__).with_name("program_server.py")
MOST_SERVERS = 3  # each has MindSpore in memory

# What a program reads after MindSpore is loaded; any other variable may change what is loaded.
READ_LATER = {
    "MINDGPT_CACHE", "MINDGPT_CPU_KERNELS", "PYTEST_CURRENT_TEST", "PYTHONPATH", "RANK_ID", "RANK_SIZE",
    "MS_WORKER_NUM", "MS_DEV_SAVE_GRAPHS", "MS_DEV_DUMP_IR_PASSES", "MS_DEV_SAVE_GRAPHS_PATH",
}  # fmt: skip

forks = hasattr(os, "pidfd_open")  # Linux; --slow sets it to False

_servers: dict[frozenset, "_Server"] = {}
_asked: Counter[frozenset] = Counter()


def user_environment() -> dict[str, str]:
    """The user's environment variables: those of this process without what it, having run MindSpore, has put there."""
    ours = ("MS_", "RANK_ID", "AKG_", "OMP_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(
    command: Sequence[object], cwd: str | os.PathLike, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with `capture_output` and `text`; env None is the user's environment."""
    process = start(command, cwd, env)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(
    command: Sequence[object], cwd: str | os.PathLike, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str] | Forked":
    """As `subprocess.Popen` with pipes and `text`; has `poll`, `send_signal`, `communicate` and `returncode`."""
    words = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in command]
    environment = dict(user_environment() if env is None else env)
    is_python = words[0] == sys.executable and (words[1] == "-m" or words[1].endswith(".py"))
    if forks and is_python and not _customizes_start(environment) and (server := _server_for(environment)):
        return Forked(server, words[1:], cwd, environment)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=cwd, env=environment, **pipes)


def _customizes_start(environment: Mapping[str, str]) -> bool:
    """Whether PYTHONPATH holds a sitecustomize.py, which Python runs when it starts and a fork does not."""
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    return any(Path(folder, "sitecustomize.py").exists() for folder in folders if folder)


def run_simulated(command, rank, size, cwd, timeout=300, more=None, python_path=()) -> subprocess.CompletedProcess[str]:
    """As `mindgpt.runtime.simulated_ascend.run_simulated`."""
    environment = simulated_ascend.simulated_environment(rank, size) | dict(more or {})
    folders = [*map(os.fspath, python_path), environment.get("PYTHONPATH", "")]
    return run(command, cwd, environment | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}, timeout)


class Forked:
    """A program in a process that was forked for it."""

    def __init__(self, server: "_Server", words: list[str], cwd: str | os.PathLike, environment: dict[str, str]):
        self.args, self.returncode = words, None
        self._folder = tempfile.TemporaryDirectory(prefix="mindgpt-program-")
        self._files = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        is_module = words[0] == "-m"
        request = {"arguments": words[is_module:], "is_module": is_module, "cwd": os.fspath(cwd)}
        request |= {file.name: str(file) for file in self._files}
        self.pid, self._end = server.fork(request | {"environment": environment})

    def poll(self) -> int | None:
        if self._end.done():
            self.returncode = self._end.result()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        try:
            self.returncode = self._end.result(timeout)
        except FutureTimeout:
            raise subprocess.TimeoutExpired(self.args, timeout) from None
        out, err = (file.read_text() for file in self._files)
        self._folder.cleanup()
        return out, err


def _server_for(environment: dict[str, str]) -> "_Server | None":
    kind = frozenset(item for item in environment.items() if item[0] not in READ_LATER)
    _asked[kind] += 1
    if kind not in _servers and _asked[kind] > 1 and len(_servers) < MOST_SERVERS:
        _servers[kind] = _Server(environment)
    return _servers.get(kind)


class _Server:
    def __init__(self, environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, SERVER], env=environment, **pipes)
        self._lock = threading.Lock()
        self._started: queue.Queue[tuple[int, Future] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        atexit.register(self._end)

    def _end(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=10)

    def fork(self, request: dict) -> tuple[int, Future]:
        """Returns the process id, and what will be the exit status."""
        with self._lock:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._started.get()
        assert answer is not None, "tests/program_server.py has ended; see above for why"
        return answer

    def _read(self) -> None:
        running: dict[int, Future] = {}
        for line in self._process.stdout:
            what, pid, *status = line.split()
            if what == "started":
                running[int(pid)] = Future()
                self._started.put((int(pid), running[int(pid)]))
            else:
                running.pop(int(pid)).set_result(int(*status))
        self._started.put(None)
