"""The library of C++ kernels: built once and kept, and where there can be none."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which(os.environ.get("CXX") or "g++") is None,
    reason="the kernels need Linux and a C++ compiler",
)


def run_python(script, **variables):
    """Run a script in a process of its own: the library is chosen once in each."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"GLOG_v": "3"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


LIBRARY = """
    import mindspore as ms
    ms.set_device("CPU")
    from mindgpt.models.cpu import kernels
    print(kernels.library())
    print(kernels.why_no_library())
"""


def test_the_library_is_kept_and_built_once(tmp_path):
    first = run_python(LIBRARY, MINDGPT_CACHE=str(tmp_path))
    (built,) = tmp_path.glob("*")
    assert first.stdout.splitlines() == [str(built), "None"], first.stderr
    made = built.stat().st_mtime_ns
    assert run_python(LIBRARY, MINDGPT_CACHE=str(tmp_path)).stdout == first.stdout
    assert built.stat().st_mtime_ns == made


def test_where_there_can_be_no_library(tmp_path):
    """No compiler, one that fails, one that is no program, a cache that cannot be written, switched off: MindSpore's
    operators do the work."""
    fails, no_program, no_folder = tmp_path / "fails", tmp_path / "other", tmp_path / "file"
    fails.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "In file x:\nerror: no such option" >&2; exit 1; }\n')
    no_program.write_bytes(b"\x7fELF of another system")
    for file in (fails, no_program):
        file.chmod(0o755)
    no_folder.touch()
    cache = {"MINDGPT_CACHE": str(tmp_path / "cache")}
    for variables, reason in (
        (cache | {"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler)"),
        (cache | {"CXX": f"env {fails}"}, "kernels.cpp (error: no such option)"),
        (cache | {"CXX": str(no_program)}, f"cannot run {no_program}"),
        ({"MINDGPT_CACHE": str(no_folder)}, "cannot write or load"),
        (cache | {"MINDGPT_CPU_KERNELS": "0"}, "MINDGPT_CPU_KERNELS is 0"),
    ):
        result = run_python(LIBRARY, **variables)
        library, why = result.stdout.splitlines()
        assert library == "None" and reason in why, (variables, result.stderr)
    assert list(tmp_path.glob("cache/*")) == []
