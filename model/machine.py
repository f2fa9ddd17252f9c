"""The processor that a number was measured on, and its memory for training."""

import ctypes
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt's names for them
LARGEST_THRESHOLD = 32 << 20  # that glibc takes
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
        libc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, NEVER)
