"""How many cores a process may use: affinity and container quotas, in both versions of control groups."""

import os

import pytest

from mindgpt.io import processes


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """64 cores and no quota; `machine({file: content})` sets limits, by their path below /sys/fs/cgroup."""
    monkeypatch.setattr(processes, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))

    def limit(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return limit


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),  # docker run --cpus=2, seen from within
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "what is this\n"}, 64),
        ({"cpu.max": "100000 0\n"}, 64),
    ],
)
def test_container_quota_limits_cores(machine, files, cores):
    machine(files)
    assert processes.available_cores() == cores
    assert processes.quota_binds() == (cores < 64)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/user.slice/run-5.scope", "user.slice/cpu.max"),
        ("4:cpu,cpuacct:/docker/12", "cpu,cpuacct/docker/12/cpu.max"),
    ],
)
def test_parent_cgroups_limit_cores(machine, monkeypatch, tmp_path, line, file):
    groups = tmp_path / "groups"
    groups.write_text(f"3:pids:/other\n{line}\n")
    monkeypatch.setattr(processes, "_GROUPS_OF_PROCESS", groups)
    machine({file: "500000 100000"})
    assert processes.available_cores() == 5
