"""The one exception that is meant for the person at the keyboard, and the way programs end on it."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Something the user can put right: the message says what is wrong, where, and the way out.

    Entry points print the message alone and exit with status 2; nobody sees a traceback for it.
    """


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run a program's `main` and exit: 0; 2 with the message of a `UserError` or of a file error; 130 after Ctrl-C."""
    if os.environ.get("MS_ROLE") == "MS_WORKER":
        _end_at_once_on_failure(main)
    _run(main)


def _end_at_once_on_failure(main: Callable[[], object]) -> NoReturn:
    """For one of several processes. MindSpore's own way out would wait for the others, and they for this one."""
    status = 1
    try:
        _run(main)
    except SystemExit as ending:
        if ending.code in (None, 0):
            raise
        if isinstance(ending.code, int):
            status = ending.code
        else:
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(main: Callable[[], object]) -> NoReturn:
    try:
        main()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # not about a file of the person's
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; no file was left half written", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)
