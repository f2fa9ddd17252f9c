"""The device that a model is trained on, and its memory."""

import ctypes
import platform
import re
from pathlib import Path

import torch
from torch import nn

CPUINFO = Path("/proc/cpuinfo")
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # parameters of mallopt
NEVER = 2**31 - 1
CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return the device with this name: cpu, cuda or cuda:N.

    Raises:
        ValueError: If the name is invalid, or this machine has no such GPU.
    """
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]?))?", name):
        raise ValueError(f"{name} is not a device. Use cpu, cuda or cuda:N.")
    device, gpus = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(
            f"{name} is not available: torch {torch.__version__} sees {gpus} GPUs. Install a torch that is built for "
            "CUDA, or omit --device to train on the CPU."
        )
    return device


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def cpu_name() -> str:
    """Return the processor's name, or "unknown CPU" if the system does not provide it."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown CPU"


def keep_freed_memory() -> None:
    """Make malloc keep the memory that tensors free, so that no step waits for new pages (docs/decisions/0009).

    This affects the whole process. It does nothing if the C library has no mallopt.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # Raising the mmap threshold is not enough: glibc's maximum is 32 MB, less than the activations of a wide layer.
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
