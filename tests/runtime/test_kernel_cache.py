"""The cache of fused kernels: atomic, and never an obstacle to a run."""

import os
import subprocess
import sys

import pytest

from mindgpt.runtime import kernel_cache
from mindgpt.runtime.kernel_cache import FOLDER, cache_folder, fetch_kernels, keep_kernels

SUFFIXES = (".o", ".so", ".info", ".json")
PROGRAM = """
import sys
import numpy as np, mindspore as ms
from mindgpt.config.execution_sections import ContextSection
from mindgpt.runtime.device import prepare_device
prepare_device(ContextSection(device_target="CPU"), sys.argv[1])
class Fused(ms.nn.Cell):
    def construct(self, x):
        return (x * 2.0 + 1.0) * x
x = np.arange(6, dtype=np.float32)
np.testing.assert_array_equal(Fused()(ms.Tensor(x)).asnumpy(), (x * 2 + 1) * x)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def kernel(folder, name, suffixes=SUFFIXES):
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        (folder / f"{name}{suffix}").write_text(name + suffix)


def test_kernels_are_cached_byte_for_byte(tmp_path, cache):
    kernel(tmp_path / "one" / FOLDER, "a_1")
    assert keep_kernels(tmp_path / "one") == 1
    assert keep_kernels(tmp_path / "one") == 0
    assert fetch_kernels(tmp_path / "two") == 1
    there = sorted((tmp_path / "two" / FOLDER).iterdir())
    assert [path.read_text() for path in there] == sorted("a_1" + suffix for suffix in SUFFIXES)


@pytest.mark.parametrize("links", [True, False])
def test_kernels_are_hard_linked_if_possible(tmp_path, cache, monkeypatch, links):
    def refused(source, target):
        raise OSError("Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    kernel(tmp_path / "one" / FOLDER, "a_1")
    keep_kernels(tmp_path / "one")
    kernel(tmp_path / "two" / FOLDER, "a_1", SUFFIXES[:1])  # of a run that was killed: replaced
    assert fetch_kernels(tmp_path / "two") == 1
    for suffix in SUFFIXES:
        one, kept, two = (
            folder / f"a_1{suffix}" for folder in (tmp_path / "one" / FOLDER, cache, tmp_path / "two" / FOLDER)
        )
        assert kept.samefile(one) is kept.samefile(two) is links
        assert kept.read_text() == two.read_text() == f"a_1{suffix}"
    assert len(list(cache.iterdir())) == len(SUFFIXES)


def test_least_recently_used_kernels_are_dropped(tmp_path, cache, monkeypatch):
    for number, name in enumerate(["old_but_used", "never_used", "new"]):
        kernel(cache, name)
        for suffix in SUFFIXES:
            used = 100 if name == "old_but_used" else number
            os.utime(cache / f"{name}{suffix}", (used, number))
    monkeypatch.setattr(kernel_cache, "_MAX_KERNELS", 2)
    keep_kernels(tmp_path)
    assert {path.stem for path in cache.iterdir()} == {"old_but_used", "new"}


def test_an_incomplete_kernel_is_not_cached(tmp_path, cache):
    kernel(tmp_path / FOLDER, "half", SUFFIXES[:-1])
    assert keep_kernels(tmp_path) == 0
    assert not cache.exists()


def test_an_unwritable_cache_is_not_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path / "file"))
    kernel(tmp_path / FOLDER, "a_1")
    assert keep_kernels(tmp_path) == 0
    assert fetch_kernels(tmp_path) == 0


def test_the_second_run_compiles_nothing(tmp_path, cache, repo):
    environment = os.environ | {"PYTHONPATH": str(repo)}
    environment.pop("MS_COMPILER_CACHE_PATH", None)
    (tmp_path / "program.py").write_text(PROGRAM)
    for output in ("one", "two"):
        command = [sys.executable, str(tmp_path / "program.py"), output]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
        kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
        if output == "one":
            first = kept
    assert first and kept == first
    # The log that the kernel generator leaves when it works is there after the first run only, and no kernel is.
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/compile/*")) == [
        "one/compile/dsa_transfrom.log"
    ]
    assert not list((cache.parent / "work").iterdir())
