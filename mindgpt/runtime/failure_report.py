"""Why a process failed, from its log: its own error, or the consequence of another process's end."""

import re
import signal
from pathlib import Path

_MOST_BYTES = 200_000
_MOST_LINES = 40
_TRACEBACK = "Traceback (most recent call last):"
_MESSAGE = "error: "  # the beginning of mindgpt's own error messages
# MindSpore's own log (`[ERROR] CORE(123,...`), and the lines with which a traceback refers to its cause.
_LOG_LINE = re.compile(r"^\[(INFO|WARNING|ERROR|DEBUG|CRITICAL)\] [A-Z_]+\(")
_CHAINED = re.compile(r"^(During handling of the above exception|The above exception was the direct cause)")
# What MindSpore 2.10 writes when a peer or the scheduler is gone.
_CONSEQUENCES = re.compile(
    r"timed out node|is timed out|wait (receiving|sending) .*failed|Connection reset|Connection refused by peer"
    r"|AllReduceCPUKernelMod launch failed|scheduler.*(exit|abnormal|finalized)|Heartbeat|HCCL.*(timeout|remote)"
    r"|^interrupted; no file",
    re.MULTILINE | re.IGNORECASE,
)


def ended(status: int) -> str:
    """How a process ended: "ended with exit status 2", "was killed by SIGKILL ..."."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (by a user, or by the system when it ran out of memory)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def errors_in(log: Path) -> list[str]:
    """The lines of the error that ended a process: its message, or its traceback with its causes.

    Empty if the log holds none; the middle of a long error is left out.
    """
    lines = _text(log).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith((_MESSAGE, _TRACEBACK))]
    if not starts:
        return []
    start = starts[-1]
    while (above := _cause_of(lines, starts, start)) is not None:
        start = above
    error = []
    for line, following in zip(lines[start:], [*lines[start + 1 :], ""], strict=True):
        if following.startswith("- C++ Call Stack"):
            break
        if not _LOG_LINE.match(line):
            error.append(line)
    while error and not error[-1].strip():
        error.pop()
    half = _MOST_LINES // 2
    return error if len(error) <= _MOST_LINES else [*error[:half], "  ...", *error[-half:]]


def _cause_of(lines: list[str], starts: list[int], start: int) -> int | None:
    """The first line of the traceback that caused the one at `start`."""
    before = [number for number in starts if number < start]
    if not before or not any(_CHAINED.match(line) for line in lines[before[-1] : start]):
        return None
    return before[-1]


def is_consequence(log: Path) -> bool:
    """Whether the process seems to have failed because another one ended."""
    error = errors_in(log)
    return bool(_CONSEQUENCES.search("\n".join(error or last_lines(log))))


def last_lines(log: Path) -> list[str]:
    """The last lines of a log, without MindSpore's own log lines if there are others."""
    lines = [line for line in _text(log).splitlines() if line.strip()]
    own = [line for line in lines if not _LOG_LINE.match(line)]
    return (own or lines)[-15:]


def _text(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _MOST_BYTES))
        return file.read().decode(errors="replace")
