"""The launcher: its forms of arguments, and how it starts, follows and ends processes. What they run here is small and
knows nothing of MindSpore; `tests/tasks/test_data_parallel.py` runs the real program."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindgpt.config.errors import UserError
from mindgpt.runtime import launcher
from mindgpt.runtime.failure_report import errors_in, is_consequence
from mindgpt.runtime.launcher import choose_port, parse

SCRIPT = """
import json, os, sys, time
rank = int(os.environ.get("RANK_ID", "0"))
names = ("MS_WORKER_NUM", "MS_ROLE", "MS_NODE_ID", "RANK_SIZE", "DEVICE_ID", "MS_SCHED_HOST", "MS_TOPO_TIMEOUT")
print(json.dumps({"arguments": sys.argv[1:], "rank": rank, **{n: os.environ.get(n) for n in names}}), flush=True)
what = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
if what.get("fail") == str(rank):
    try:
        [].pop()
    except IndexError as error:
        raise ValueError("the real reason") from error
if "all" in what:
    print("error: " + what["all"].replace("+", " "), file=sys.stderr)
    sys.exit(2)
time.sleep(float(what.get("sleep", 0)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a script in it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(repo, folder):
    """The shell script, as it is called from another folder than the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MS_", "RANK_"))}
    environment["PYTHON"] = sys.executable

    def start(*arguments, **keywords):
        command = ["bash", str(repo / "scripts" / "msrun_launcher.sh"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell starts what is in its background with Ctrl-C ignored, the whole test run for one; a person's is not.
        keywords.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(command, cwd=folder, env=environment, **pipes, **keywords)

    return start


def finished(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def lines_of(log):
    return [json.loads(line) for line in Path(log).read_text().splitlines() if line.startswith("{")]


def pids_running(folder):
    """Processes whose current folder is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                if os.readlink(entry / "cwd") == str(folder) and " Z " not in (entry / "stat").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_the_four_argument_forms(folder):
    one = parse(["script.py --a 1"])
    assert (one.script, one.arguments) == (folder / "script.py", ["--a", "1"])
    assert (one.workers, one.local_workers, list(one.ranks)) == (8, 8, list(range(8)))
    assert (one.address, one.port, one.join, one.time_out) == ("127.0.0.1", 0, True, 7200)
    assert str(one.log_dir) == "output/msrun_log"
    two = parse(["script.py", "4"])
    assert (two.workers, two.local_workers) == (4, 4)
    six = parse(["script.py", "4", "9000", "logs", "False", "300"])
    assert (six.workers, six.port, six.join, six.time_out) == (4, 9000, False, 300)
    assert (str(six.log_dir), six.local_workers, six.address) == ("logs", 4, "127.0.0.1")
    nine = parse(["script.py", "16", "8", "10.0.0.1", "9000", "1", "logs", "True", "-1"])
    assert (nine.workers, nine.local_workers, nine.address, nine.port) == (16, 8, "10.0.0.1", 9000)
    assert (nine.node, list(nine.ranks), nine.join, nine.time_out) == (1, list(range(8, 16)), True, -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes 1, 2, 6 or 9 arguments, not 0"),
        (["script.py", "2", "9000"], "takes 1, 2, 6 or 9 arguments, not 3"),
        (["script.py", "two"], "WORKER_NUM must be a whole number from 1, not 'two'"),
        (["script.py", "0"], "WORKER_NUM must be a whole number from 1, not '0'"),
        (["script.py", "2", "70000", "logs", "True", "9"], "MASTER_PORT .* from 1 to 65535, not '70000'"),
        (["script.py", "2", "9000", "logs", "yes", "9"], "JOIN must be True or False, not 'yes'"),
        (["nothing.py", "2"], "no script nothing.py, neither in .* nor in"),
        (["script.py 'a", "2"], "No closing quotation"),
        (["", "2"], "COMMAND must begin with the name of a Python script"),
        (["script.py", "8", "3", "a", "9000", "0", "logs", "True", "9"], "LOCAL_WORKER 3 must divide WORKER_NUM 8"),
        (["script.py", "8", "4", "a", "9000", "2", "logs", "True", "9"], "NODE_RANK 2: .* 2 machine"),
    ],
)
def test_wrong_arguments_are_explained(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        parse(arguments)


def test_the_shell_script_shows_the_forms_and_fails(shell):
    status, out, err = finished(shell("a", "b", "c"))
    assert status == 2
    assert out == ""
    assert err.startswith("error: the launcher takes 1, 2, 6 or 9 arguments, not 3\nusage: ")
    assert err.count("msrun_launcher.sh") == 4


def test_a_script_of_the_checkout_runs_from_anywhere(shell):
    status, out, err = finished(shell("run_mindformer.py --help", 1))
    assert status == 0, err
    assert "--train_dataset_dir" in out


def test_quotes_are_preserved(shell):
    command = """script.py --predict_data "a b" 'it is "so"' $HOME"""
    for workers in (1, 2):
        status, out, err = finished(shell(command, workers))
        assert status == 0, err
        seen = json.loads(out.splitlines()[-1])
        assert seen["arguments"] == ["--predict_data", "a b", 'it is "so"', "$HOME"]
        assert seen["MS_WORKER_NUM"] == (None if workers == 1 else "2")


# ---- ports -----------------------------------------------------------------------------------------------------------


def test_a_chosen_port_that_is_taken_is_refused(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = parse(["script.py", "2", str(port), "logs", "True", "9"])
        with pytest.raises(UserError, match=f"MASTER_PORT {port} is taken"):
            choose_port(job)
    assert choose_port(job) == job


def test_jobs_that_start_at_once_take_ports_of_their_own(folder):
    """One that chose first has not opened its port yet when the other chooses."""
    ports = {choose_port(parse(["script.py", "2"])).port for _ in range(5)}
    assert len(ports) > 1 and 0 not in ports


def test_the_scheduler_must_be_on_the_first_machine(folder):
    with pytest.raises(UserError, match=r"192\.0\.2\.1 is not an address of this machine"):
        choose_port(parse(["script.py", "2", "1", "192.0.2.1", "9000", "0", "logs", "True", "9"]))
    second = parse(["script.py", "2", "1", "192.0.2.1", "9000", "1", "logs", "True", "9"])
    assert choose_port(second) == second


# ---- processes -------------------------------------------------------------------------------------------------------


def test_environment_of_the_processes_and_console_output(shell, folder):
    status, out, err = finished(shell("script.py", 3, _free_port(), "logs", "True", 77))
    assert (status, err) == (0, "")
    records = [lines_of(folder / "logs" / f"worker_{rank}.log")[0] for rank in range(3)]
    assert [record["rank"] for record in records] == [0, 1, 2]
    assert [record["DEVICE_ID"] for record in records] == ["0", "1", "2"]
    assert [record["MS_NODE_ID"] for record in records] == ["0", "1", "2"]
    for name, value in {
        "MS_WORKER_NUM": "3",
        "RANK_SIZE": "3",
        "MS_ROLE": "MS_WORKER",
        "MS_TOPO_TIMEOUT": "77",
    }.items():
        assert {record[name] for record in records} == {value}
    assert [json.loads(line)["rank"] for line in out.splitlines() if line.startswith("{")] == [0]


def test_a_machine_of_several_runs_its_own_ranks(shell, folder):
    """The second machine: no scheduler, and rank 0 is elsewhere."""
    status, out, _ = finished(shell("script.py", 4, 2, "127.0.0.1", 9999, 1, "logs", "True", 60))
    assert status == 0
    assert sorted(path.name for path in (folder / "logs").iterdir()) == ["worker_2.log", "worker_3.log"]
    assert [lines_of(folder / "logs" / f"worker_{rank}.log")[0]["DEVICE_ID"] for rank in (2, 3)] == ["0", "1"]
    assert "2 of 4 processes" in out
    assert "{" not in out


def test_the_rank_that_fails_is_shown_and_the_others_are_ended(shell, folder):
    began = time.monotonic()
    status, out, err = finished(shell("script.py fail=1 sleep=100", 3))
    assert status == 1
    assert time.monotonic() - began < 30
    assert "error: worker_1 ended with exit status 1, and so the job. Its log: output/msrun_log/worker_1.log" in err
    assert "  | ValueError: the real reason" in err
    assert "  | IndexError: pop from empty list" in err
    assert "Traceback" not in out, "rank 0 did not fail"
    assert pids_running(folder) == []


def test_an_error_that_all_have_is_shown_once(shell):
    status, out, err = finished(shell("script.py all=wrong", 2))
    assert status == 2
    assert (out + err).count("error: wrong") == 1
    assert re.search(
        r"^error: worker_[01] ended with exit status 2 \(worker_[01] with the same error\)", err, re.MULTILINE
    )


def test_a_lost_machine_is_reported(shell):
    process = shell("script.py all=wait+receiving+[1,2]+failed", 4, 2, "127.0.0.1", 9999, 1, "logs", "True", 60)
    status, _, err = finished(process)
    assert status == 1
    assert err.startswith("error: a process on another machine has ended, and so the job; the launcher there tells why")


@pytest.mark.parametrize("status", [0, 3])
def test_the_scheduler_serves_other_machines_as_long_as_they_need_it(tmp_path, monkeypatch, capsys, status):
    monkeypatch.setattr(launcher, "_OTHER_MACHINES_SECONDS", 0.1)
    popen = subprocess.Popen([sys.executable, "-c", f"import sys, time; time.sleep(1); sys.exit({status})"])
    scheduler = launcher.Process("scheduler", tmp_path / "scheduler.log", popen)
    assert launcher._serve_other_machines(scheduler) == ([scheduler] if status else [])
    assert scheduler.status == status
    assert "this machine is done; waiting for the others" in capsys.readouterr().out


def _started(shell, folder, *arguments):
    """A launcher of two sleeping processes: (it, the process of rank 1), when both have begun."""
    process = shell(*arguments)
    logs = [folder / "output" / "msrun_log" / f"worker_{rank}.log" for rank in range(2)]
    end = time.monotonic() + 30
    while not all(log.exists() and lines_of(log) for log in logs):
        assert time.monotonic() < end, process.communicate(timeout=1)
        time.sleep(0.05)
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in pids_running(folder)}
    [of_rank_1] = [pid for pid, words in environments.items() if b"MS_NODE_ID=1" in words]
    return process, of_rank_1


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes by /proc")
def test_a_killed_worker_ends_the_job_with_its_reason(shell, folder):
    process, worker = _started(shell, folder, "script.py sleep=100", 2)
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    status, _, err = finished(process)
    assert time.monotonic() - began < 30
    assert status == 128 + signal.SIGKILL
    assert "error: worker_1 was killed by SIGKILL" in err
    assert pids_running(folder) == []


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(shell, folder, number):
    process, _ = _started(shell, folder, "script.py sleep=100", 2)
    process.send_signal(number)
    status, _, err = finished(process)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 130
        assert err == f"{signal.Signals(number).name}: ending all processes\n"
    end = time.monotonic() + 10
    while pids_running(folder) and time.monotonic() < end:
        time.sleep(0.05)
    assert pids_running(folder) == []


def test_join_false_returns_and_the_job_goes_on(shell, folder):
    status, out, err = finished(
        shell("script.py 'a b' fail=1 sleep=100", 2, _free_port(), "logs", "False", 60), timeout=20
    )
    assert status == 0, err
    assert re.search(r"tail -f logs/launcher\.log\. To end it: kill \d+", out)
    end = time.monotonic() + 30
    while "and so the job" not in (folder / "logs" / "launcher.log").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "ValueError: the real reason" in (folder / "logs" / "launcher.log").read_text()
    assert lines_of(folder / "logs" / "worker_0.log")[0]["arguments"] == ["a b", "fail=1", "sleep=100"]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- what a log says about a failure ---------------------------------------------------------------------------------

TRACEBACK = """\
step 1
Traceback (most recent call last):
  File "x.py", line 3, in <module>
    init_cluster()
RuntimeError: The total number of timed out node is 1. Timed out node list is: {1}

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/cluster/topology/meta_server_node.cc:554 UpdateTopoState

[INFO] DISTRIBUTED(1,7f,python):2026-11-21 Start
"""


@pytest.mark.parametrize(
    ("text", "error", "consequence"),
    [
        (TRACEBACK, TRACEBACK.splitlines()[1:5], True),
        ("step 1\nerror: no file x\nlook there\n[ERROR] CORE(1,2) y\n", ["error: no file x", "look there"], False),
        ("step 1\nstep 2\n", [], False),
        ("[ERROR] KERNEL(1,2) Ring ReduceScatter wait receiving [1,10] failed.\n", [], True),
        ("step 1\ninterrupted; no file was left half written\n", [], True),
    ],
)
def test_errors_are_distinguished_from_their_consequences(tmp_path, text, error, consequence):
    (tmp_path / "log").write_text(text)
    assert errors_in(tmp_path / "log") == error
    assert is_consequence(tmp_path / "log") == consequence
