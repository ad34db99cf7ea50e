"""Signals end a program with a line; its children have the default handlers."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from mindgpt.runtime.interrupts import end_on_interrupt, on_interrupt
end_on_interrupt()
child = os.fork()
if child == 0:
    time.sleep(10)
    os._exit(1)
os.kill(child, signal.SIGTERM)
print("child ended by signal", os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
signal.signal(signal.SIGUSR1, lambda *_: None)
os.kill(os.getpid(), signal.SIGUSR1)  # another signal, which is none of its business
time.sleep(0.2)
print("goes on", flush=True)
with on_interrupt(lambda: print("not said", flush=True)):
    pass
with on_interrupt(lambda: print("last words", flush=True)):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_program_and_not_that_of_a_child(repo, number):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(number)], cwd=repo, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 130
    assert done.stdout.splitlines() == ["child ended by signal 15", "goes on", "last words"]
    assert done.stderr == "interrupted; no file was left half written\n"
