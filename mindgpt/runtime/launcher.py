"""Runs one program in several processes: the logic of `scripts/msrun_launcher.sh`.

MindSpore's processes find each other through a scheduler process, whose address they get from environment variables,
the same that MindSpore's `msrun` sets. msrun itself is not used: it shows the log of the wrong process when one fails,
leaves processes running when it is interrupted, and hangs if its port is taken. MindSpore is not imported here.
"""

import contextlib
import ctypes
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from mindgpt.config.console import note_on_broken_pipe
from mindgpt.config.errors import UserError, run_program
from mindgpt.config.paths import expanded, expanded_path
from mindgpt.io.processes import available_cores
from mindgpt.runtime.failure_report import ended, errors_in, is_consequence, last_lines

REPO = Path(__file__).resolve().parents[2]
_SIX, _NINE = (
    "WORKER_NUM MASTER_PORT LOG_DIR JOIN CLUSTER_TIME_OUT",
    "WORKER_NUM LOCAL_WORKER MASTER_ADDR MASTER_PORT NODE_RANK LOG_DIR JOIN CLUSTER_TIME_OUT",
)
USAGE = f"""\
usage: msrun_launcher.sh "COMMAND"
       msrun_launcher.sh "COMMAND" WORKER_NUM
       msrun_launcher.sh "COMMAND" {_SIX}
       msrun_launcher.sh "COMMAND" {_NINE}
COMMAND is one argument: the script and its own arguments, such as "run_mindformer.py --config X.yaml --run_mode train".
"""
DEFAULT_WORKERS = 8
DEFAULT_PORT = 8118  # of several machines, which must know it
DEFAULT_LOG_DIR = "output/msrun_log"
DEFAULT_TIME_OUT = 7200

_POLL_SECONDS = 0.1
_OTHERS_FAIL_SECONDS = 1.0  # after the first failure: time for other ranks to fail with the same error
_GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
_OTHER_MACHINES_SECONDS = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SCHEDULER = "from mindspore.communication import init; init()"  # runs until the workers are done
_NOISE = b"[INFO] DISTRIBUTED("  # MindSpore 2.10 prints this at the end of every process, whatever GLOG_v is


@dataclass(frozen=True)
class Job:
    """A program to run in several processes, and where.

    Attributes:
        script, arguments: the program.
        workers: processes on all machines.
        local_workers: processes on this machine.
        address, port: of the scheduler, which is on the machine whose `node` is 0. Port 0: any that is free, so that
            several jobs can be started at once.
        node: number of this machine.
        log_dir: folder of `worker_<rank>.log` and `scheduler.log`.
        join: wait for the end; otherwise the job runs in the background.
        time_out: seconds within which all processes must connect; negative: no limit.
    """

    script: Path
    arguments: list[str]
    workers: int = DEFAULT_WORKERS
    local_workers: int = DEFAULT_WORKERS
    address: str = "127.0.0.1"
    port: int = 0
    node: int = 0
    log_dir: Path = Path(DEFAULT_LOG_DIR)
    join: bool = True
    time_out: int = DEFAULT_TIME_OUT

    @property
    def ranks(self) -> range:
        """The ranks that run on this machine."""
        first = self.node * self.local_workers
        return range(first, first + self.local_workers)


# ---- the command line ------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Job:
    """The job that the launcher's 1, 2, 6 or 9 arguments describe.

    Raises:
        UserError: another number of arguments, a value that is not allowed, or a missing script.
    """
    if len(arguments) not in (1, 2, 6, 9):
        raise UserError(f"the launcher takes 1, 2, 6 or 9 arguments, not {len(arguments)}\n{USAGE.rstrip()}")
    script, rest = _program(arguments[0])
    if len(arguments) == 1:
        return Job(script, rest)
    workers = _whole("WORKER_NUM", arguments[1], lowest=1)
    job = Job(script, rest, workers=workers, local_workers=workers)
    if len(arguments) == 2:
        return job
    port, log_dir, join, time_out = (*arguments[2:6],) if len(arguments) == 6 else (arguments[4], *arguments[6:9])
    job = replace(
        job,
        port=_whole("MASTER_PORT", port, lowest=1, highest=65535),
        log_dir=expanded_path(log_dir),
        join=_truth("JOIN", join),
        time_out=_whole("CLUSTER_TIME_OUT", time_out, lowest=None),
    )
    if len(arguments) == 6:
        return job
    local, node = _whole("LOCAL_WORKER", arguments[2], lowest=1), _whole("NODE_RANK", arguments[5], lowest=0)
    job = replace(job, local_workers=local, address=arguments[3], node=node if local < workers else 0)
    if local > workers or workers % local:
        raise UserError(f"LOCAL_WORKER {local} must divide WORKER_NUM {workers}: every machine runs as many processes.")
    if job.node >= workers // local:
        raise UserError(
            f"NODE_RANK {node}: {workers} processes, {local} a machine, are {workers // local} machine(s), numbered "
            "from 0."
        )
    return job


