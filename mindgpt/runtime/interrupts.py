"""Ctrl-C while MindSpore computes.

MindSpore 2.10 installs its own SIGINT handler whenever it compiles or runs a graph; it sends the process SIGTERM, which
ends it silently. An exception that a Python handler raises there would surface as pages about graphs. So a thread waits
for either signal, prints a message, and ends the process at once. That is safe: files are written atomically and logs
are flushed line by line.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mindgpt.config.errors import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_before_exit: list[Callable[[], None]] = []


@contextlib.contextmanager
def on_interrupt(callback: Callable[[], None]) -> Iterator[None]:
    """Within the block, an interrupted program calls `callback`, from another thread, before it ends."""
    _before_exit.append(callback)
    try:
        yield
    finally:
        _before_exit.remove(callback)


def end_on_interrupt() -> None:
    """Let SIGINT and SIGTERM end this process with a line and status 130. Call it once, in a program's main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # Python's own C handler writes to the pipe, which wakes the thread
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A child must not get a signal while it still has our handlers.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS),
        after_in_child=_restore_defaults,
    )
    threading.Thread(target=_wait, args=(reader,), daemon=True).start()


def _restore_defaults() -> None:
    """Give a child process the default handlers."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _wait(reader: int) -> None:
    while os.read(reader, 1)[0] not in _SIGNALS:
        pass  # another signal
    try:
        for callback in _before_exit:
            callback()
        print("interrupted; no file was left half written", file=sys.stderr, flush=True)
    finally:
        os._exit(INTERRUPTED)
