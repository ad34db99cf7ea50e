"""The commands in README and docs are commands that exist: their programs, flags and configs."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mindgpt.config.command_line import config_from_command_line

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


def commands():
    """Every line of a bash block that runs Python, with its page."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["python"]:
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words[1:4])}")


@functools.cache
def help_of(program):
    return subprocess.run([sys.executable, program, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words", list(commands()))
def test_a_documented_command_is_understood(words, monkeypatch):
    monkeypatch.chdir(REPO)
    program, arguments = words[0], words[1:]
    assert (REPO / program).is_file()
    if program == "run_mindformer.py":
        if arguments != ["-h"]:
            config_from_command_line(arguments)
        return
    help_text = help_of(program)
    for word in arguments:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", help_text), f"{program} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page):
    """Paths of the checkout in backquotes."""
    for path in re.findall(
        r"`((?:tools|benchmarks|scripts|configs|tests|docs)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8")
    ):
        assert (REPO / path).exists(), path