def _program(command: str) -> tuple[Path, list[str]]:
    """The script, looked for from the current folder and then in the checkout, and its arguments."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"COMMAND: {error}: {command}") from None
    if words and words[0] in ("python", "python3"):
        del words[0]
    if not words or words[0].startswith("-"):
        raise UserError(f"COMMAND must begin with the name of a Python script\n{USAGE.rstrip()}")
    script = expanded(words[0])
    for folder in (Path.cwd(), REPO):
        if (folder / script).is_file():
            return folder / script, words[1:]
    raise UserError(f"COMMAND: there is no script {words[0]}, neither in {Path.cwd()} nor in {REPO}")


def _whole(name: str, text: str, lowest: int | None, highest: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or (lowest is not None and value < lowest) or (highest is not None and value > highest):
        allowed = "" if lowest is None else f" from {lowest}"
        allowed += "" if highest is None else f" to {highest}"
        raise UserError(f"{name} must be a whole number{allowed}, not {text!r}\n{USAGE.rstrip()}")
    return value


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"{name} must be True or False, not {text!r}\n{USAGE.rstrip()}")
    return text.lower() == "true"


def choose_port(job: Job) -> Job:
    """The job with a port for its scheduler: the one that the user chose, or a free one of this machine.

    Raises:
        UserError: the chosen port is taken, or the address is not this machine's.
    """
    if job.node != 0:
        return job
    try:
        family, _, _, _, address = socket.getaddrinfo(job.address, job.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"MASTER_ADDR {job.address}: {error}") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if job.port:  # a port in TIME_WAIT is fine: MindSpore waits for it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            return replace(job, port=probe.getsockname()[1])
        except PermissionError:
            raise UserError(f"MASTER_PORT {job.port}: this user may not open it; take one from 1024 on.") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"MASTER_ADDR {job.address} is not an address of this machine, which is the one with NODE_RANK 0."
                ) from None
            raise UserError(f"MASTER_PORT {job.port} is taken by another program; name another port.") from None


# ---- the processes ---------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A running process, in its own session, so that Ctrl-C at the terminal reaches only the launcher."""

    name: str
    log: Path
    popen: subprocess.Popen = field(repr=False)

    @property
    def status(self) -> int | None:
        """As `Popen.poll`: None while it runs, negative if a signal ended it."""
        return self.popen.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process and all its descendants."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, number)


def start(job: Job, rank: int | None) -> Process:
    """Start the worker of a rank, or the scheduler if `rank` is None."""
    role = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
    name, command = "scheduler", [sys.executable, "-c", _SCHEDULER]
    if rank is not None:
        local = str(rank - job.ranks[0])
        role = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank), "DEVICE_ID": local}
        name, command = f"worker_{rank}", [sys.executable, str(job.script), *job.arguments]
    environment = {
        **os.environ,
        "MS_WORKER_NUM": str(job.workers),
        "RANK_SIZE": str(job.workers),
        "MS_SCHED_HOST": job.address,
        "MS_SCHED_PORT": str(job.port),
        "MS_TOPO_TIMEOUT": str(job.time_out),
        "PYTHONUNBUFFERED": "1",
        **_share_of_cores(job),
        **role,
    }
    log = job.log_dir / f"{name}.log"
    with open(log, "wb") as file:
        popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return Process(name, log, popen)


