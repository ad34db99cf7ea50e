"""A process that has loaded MindSpore and mindgpt, and forks itself for each program that a test runs.

`tests/programs.py` starts it, sends a JSON request a line, and gets `started PID` and later `ended PID STATUS`. The
forked process becomes the program: arguments, working directory, environment, output and exit status are its own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import sys
import threading
import traceback
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def load() -> None:
    """Import what programs import."""
    sys.path[0] = str(REPO)
    import mindgpt

    for module in pkgutil.walk_packages(mindgpt.__path__, "mindgpt."):
        with contextlib.suppress(ImportError):  # needs an optional library
            importlib.import_module(module.name)
    for name in ("mindspore.dataset", "mindspore.mindrecord", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each forked process would copy this memory when it collects garbage


def serve() -> dict:
    """Answer requests until there are no more, then exit. Returns in each forked process: its request."""
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    children: dict[int, int] = {}  # pidfd -> pid
    rest, more_to_come = b"", True
    while more_to_come or children:
        ready, _, _ = select.select([*children, *([0] if more_to_come else [])], [], [])
        for descriptor in ready:
            if descriptor != 0:
                pid = children.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                os.write(replies, f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())
                continue
            received = os.read(0, 1 << 16)
            more_to_come = bool(received)
            *requests, rest = (rest + received).split(b"\n")
            for request in requests:
                pid = os.fork()
                if pid == 0:
                    for inherited in (replies, *children):
                        os.close(inherited)
                    return json.loads(request)
                os.write(replies, f"started {pid}\n".encode())
                children[os.pidfd_open(pid)] = pid
    os._exit(0)


def become(request: dict) -> None:
    """Give this process what the program would have been started with."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (request["stdout"], os.O_WRONLY), (request["stderr"], os.O_WRONLY)]
    ):
        file = os.open(path, flags)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["cwd"])
    standard_library = sys.path[1 + len(python_path()) :]
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    home = os.getcwd() if request["is_module"] else os.path.dirname(os.path.abspath(sys.argv[0]))
    sys.path[:] = [home, *python_path(), *standard_library]


def python_path() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def run_and_exit(name: str, is_module: bool) -> None:
    """Run it as Python would, but without the interpreter's end, which would take apart all that is loaded."""
    status: object = 0
    try:
        if is_module:
            del sys.modules[name]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as ending:
        status = ending.code or 0
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


if __name__ == "__main__":
    load()
    request = serve()
    become(request)
    run_and_exit(request["arguments"][0], request["is_module"])
