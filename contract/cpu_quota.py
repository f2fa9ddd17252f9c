"""The number of CPUs that this process may use: its CPU affinity and the quotas of its control groups.

A quota may be set on the process's own cgroup or on any cgroup above it. systemd, Slurm and Kubernetes nest them, and
the tightest quota applies. `cgroups(7)` describes the files.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")
# The libraries for training and serving read these variables when they are imported or first used.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
ESCAPED = re.compile(r"\\([0-7]{3})")  # For example, mountinfo escapes a space as \040.


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
    try:
        folders = list(cgroup_folders(proc))
    except (OSError, ValueError):  # Not Linux, or /proc is hidden.
        return None
    quotas = [quota for folder in folders if (quota := folder_quota(folder)) is not None]
    return min(quotas, default=None)


def cgroup_folders(proc: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups that may have a CPU quota for the process, in all mounted hierarchies."""
    paths = {}  # Controller -> cgroup. Version 2 has one hierarchy, and its controller is "".
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in (proc / "mountinfo").read_text().splitlines():
        mount, _, file_system = line.partition(" - ")
        root, mounted_at = (unescaped(part) for part in mount.split()[3:5])
        kind, *_, options = file_system.split()
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            below = path_below(paths.get("cpu" if kind == "cgroup" else "", "/"), root)
            yield from (Path(mounted_at) / folder for folder in (below, *below.parents))


def path_below(cgroup: str, root: str) -> PurePosixPath:
    """Return the path from the root of a mounted hierarchy to a cgroup.

    In a container, the root of the mounted hierarchy may be the container's own cgroup, so the cgroup's path may not
    exist below it. In this case, the result is the empty path, which stands for the mounted cgroup itself.
    """
    try:
        below = PurePosixPath(cgroup).relative_to(root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


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


def unescaped(path: str) -> str:
    """Return a path from mountinfo with its octal escapes decoded."""
    return ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)
