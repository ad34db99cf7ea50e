"""Until `run_program` begins, Ctrl-C ends the process with a line and status 130, not with a traceback of imports.

For a program to import before what takes time to load, under `__main__` only: a library must leave signals alone.
"""

import signal

from mindgpt.config.errors import end_at_once

signal.signal(signal.SIGINT, end_at_once)
