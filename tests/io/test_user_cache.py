"""The user's cache and work folders, also without a home folder or with a read-only cache."""

import os
import subprocess
import sys
import tempfile

import pytest

from mindgpt.io import user_cache
from mindgpt.io.processes import MACHINE

FIND = (
    "from mindgpt.io.user_cache import *; "
    "print(user_cache(), why_not_cached(), work_folder(), work_folder().is_dir(), sep='|')"
)


def find(repo, **environment):
    """What another process finds: (cache, why nothing is kept, its work folder), in an environment of these alone."""
    command = [sys.executable, "-c", FIND]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(repo), "PATH": os.environ["PATH"]} | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cache, reason, work, is_there = done.stdout.strip().split("|")
    assert is_there == "True"
    assert not os.path.exists(work), "the process is over, and so is its work folder"
    return cache, reason, work


def test_cache_location(repo, tmp_path):
    home = {"HOME": str(tmp_path)}
    assert find(repo, **home)[:2] == (f"{tmp_path}/.cache/mindgpt", "None")
    assert find(repo, **home, XDG_CACHE_HOME=f"{tmp_path}/xdg")[0] == f"{tmp_path}/xdg/mindgpt"
    cache, reason, work = find(repo, **home, MINDGPT_CACHE="~/own")
    assert (cache, reason) == (f"{tmp_path}/own", "None")
    assert work.startswith(f"{tmp_path}/own/work/{MACHINE}-")


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    """What a process works out once is forgotten, before and after the test; temporary files go to `tmp_path`."""
    monkeypatch.delenv("MINDGPT_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cached = (user_cache.work_folder, user_cache._temporary_folder)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_user_without_home_gets_a_temporary_folder(tmp_path, monkeypatch, new_process):
    """A random uid in a container: neither HOME nor an entry in the list of users."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    cache = user_cache.user_cache()
    assert cache.parent == tmp_path and cache.name.startswith("mindgpt-") and cache.is_dir()
    assert user_cache.why_not_cached() == "this user has no home folder"
    assert user_cache.work_folder().parent == cache / "work"


def test_an_unwritable_cache_is_reported(tmp_path, monkeypatch, new_process):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINDGPT_CACHE", str(tmp_path / "file" / "cache"))
    assert user_cache.why_not_cached() == f"{tmp_path}/file/cache cannot be written"
    assert user_cache.work_folder().parent == tmp_path  # of temporary files


def test_work_folders_of_killed_processes_are_removed(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    names = [f"{MACHINE}-{gone.strip()}-x", f"{MACHINE}-{os.getpid()}-x", f"00000000-{gone.strip()}-x", "other"]
    for name in names:
        (tmp_path / name / "akg_kernel_meta").mkdir(parents=True)
    user_cache._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
