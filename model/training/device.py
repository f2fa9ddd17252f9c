"""The processor that a model trains on, and its memory for training."""

import ctypes
import platform
import re
from pathlib import Path

import torch
from torch import nn

CPUINFO = Path("/proc/cpuinfo")
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # mallopt's names for them
NEVER = 2**31 - 1
CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return the device of this name: cpu, cuda or cuda:N.

    Raises:
        ValueError: For another name, and for a GPU that this machine does not have.
    """
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]?))?", name):
        raise ValueError(f"{name} is neither cpu nor cuda, or cuda:1")
    device, found = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        way_out = "install a torch that is built for CUDA, or leave it out for the CPU"
        raise ValueError(f"{name} is not there: torch {torch.__version__} sees {found} GPUs; {way_out}")
    return device


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


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
