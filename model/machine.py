"""The processor that a number was measured on, and its memory for training."""

import ctypes
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # mallopt's names for them
NEVER = 2**31 - 1


def cpu_name() -> str:
    """As the processor calls itself, where the system tells."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown CPU"


def keep_freed_memory() -> None:
    """Lets malloc keep what tensors give back, instead of taking fresh pages for every step (docs/decisions/0009).

    For this process, from now on; nothing where the C library has no mallopt.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_MAX, 0)  # a threshold does not do: glibc's largest is 32 MB, less than a wide layer's rows
        libc.mallopt(TRIM_THRESHOLD, NEVER)
