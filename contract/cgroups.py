"""The control groups of a process, which limit its CPU time and its memory. `cgroups(7)` describes the files.

A limit may be set on the process's own cgroup or on any cgroup above it. systemd, Slurm and Kubernetes nest them, and
the tightest limit applies.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

ESCAPED = re.compile(r"\\([0-7]{3})")  # For example, mountinfo escapes a space as \040.


def cgroup_folders(proc: Path, controller: Literal["cpu", "memory"]) -> list[Path]:
    """Return the folders of the cgroups that may limit a process, in all mounted hierarchies, each before its parent.

    The list is empty if the system is not Linux, or if /proc is hidden.

    Args:
        proc: The process's folder in /proc.
        controller: What is limited.
    """
    try:
        return list(_mounted_folders(proc, controller))
    except (OSError, ValueError):
        return []


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


def unescaped(path: str) -> str:
    """Return a path from mountinfo with its octal escapes decoded."""
    return ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)


def _mounted_folders(proc: Path, controller: str) -> Iterator[Path]:
    paths = {}  # Controller -> cgroup. Version 2 has one hierarchy, and its controller is "".
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in (proc / "mountinfo").read_text().splitlines():
        mount, _, file_system = line.partition(" - ")
        root, mounted_at = (unescaped(part) for part in mount.split()[3:5])
        kind, *_, options = file_system.split()
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            below = path_below(paths.get(controller if kind == "cgroup" else "", "/"), root)
            yield from (Path(mounted_at) / folder for folder in (below, *below.parents))