def _share_of_cores(job: Job) -> dict[str, str]:
    """The number of threads of each process. Without an NPU, processes that each used all cores would compete."""
    if "OMP_NUM_THREADS" in os.environ or Path("/dev/davinci_manager").exists():
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // job.local_workers))}


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In the child: die when the launcher dies, even if it is killed (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end(processes: Sequence[Process]) -> None:
    """End processes and their descendants: SIGTERM first, then SIGKILL."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(process.status is None for process in processes):
        time.sleep(_POLL_SECONDS)
    for process in processes:
        process.send(signal.SIGKILL)  # also to children of a process that has ended
        process.popen.wait()


class Follower:
    """Copies new lines of a process's log to the console."""

    def __init__(self, process: Process, console: IO[bytes]):
        self.process = process
        self.console = console
        self._file = open(process.log, "rb")  # noqa: SIM115 (open as long as the job runs)

    def copy(self) -> None:
        """Copy what was added since the last call."""
        new = self._file.read()
        if _NOISE in new:
            new = b"".join(line for line in new.splitlines(keepends=True) if not line.startswith(_NOISE))
        if new:
            self.console.write(new)
            self.console.flush()


# ---- the job ---------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """The launcher received a signal to end."""


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    def interrupt(number: int, _: object) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and background jobs of a script, stay ignored
            signal.signal(number, interrupt)
    yield


def run(job: Job) -> int:
    """Run a job on this machine to its end. Returns the exit status: 0, or that of the first rank that failed."""
    scheduler, follower, workers = None, None, []
    with _signals_as_exceptions():
        try:
            if job.node == 0:
                scheduler = start(job, None)
            for rank in job.ranks:
                workers.append(start(job, rank))
            if job.node == 0:
                follower = Follower(workers[0], sys.stdout.buffer)
            failed = _wait(workers, scheduler, follower)
            if not failed and scheduler is not None and job.local_workers < job.workers:
                failed = _serve_other_machines(scheduler)
        except Interrupted as signal_name:
            print(f"{signal_name}: ending all processes", file=sys.stderr, flush=True)
            end(workers)
            if follower is not None:
                follower.copy()  # its last output
            return 130
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # the cleanup is not interrupted again
            end([*workers, *([scheduler] if scheduler else [])])
    return _report(job, failed, follower) if failed else 0


def _wait(workers: list[Process], scheduler: Process | None, follower: Follower | None) -> list[Process]:
    """Wait until all workers are done or one fails, while copying rank 0's log. Returns the failed ones, in order."""
    failed: list[Process] = []
    deadline = float("inf")
    while True:
        done = all(process.status is not None for process in workers)
        failed += [process for process in workers if process.status not in (None, 0) and process not in failed]
        if failed:
            deadline = min(deadline, time.monotonic() + _OTHERS_FAIL_SECONDS)
        elif follower is not None:
            follower.copy()
        if done or time.monotonic() > deadline:
            return failed
        if scheduler is not None and scheduler.status not in (None, 0) and not failed:
            return [scheduler]  # a worker of another machine has ended
        time.sleep(_POLL_SECONDS)


def _serve_other_machines(scheduler: Process) -> list[Process]:
    """Keep the scheduler running for the workers of other machines, until the last of them ends.

    There is no time limit: they may be writing checkpoints, and would end with the scheduler. Returns the scheduler if
    it failed, as it does when it loses one of them.
    """
    try:
        scheduler.popen.wait(timeout=_OTHER_MACHINES_SECONDS)
    except subprocess.TimeoutExpired:
        print("this machine is done; waiting for the others (Ctrl-C ends the job there, too)", flush=True)
        scheduler.popen.wait()
    return [scheduler] if scheduler.status else []


def _report(job: Job, failed: list[Process], follower: Follower | None) -> int:
    """Report failed processes. Returns the exit status of the one that failed first by itself."""
    causes = [process for process in failed if not is_consequence(process.log)]
    if not causes and job.local_workers < job.workers:
        lost = "error: a process on another machine has ended, and so the job; the launcher there tells why"
        print(f"{lost}. Logs of this machine: {job.log_dir}", file=sys.stderr, flush=True)
        return 1
    causes = causes or failed
    cause = causes[0]
    error = errors_in(cause.log)
    same = [process for process in causes if error and errors_in(process.log) == error]
    if follower is not None and follower.process in same:
        follower.copy()  # so it is on the console
        error = []
    else:
        error = error or last_lines(cause.log)
    others = ", ".join(process.name for process in same if process is not cause)
    also = f" ({others} with the same error)" if others else ""
    lines = [f"error: {cause.name} {ended(cause.status)}{also}, and so the job. Its log: {cause.log}"]
    print("\n".join(lines + [f"  | {line}" for line in error]), file=sys.stderr, flush=True)
    return 128 - cause.status if cause.status < 0 else cause.status


def launch(job: Job) -> int:
    """Run a job in this process, in several, or in several in the background."""
    if job.workers == 1:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, str(job.script), *job.arguments])
    job = choose_port(job)
    try:
        job.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"LOG_DIR {job.log_dir} cannot be created: {error.strerror}") from None
    name = job.script.parent.name if job.script.name == "__main__.py" else job.script.name
    here = f"{job.local_workers} of {job.workers}" if job.local_workers < job.workers else str(job.workers)
    print(f"{here} processes of {name}, scheduler {job.address}:{job.port}, logs in {job.log_dir}", flush=True)
    if job.join:
        with note_on_broken_pipe(f"nobody reads the output any more; the job goes on, with its logs in {job.log_dir}"):
            return run(job)
    return _in_background(job)


def _in_background(job: Job) -> int:
    """Hand the job to a launcher in the background, and return at once."""
    log = job.log_dir / "launcher.log"
    command = shlex.join([str(job.script), *job.arguments])
    numbers = [job.workers, job.local_workers, job.address, job.port, job.node, job.log_dir, True, job.time_out]
    with open(log, "wb") as file:
        background = subprocess.Popen(
            [sys.executable, "-m", "mindgpt.runtime.launcher", command, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(
        f"JOIN is False: the job goes on in the background. To watch: tail -f {log}. To end it: kill {background.pid}"
    )
    return 0


def main() -> None:
    """The program that `scripts/msrun_launcher.sh` runs."""
    sys.exit(launch(parse(sys.argv[1:])))


if __name__ == "__main__":
    run_program(main)
