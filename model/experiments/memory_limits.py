"""How much memory this process may use: the tightest limit of its cgroups, its resource limits and the machine."""

import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.cgroups import cgroup_folders

PROC = Path("/proc")


@dataclass(frozen=True)
class Limit:
    """A limit on the memory of this process.

    Attributes:
        name: What sets the limit.
        size: The resident memory that this process may reach, in bytes.
    """

    name: str
    size: int


def resident_memory(proc: Path = PROC) -> int:
    """Return the memory in use by this process in bytes."""
    return read_sizes(proc / "self" / "status").get("VmRSS", 0)


def tightest_limit(proc: Path = PROC) -> Limit | None:
    """Return the tightest limit, or None if none is known. `proc` is the folder of the proc file system."""
    status = read_sizes(proc / "self" / "status")
    resident = status.get("VmRSS", 0)
    limits = [*cgroup_limits(resident, proc)]
    if (available := read_sizes(proc / "meminfo").get("MemAvailable")) is not None:
        limits.append(Limit("the machine's available memory", available + resident))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        # For example, libraries count toward this limit without using memory.
        mapped_only = status.get("VmSize", 0) - resident
        limits.append(Limit("the limit on the address space (ulimit -v)", address_space - mapped_only))
    return min(limits, key=lambda limit: limit.size, default=None)


def cgroup_limits(resident: int, proc: Path) -> Iterator[Limit]:
    """Yield the limit of every cgroup from this process's own up to the root, for versions 1 and 2 of cgroups.

    The memory that other processes in the cgroup use is subtracted. Files in the page cache do not count, because the
    kernel drops them when memory runs out.
    """
    for folder in cgroup_folders(proc / "self", "memory"):
        for limit_file, usage_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = read_number(folder / limit_file), read_number(folder / usage_file)
            if limit is not None:
                cached = read_sizes(folder / "memory.stat").get(cache, 0)
                others = max(0, (usage or 0) - cached - resident)
                yield Limit(f"the cgroup's {folder / limit_file}", limit - others)


def read_number(path: Path) -> int | None:
    """Return the number in a file, or None if the file does not exist or contains something else, such as "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def read_sizes(path: Path) -> dict[str, int]:
    """Return the sizes in a file of lines such as "VmRSS: 12 kB" or "inactive_file 4096", in bytes by name."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    lines = re.findall(r"^(\w+):?\s+(\d+)( kB)?$", text, re.MULTILINE)
    return {name: int(number) * (1024 if unit else 1) for name, number, unit in lines}
