"""The number of CPUs that this process may use: its CPU affinity and the quotas of its control groups."""

import os
from pathlib import Path

from contract.cgroups import cgroup_folders

PROC = Path("/proc/self")
# The libraries for training and serving read these variables when they are imported or first used.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


def available_cpus(proc: Path = PROC) -> int:
    """Return the number of usable CPUs: the smaller of the CPU affinity and the tightest quota, rounded down.

    The result is at least 1.

    Args:
        proc: The process's folder in /proc.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(proc)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def limit_threads(proc: Path = PROC) -> None:
    """Make libraries that are imported later start at most `available_cpus` threads.

    Variables that are already set keep their values. Without a quota, nothing is set, because the libraries follow the
    CPU affinity by themselves.
    """
    if cpu_quota(proc) is not None:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, str(available_cpus(proc)))


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return the tightest quota of the process's cgroup and all cgroups above it, in CPUs, or None without a quota."""
    folders = cgroup_folders(proc, "cpu")
    quotas = [quota for folder in folders if (quota := folder_quota(folder)) is not None]
    return min(quotas, default=None)


def folder_quota(folder: Path) -> float | None:
    """Return the quota of one cgroup in CPUs, or None if it has no quota."""
    try:
        if (folder / "cpu.max").exists():  # Version 2.
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # The file does not exist, or the quota is "max".
        return None
