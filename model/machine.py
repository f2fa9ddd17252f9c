"""The processor that a number was measured on."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """As the processor calls itself, where the system tells."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown CPU"
