"""A program's console: what it cannot encode is escaped, a reader that leaves stops nothing, errors are sentences."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, sys
from mindgpt.config.console import note_on_broken_pipe
from mindgpt.config.errors import UserError, run_program
if "EARLY" in os.environ:
    import mindgpt.config.program_loading
def main():
    %s
run_program(main)
"""


# Sends the process Ctrl-C when it begins to load what nearly every module of ours needs.
INTERRUPTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("pydantic", "numpy", "yaml", "tqdm", "mindgpt.data.split"):
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))  # a moment in which Python notices
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def program(repo, tmp_path):
    """Runs a program whose `main` does what the given line says, from a scratch folder."""

    def run(line, *arguments, env=None, before="", **streams):
        (tmp_path / "program.py").write_text(PROGRAM % line, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(repo), "PYTHONUNBUFFERED": "", **(env or {})}
        command = f'{before} exec "$0" program.py "$@"'
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        return subprocess.run(
            ["bash", "-c", command, sys.executable, *arguments], cwd=tmp_path, env=environment, **streams
        )

    return run


@pytest.fixture
def nobody_reads():
    """The writing end of a pipe whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("worker", [False, True])
@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1", "utf-8"])
def test_what_a_console_cannot_encode_is_escaped(program, encoding, worker):
    env = {"PYTHONIOENCODING": encoding} | ({"MS_ROLE": "MS_WORKER"} if worker else {})
    done = program("for stream in sys.stdout, sys.stderr: print('é第😀\\ufffd\\udcff', file=stream)", env=env)
    expected = "é第😀\ufffd\udcff".encode(encoding, "backslashreplace") + b"\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, expected)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_leaves_stops_nothing(program, nobody_reads, tmp_path, name, unbuffered):
    line = f"[print('x' * 10000, file=sys.{name}) for _ in range(3)]; open('done', 'w').close()"
    done = program(line, env={"PYTHONUNBUFFERED": unbuffered}, **{name: nobody_reads})
    assert (done.returncode, done.stdout or b"", done.stderr or b"") == (0, b"", b"")
    assert (tmp_path / "done").exists()


def test_long_work_says_that_it_goes_on(program, nobody_reads):
    done = program("with note_on_broken_pipe('goes on'): [print('x', flush=True) for _ in 'abc']", stdout=nobody_reads)
    assert (done.returncode, done.stderr) == (0, b"goes on\n")


def test_a_terminal_that_is_closed_stops_nothing(program, tmp_path):
    ours, theirs = pty.openpty()
    os.close(ours)
    done = program("print('x', flush=True); open('done', 'w').close()", stdout=theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


def test_a_console_that_was_closed_before_takes_no_file_in_its_place(program, tmp_path):
    line = "file = open('result', 'w'); print('lost', flush=True); file.write('kept'); file.close()"
    done = program(line, before="exec <&- >&- 2>&-;", stdout=None, stderr=None)
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "kept"


@pytest.mark.parametrize("line", ["print('x')", "print('x'); sys.exit(0)", "print('x', flush=True)"])
def test_a_console_on_a_full_disk_is_an_error_of_one_sentence(program, line):
    with open("/dev/full", "w") as full:
        done = program(line, stdout=full)
    assert (done.returncode, done.stderr) == (2, b"error: <stdout>: No space left on device\n")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("raise UserError('no such thing: é\\udcff')", 2, "error: no such thing: é\\udcff"),
        ("open('absent/x')", 2, "error: absent/x: No such file or directory"),
        ("raise KeyboardInterrupt", 130, "interrupted; no file was left half written"),
        ("sys.exit(3)", 3, ""),
        (
            "raise OSError(28, 'No space left on device')",
            2,
            "error: a file could not be written: No space left on device. What was written before is whole.",
        ),
        (
            "open('x', 'w', encoding='utf-8').write('caf\\udce9')",
            2,
            "error: 'caf\\udce9' is no text: it holds a byte that is not UTF-8, or half of a character. Rename the "
            "file, or correct the text.",
        ),
    ],
)
def test_how_programs_end(program, line, status, message):
    done = program(line, env={"PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr.decode().rstrip("\n")) == (status, message)


def test_an_error_of_ours_keeps_its_traceback(program):
    done = program("'é'.encode('ascii')")
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_bytes_that_are_no_text_are_refused_as_arguments(program):
    done = program("open('made', 'w')", "a", b"caf\xe9", env={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: command line: argument 2 ('caf\\udce9') is not text in utf-8. ")


PROGRAMS = [
    "run_mindformer.py",
    "convert_weight.py",
    "mindgpt/models/gpt2/convert_weight.py",
    "benchmarks/benchmark.py",
]
PROGRAMS = [*(REPO / name for name in PROGRAMS), *sorted((REPO / "tools").rglob("*.py"))]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.relative_to(REPO).as_posix())
def test_an_interrupt_while_a_program_loads(tmp_path, program):
    """It arrives when the first module of ours that takes time is imported."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, program, "--config", "absent.yaml", "--what", "train"]
    # A shell starts what is in its background with Ctrl-C ignored, the whole test run for one; a person's is not.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **default)
    assert (done.returncode, done.stderr) == (130, "interrupted; no file was left half written\n")


@pytest.mark.parametrize(
    "program", [file for file in PROGRAMS if file.name != "split_text.py"], ids=lambda file: file.name
)
def test_a_python_without_the_packages_is_named(tmp_path, program):
    """A bare Python, as when the virtual environment is not active."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", program, "--config", "absent.yaml", "--what", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {sys.executable} has no package ")
    assert done.stderr.count("\n") == 1


def test_the_handler_of_a_program_that_has_loaded(program):
    done = program("signal.raise_signal(signal.SIGINT)", env={"EARLY": "1"})
    assert (done.returncode, done.stderr) == (130, b"interrupted; no file was left half written\n")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.relative_to(REPO).as_posix())
def test_help_from_another_folder_without_mindspore(tmp_path, program):
    for name in ("mindspore", "torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise ImportError(__name__)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, program, "-h"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program.name} ")
