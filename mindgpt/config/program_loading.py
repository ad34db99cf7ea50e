"""While a program loads, until `run_program` begins: Ctrl-C and a missing package end it with a line, not a traceback.

For a program to import before what takes time to load, under `__main__` only: a library must leave both alone.
"""

import os
import signal
import sys
from types import TracebackType

from mindgpt.config.errors import end_at_once, missing_package


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    message = missing_package(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(2)  # a hook cannot set the exit status


signal.signal(signal.SIGINT, end_at_once)
sys.excepthook = _report
