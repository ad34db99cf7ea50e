"""A forked program behaves as one that was started."""

import signal
import subprocess
import sys

import pytest

from tests import programs

PROGRAM = """
import atexit, os, signal, sys, threading, time
atexit.register(print, "at exit")
def later():
    time.sleep(0.05)
    print("thread")
threading.Thread(target=later).start()
print(os.getcwd(), os.environ.get("MINDGPT_CACHE"), sys.argv[1:], sys.path[0], __name__, sys.stdin.read())
print("error", file=sys.stderr)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
"""
ENDINGS = {
    "pass": 0, "sys.exit(3)": 3, "sys.exit('words')": 1, "sys.exit()": 0, "1 / 0": 1,
    "os.kill(os.getpid(), signal.SIGKILL)": -9, "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)": 7,
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_fork_is_like_a_start(tmp_path, monkeypatch, ending):
    (tmp_path / "program.py").write_text(PROGRAM + ending)
    command = [sys.executable, "program.py", "a", "b c"]
    environment = programs.user_environment() | {"MINDGPT_CACHE": "x"}
    forked = [programs.run(command, tmp_path, environment) for _ in range(2)][1]
    monkeypatch.setattr(programs, "forks", False)
    started = programs.run(command, tmp_path, environment)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.returncode == ENDINGS[ending]
    assert forked.stderr.splitlines()[:1] == started.stderr.splitlines()[:1] == ["error"]
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_a_forked_program_is_interrupted_and_ends_in_time(tmp_path):
    (tmp_path / "program.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    command = [sys.executable, tmp_path / "program.py"]
    for _ in range(2):
        process = programs.start(command, tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (-signal.SIGINT, "begun\n")
        assert err.endswith("KeyboardInterrupt\n")
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run(command, tmp_path, timeout=1)
