"""Ctrl-C while MindSpore computes.

MindSpore 2.10 puts its own handler of SIGINT in place whenever it compiles or runs a graph: one that sends the process
SIGTERM, by which it dies without a word. And an exception raised in its midst, by a handler in Python, would come out
as pages about graphs. So a thread waits for either signal, says a word, and ends the process at once: files are whole
or absent at any instant, and logs are flushed line by line.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mindgpt.config.errors import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_last_words: list[Callable[[], None]] = []


@contextlib.contextmanager
def last_words(say: Callable[[], None]) -> Iterator[None]:
    """Within the block, an interrupted program calls `say` before it ends. `say` runs beside the main thread."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def end_on_interrupt() -> None:
    """Let SIGINT and SIGTERM end this process with a line and status 130; for programs, once, in the main thread."""
    arrivals, announce = os.pipe()
    os.set_blocking(announce, False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)  # it is Python's own handler that wakes the thread, without waiting
    signal.set_wakeup_fd(announce, warn_on_full_buffer=False)
    # A signal for a child must not arrive while it still has our handlers.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS),
        after_in_child=_as_usual,
    )
    threading.Thread(target=_wait, args=(arrivals,), daemon=True).start()


def _as_usual() -> None:
    """For children, which are ended by signals that are none of ours."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _wait(arrivals: int) -> None:
    while os.read(arrivals, 1)[0] not in _SIGNALS:
        pass  # of another signal
    try:
        for say in _last_words:
            say()
        print("interrupted; no file was left half written", file=sys.stderr, flush=True)
    finally:
        os._exit(INTERRUPTED)
