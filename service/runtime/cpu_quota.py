"""The number of CPUs that this process may use: the container's quota, not the number of cores of the host."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Return the number of usable CPUs: the smaller of the process's CPU affinity and its cgroup's quota.

    The quota is rounded down. The result is at least 1.
    """
    quota = cgroup_quota(cgroup)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def cgroup_quota(cgroup: Path) -> float | None:
    """Return a cgroup's quota in CPUs, or None if there is no limit."""
    try:
        if (cgroup / "cpu.max").exists():  # cgroup version 2
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # The file does not exist, or the quota is "max".
        return None
