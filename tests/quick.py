"""`--quick`: the tests that start no program. Which do is read from their code and that of their fixtures."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

# Functions of mindgpt that start programs.
STARTING = {"mindgpt.planning.dry_run.dry_run", "mindgpt.runtime.simulated_ascend.run_simulated"}
PROGRAMS = (sys.executable, "python", "bash", "sh", "unshare")


def starts_programs(item: pytest.Item) -> bool:
    """Whether a test, a fixture of it, or a function of the tests that they call starts a program."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(definition.func for definitions in fixtures for definition in definitions)]
    return any(_starts(function, set()) for function in functions)


def _starts(value: object, seen: set[int]) -> bool:
    value = inspect.unwrap(value) if callable(value) else value
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, ModuleType):
        return value is subprocess or value.__name__ == "tests.programs"
    if isinstance(value, type) and value.__module__.startswith("tests."):
        return any(_starts(method, seen) for method in vars(value).values())
    if not isinstance(value, FunctionType):
        return False
    if f"{value.__module__}.{value.__qualname__}" in STARTING or value.__module__ == "tests.programs":
        return True
    if not value.__module__.startswith("tests."):
        return False
    return any(_starts(value.__globals__.get(name), seen) for name in set(_names(value.__code__)))


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function uses, also in the functions it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def refuse_programs() -> None:
    """From now on a test fails that starts a program all the same. Compilers may be started: kernels need them."""
    start = subprocess.Popen.__init__

    def refuse(self, args, *more, **keywords):
        program = args if isinstance(args, str) else str(args[0])
        assert Path(program).name not in PROGRAMS and program != sys.executable, "a quick test starts a program"
        start(self, args, *more, **keywords)

    subprocess.Popen.__init__ = refuse
