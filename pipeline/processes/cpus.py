"""Counts the processors that this process may use: the smaller of its CPU affinity and its container's CPU quota.

A container with a limit of 12 CPUs on a node with 192 sees all 192 in its affinity; only its control groups have the limit. A
group's quota limits all groups below it, so this reads every level up to the mount.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """A mounted control group hierarchy: the group at its mount point, the mount point, and whether it is version 2."""

    group: PurePosixPath
    point: PurePosixPath
    unified: bool


def usable_cpus(root: Path = Path("/")) -> int:
    """Returns the number of processors that this process may keep busy, at least 1; a quota of 1.5 counts as 2.

    Args:
        root: Folder that contains `/proc` and the control groups.
    """
    quota = cpu_quota(root)
    affinity = len(os.sched_getaffinity(0))
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Returns the number of processors that the control groups of this process allow; None without a limit.

    Reads `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1); see `cgroup-v2` and `sched-bwc` in the Linux kernel's
    documentation.

    Args:
        root: Folder that contains `/proc` and the control groups.
    """
    quotas = [quota for folder, unified in _groups(root) if (quota := _quota_of(folder, unified)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yields (folder, whether version 2) of this process's groups and of all visible groups above them."""
    of_process = {}
    for _, controllers, group in (line.split(":", 2) for line in _lines(root / "proc/self/cgroup") if line.count(":") > 1):
        if not controllers or "cpu" in controllers.split(","):
            of_process[not controllers] = PurePosixPath(group)
    for mount in _mounts(root):
        if mount.unified not in of_process:
            continue
        path = of_process[mount.unified]
        # Without its own namespace, a container sees the host's path here but only its own group in the mount.
        below = path.relative_to(mount.group) if path.is_relative_to(mount.group) and ".." not in path.parts else None
        point = root / mount.point.relative_to("/")
        for level in [below, *below.parents] if below is not None else [PurePosixPath()]:
            yield point / level, mount.unified


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        kind_fields = kind.split()
        if not kind_fields or kind_fields[0] not in ("cgroup", "cgroup2"):
            continue
        if kind_fields[0] == "cgroup" and "cpu" not in kind_fields[-1].split(","):
            continue
        group, point = (PurePosixPath(text.replace("\\040", " ")) for text in place.split()[3:5])
        yield _Mount(group, point, kind_fields[0] == "cgroup2")


def _quota_of(group: Path, unified: bool) -> float | None:
    if unified:
        numbers = " ".join(_lines(group / "cpu.max")).split()
    else:
        numbers = [line for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for line in _lines(group / name)]
    try:
        quota, period = map(int, numbers)
    except ValueError:  # `max` or no file: no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
