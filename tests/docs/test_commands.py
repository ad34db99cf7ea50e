"""Every command of README and docs is run, in the order of its page, on toy files of the names that the page uses."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindgpt.config.command_line import config_from_command_line
from tests import programs
from tests.docs import toy_files
from tests.docs.pages import BOTH, PAGES, REPO, commands

pytest.importorskip("torch")

# The start of a command that is not run here -> why, and what runs it instead. Program, flags and files are checked.
NOT_RUN = {
    "bash scripts/test.sh": "runs the tests: .ci/run",
    "bash scripts/quickstart.sh": "minutes: tests/test_scripts.py",
    "bash examples/": "minutes: tests/test_scripts.py",
    "bash scripts/examples/gpt2/sst2.sh": "minutes: tests/test_scripts.py",
    "bash scripts/examples/gpt2/run_gpt2_predict.sh": "starts programs: tests/tasks/test_predict_command.py",
    "python tools/dry_run.py": "compiles for up to 1024 cards, minutes: tests/planning/test_dry_run.py",
    "python tools/plan.py": "compiles for 8 cards, minutes: tests/planning/test_plan.py",
    "python tools/transform_ckpt.py": "shards of 8 cards of Ascend: tests/tasks/test_transform_checkpoint.py",
    "python benchmarks/benchmark.py": "minutes: tests/benchmarks",
    "mindgpt train --model gpt2_quickstart": "minutes: tests/tasks/test_command.py trains without a YAML file",
    "mindgpt chat": "asks for prompts: tests/tasks/test_command.py",
    "mindgpt launch": "starts 8 processes: tests/cli/test_entry.py",
    "mindgpt completion": "writes into the home folder: tests/cli/test_entry.py",
    "mindgpt serve": "does not end: tests/serving",
    "curl": "needs the server: tests/serving/test_completions.py",
    "pip install": "installs packages: .ci/run does",
    "python -m venv": "makes an environment: .ci/run does",
    "source .venv/bin/activate": "changes the shell",
    "pre-commit install": "changes the clone",
}
WRITES = ("--output_file", "--output_dir", "--output_path", "--mindspore_path", "--torch_path", "--dst_ckpt_dir",
          "--peft_dir", "--tencentpretrain_path", "--output")  # fmt: skip


def reason(command):
    return next((why for start, why in NOT_RUN.items() if " ".join(command.words).startswith(start)), None)


ENGLISH = [page for page in PAGES if "zh" not in page.parts and page.name != "README_zh.md"]
RUN = {page.stem: run for page in ENGLISH if (run := [c for c in commands(page) if reason(c) is None])}
CHECKED = sorted({c.words for page in PAGES for c in commands(page) if reason(c) is not None})


def test_every_page_with_commands_has_toy_files():
    assert set(RUN) == set(toy_files.MAKERS)


def test_every_reason_is_needed():
    assert [start for start in NOT_RUN if not any(" ".join(words).startswith(start) for words in CHECKED)] == []


@pytest.mark.parametrize("english, chinese", BOTH, ids=lambda page: page.stem)
def test_commands_are_the_same_in_both_languages(english, chinese):
    """So those of the Chinese pages are run, too. Prompts are in the language of the page."""

    def without_prompts(page):
        return [[word for word in c.words if word.isascii() and " " not in word] for c in commands(page)]

    assert without_prompts(english) == without_prompts(chinese)


@pytest.mark.long
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, tmp_path):
    toy_files.MAKERS[page](tmp_path)
    given = {path.name for path in tmp_path.iterdir()}
    for command in RUN[page]:
        run(command, tmp_path, given)


def run(command, folder, given):
    if command.words[0] in ("sed", "echo"):
        subprocess.run(["bash", "-c", command.text], cwd=folder, check=True)
        return
    words = inner_command(command)
    start = ["-m", "mindgpt"] if words[0] == "mindgpt" else [REPO / words[0]]
    arguments = make_room(words[0], words[1:], folder, given)
    toy_files.write_configs(folder, arguments)
    environment = programs.user_environment() | {"MINDGPT_CACHE": os.environ["MINDGPT_CACHE"], "PYTHONPATH": str(REPO)}
    done = programs.run([sys.executable, *start, *arguments], folder, environment)
    assert done.returncode == 0, f"{command.page}: {command.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr, done.stderr


def inner_command(command):
    """The words from the program on; of a launcher's command those of one of its processes, here the only one."""
    words = list(command.words)
    if words[:2] == ["bash", "scripts/msrun_launcher.sh"]:
        assert re.fullmatch(r"\d+", words[3]), "the launcher's second argument is a number"
        return shlex.split(words[2])
    assert words[0] in ("python", "mindgpt")
    if "$'" in command.text:  # bash's own quotes
        quoted = subprocess.run(["bash", "-c", f"printf '%s\\0' {command.text}"], capture_output=True, check=True)
        words = quoted.stdout.decode().split("\0")[:-1]
    return words[1:] if words[0] == "python" else words


def make_room(program, arguments, folder, given):
    """Commands of a page are alternatives as often as steps: what an earlier one has written is removed, and what the
    page takes for granted is kept, by writing elsewhere."""
    arguments = list(arguments)
    reverse = "--reversed" in arguments
    reads = {("convert_weight", True): "--mindspore_path", ("convert_weight", False): "--torch_path"}
    reads |= {("convert_lora", True): "--tencentpretrain_path", ("convert_lora", False): "--mindspore_path"}
    if program == "run_mindformer.py":
        return arguments
    for at, (flag, value) in enumerate(zip(arguments, arguments[1:], strict=False)):
        if flag not in WRITES or flag == reads.get((Path(program).stem, reverse)):
            continue
        name = Path(value).name
        if name in given and Path(value).parts[0] == name:
            arguments[at + 1] = f"new/{name}"
            (folder / "new").mkdir(exist_ok=True)
        written = folder / arguments[at + 1]
        for old in (written, written.with_name(f"{written.name}.db")):  # a MindRecord has an index beside it
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    return arguments


@functools.cache
def help_of(program):
    return programs.run([sys.executable, REPO / program, "--help"], REPO, timeout=60).stdout


@pytest.mark.parametrize("words", CHECKED, ids=" ".join)
def test_a_command_that_is_not_run_is_understood(words, monkeypatch):
    """Its program, flags and files of the checkout exist, and so do the extras that are installed."""
    monkeypatch.chdir(REPO)
    for word in words:
        if word.startswith(("scripts/", "tools/", "configs/", "examples/", "benchmarks/", "tests/")):
            assert Path(word.rstrip("/")).exists(), word
    if words[0] == "bash":
        subprocess.run(["bash", "-n", words[1]], check=True)
    elif words[:2] == ("pip", "install"):
        (extra,) = re.findall(r"\[(.*)\]", words[-1]) or [None]
        assert extra is None or re.search(rf"^{extra} = \[", Path("pyproject.toml").read_text(), re.MULTILINE)
    elif words[0] == "python" and words[1] != "-m":
        help_text = help_of(words[1])
        for flag in (word for word in words if word.startswith("--")):
            assert re.search(rf"{re.escape(flag)}\b", help_text), f"{words[1]} has no {flag}"
        if words[1] == "tools/dry_run.py":
            at = words.index("--rank_size")
            config_from_command_line([*words[2:at], *words[at + 2 :]])
