"""`--quick` leaves out the tests that start programs, and no others."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests import programs, quick


def helper():
    return [subprocess.run(["true"], check=True) for _ in range(1)]


def starts_directly():
    subprocess.Popen(["true"]).wait()


def starts_by_a_helper():
    def inner():
        helper()

    return inner


def starts_by_programs():
    programs.run_simulated(["x"], 0, 1, ".")


def computes(program="the word subprocess"):
    return sum(map(len, program))


@pytest.mark.parametrize(
    ("function", "fixture", "starts"),
    [
        (computes, computes, False),
        (starts_directly, computes, True),
        (starts_by_a_helper, computes, True),
        (starts_by_programs, computes, True),
        (computes, starts_by_a_helper, True),
    ],
)
def test_programs_are_found_in_tests_and_their_fixtures(function, fixture, starts):
    fixtures = SimpleNamespace(name2fixturedefs={"x": [SimpleNamespace(func=fixture)]})
    assert quick.starts_programs(SimpleNamespace(function=function, _fixtureinfo=fixtures)) is starts


def test_a_program_that_was_not_found_fails_the_test(monkeypatch):
    monkeypatch.setattr(subprocess.Popen, "__init__", subprocess.Popen.__init__)  # restored afterwards
    quick.refuse_programs()
    for command in ([sys.executable, "-c", ""], ["bash", "-c", "true"]):
        with pytest.raises(AssertionError, match="a quick test starts a program"):
            subprocess.run(command)
    assert subprocess.run(["true"]).returncode == 0  # such as a compiler
