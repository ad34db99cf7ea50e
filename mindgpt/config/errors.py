"""`UserError`, the exception whose message is for the user, and how programs end on it."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

from mindgpt.config.console import prepare_console

INTERRUPTED = 130  # the status by which a shell knows a program that Ctrl-C ended
_INTERRUPTED = "interrupted; no file was left half written"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # reported even where no file is named


_PACKAGES = {"mindspore", "numpy", "pydantic", "yaml", "tokenizers", "tqdm", "decorator"}  # what mindgpt always needs


class UserError(ValueError):
    """An error that the user can put right: the message says what is wrong, where, and what to do.

    Programs print the message without a traceback and exit with status 2.
    """


def end_at_once(*_: object) -> NoReturn:
    """End the process with a line and status 130; a signal handler (`program_loading.py`)."""
    print(_INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run a program's `main` and exit; see `whole_program`."""
    with whole_program():
        main()
    raise AssertionError("whole_program exits")


@contextmanager
def whole_program() -> Iterator[None]:
    """Inside runs a whole program, then the process exits: 0; 2 with the message of a `UserError` or of a file error;
    130 after Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_console()
    is_one_of_several = os.environ.get("MS_ROLE") == "MS_WORKER"
    with _end_at_once_on_failure() if is_one_of_several else nullcontext(), _exit_with_message():
        yield


@contextmanager
def _end_at_once_on_failure() -> Iterator[None]:
    """For one of several processes: MindSpore's exit handlers would wait for the others, and those for it."""
    status = 1
    try:
        yield
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


@contextmanager
def _exit_with_message() -> Iterator[None]:
    try:
        _check_arguments(sys.argv[1:])
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # an error here is reported; at exit Python would hide it
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)
    sys.exit(0)


def missing_package(error: BaseException) -> str | None:
    """The message for an import that failed because mindgpt is not installed in this Python; None for other errors."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").split(".")[0] not in _PACKAGES:
        return None
    return (
        f"{sys.executable} has no package {error.name}: mindgpt is not installed in this Python. Use the one that it "
        "is installed in, such as .venv/bin/python, or run pip install . in the checkout with this one."
    )


def _message(error: Exception) -> str | None:
    """The message for an error that the user can put right; None for our own mistakes."""
    if isinstance(error, UserError):
        return str(error)
    if (message := missing_package(error)) is not None:
        return message
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"a file could not be written: {error.strerror}. What was written before is whole."
    if isinstance(error, UnicodeEncodeError) and _is_surrogate(error.object[error.start]):
        return (
            f"{_around(error.object, error.start)} is no text: it holds a byte that is not UTF-8, or half of a "
            "character. Rename the file, or correct the text."
        )
    return None


def _check_arguments(arguments: list[str]) -> None:
    """Python hands over bytes that the locale cannot decode as lone surrogates, which no text file can hold."""
    for number, argument in enumerate(arguments, start=1):
        if any(map(_is_surrogate, argument)):
            raise UserError(
                f"command line: argument {number} ({argument!r}) is not text in {sys.getfilesystemencoding()}. Write "
                "texts in that encoding (or set LC_ALL, e.g. to C.UTF-8), and rename files whose names are in another."
            )


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _around(text: str, place: int) -> str:
    return repr(text[max(0, place - 20) : place + 20])
