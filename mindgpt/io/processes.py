"""The CPU cores that this process may use, and whether another process is running."""

import os
import platform
import zlib
from collections.abc import Iterator
from pathlib import Path

MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""A short name of this machine, to tell its processes from those of others on a shared file system."""

_CGROUPS = Path("/sys/fs/cgroup")
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")


def process_runs(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def available_cores() -> int:
    """Cores that this process may use, by its affinity and the CPU quota of its container (`docker run --cpus=2`).

    With more threads than the quota allows, spinning threads use it up, and all are throttled.
    """
    quotas = [round(quota) for folder in _cgroup_folders() if (quota := _quota(folder)) is not None]
    return max(1, min([_affinity(), *quotas]))


def quota_binds() -> bool:
    """Whether the quota allows fewer cores than the affinity, which is what most libraries use."""
    return available_cores() < _affinity()


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_folders() -> Iterator[Path]:
    """Folders that may hold the limits of this process: the root, which in a container is the container's, and the
    process's control groups with their parents (version 2, and the controller `cpu` of version 1)."""
    yield from (_CGROUPS, _CGROUPS / "cpu", _CGROUPS / "cpu,cpuacct")
    try:
        lines = _GROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "0::/user.slice/x.scope", "4:cpu,cpuacct:/docker/1234"
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            yield _CGROUPS / controllers / part


def _quota(folder: Path) -> float | None:
    """Cores that a control group allows; None: no limit."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
