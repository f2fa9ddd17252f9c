"""STEC in C++. It is optional, because it must be built, and on x86-64 it needs a processor with AVX2 and FMA.

For serving, the kernel is a single onnxruntime operator, `ctr.stec::Score`. scorer.h implements the model, score.cpp
chooses the width of the vectors, and op.cpp registers the operator with onnxruntime. export/graphs/kernel.py creates
graphs that use it. Without the kernel, onnxruntime's own operators serve the same bundle, two to five times slower at
100 candidates.

For training, model/stec/fused.py calls the functions in training.cpp.
"""

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

DOMAIN, OPERATOR, VERSION = "ctr.stec", "Score", 1


class NoKernel(RuntimeError):
    """The kernel was not built, or this processor cannot run it. The message says how to fix it."""


def built() -> Path:
    """Return the path of the kernel's library. Raises NoKernel if it was not built."""
    # In the same order as an import, so that the library for this interpreter comes before one for another version.
    named = [Path(__file__).parent / f"_stec{suffix}" for suffix in EXTENSION_SUFFIXES]
    for path in named:
        if path.exists():
            return path
    raise NoKernel("the kernel was not built: run `make kernel`, or install the project again, with g++ 10 or later")


def register(options: Any) -> None:
    """Register the operator for the sessions that onnxruntime opens with these options.

    Args:
        options: onnxruntime.SessionOptions.

    Raises:
        NoKernel: The kernel was not built, is outdated or cannot be loaded, or the processor has no AVX2 and FMA.
    """
    library = built()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime raises its own classes.
        why = (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise NoKernel(f"the kernel cannot be used: {why}") from error
    if not hasattr(ctypes.CDLL(str(library)), "stec_max_lanes"):
        raise NoKernel("the kernel was built from an earlier version: run `make kernel`, or install the project again")


def is_usable() -> bool:
    """Return whether the kernel was built and this processor can run it."""
    import onnxruntime

    try:
        register(onnxruntime.SessionOptions())
    except NoKernel:
        return False
    return True


def lanes() -> int:
    """Return the largest number of candidates that the kernel scores at once: 16 with AVX-512, otherwise 8.

    Raises:
        NoKernel: The kernel was not built.
    """
    count: int = ctypes.CDLL(str(built())).stec_max_lanes()
    return count


def limit_lanes(count: int) -> None:
    """Make the kernel score at most this many candidates at once in this process, for tests and benchmarks.

    The logits do not depend on it.

    Args:
        count: 8 or 16. A processor without AVX-512 ignores 16.

    Raises:
        NoKernel: The kernel was not built.
    """
    ctypes.CDLL(str(built())).stec_limit_lanes(count)
