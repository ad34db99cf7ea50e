"""Lock files are held by one process at a time and released when it ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mindgpt.io.locks import holder_of, try_lock

HOLD = "import sys, time; from pathlib import Path; from mindgpt.io.locks import try_lock; " + (
    "lock = try_lock(Path(sys.argv[1])); print(lock is not None, flush=True); sys.stdin.read()"
)


@pytest.fixture
def other_process(repo, tmp_path):
    """Another process that tries to have the lock: `other_process()` -> (Popen, whether it has it)."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "x.lock")],
            env=os.environ | {"PYTHONPATH": str(repo)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process, process.stdout.readline() == "True\n"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_process_at_a_time_until_it_is_killed(other_process, tmp_path):
    path = tmp_path / "x.lock"
    holder, has_it = other_process()
    assert has_it
    assert try_lock(path) is None
    assert holder_of(path).startswith(f"process {holder.pid} on ")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert path.exists()
    lock = try_lock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not other_process()[1]
    lock.release()
    assert not path.exists()
    assert other_process()[1]
    lock.release()  # again: nothing happens, and the other still has it
    assert try_lock(path) is None


def test_holder_of_an_unreadable_lock(tmp_path):
    for content in ("", "{}", "[1]"):
        (tmp_path / "x.lock").write_text(content)
        assert holder_of(tmp_path / "x.lock") == "another process"
    assert holder_of(tmp_path / "none.lock") == "another process"
