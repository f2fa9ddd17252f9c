"""STEC in C++, where it was built and the processor can run it.

Serving: one operator of onnxruntime, `ctr.stec::Score`. stec.cpp is the model, op.cpp tells onnxruntime of it.
export/graphs/kernel.py makes graphs of it; without it, the same bundle is served by onnxruntime's own operators, two to
five times slower at 100 candidates. Training: training.cpp, which model/stec/fused.py calls.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

DOMAIN, OPERATOR, VERSION = "ctr.stec", "Score", 1


class NoKernel(RuntimeError):
    """The operator was not built, or this processor cannot run it. The message says the way out."""


def built() -> Path:
    """The library. Raises NoKernel when there is none."""
    # This interpreter's first, as importing would have it: an older one's may lie beside it.
    named = [Path(__file__).parent / f"_stec{suffix}" for suffix in EXTENSION_SUFFIXES]
    for path in named:
        if path.exists():
            return path
    raise NoKernel("the kernel was not built: run `make kernel`, or install the project again, with g++ 10 or later")


def register(options: Any) -> None:
    """Makes the operator known to the sessions that onnxruntime opens with these options.

    Raises:
        NoKernel: when it was not built, cannot be loaded, or the processor lacks AVX2 and FMA.
    """
    library = built()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime raises its own classes
        why = (str(error).splitlines() or [type(error).__name__])[0].strip()
        raise NoKernel(f"the kernel cannot be used: {why}") from error


def is_usable() -> bool:
    """Whether this machine has the operator, and its processor can run it."""
    import onnxruntime

    try:
        register(onnxruntime.SessionOptions())
    except NoKernel:
        return False
    return True
