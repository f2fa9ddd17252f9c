"""Run the numeric tests once under each instruction set that this CPU has: make test-isa.

torch, MKL and oneDNN have code for several instruction sets, which add numbers in different orders. They
choose by the CPU, unless an environment variable overrides the choice. onnxruntime has no such variable. The kernel
needs AVX2, so the run without AVX2 hides it. The run with AVX2 limits it to eight lanes.
"""

import os
import subprocess
import sys

import torch

NUMERIC = [sys.executable, "-m", "pytest", "-q", "-m", "numeric and not full"]
# In ascending order: a CPU that has one of these also has those before it.
SWITCHES = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "PYTEST_ADDOPTS": "-p tests.support.without_kernel",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTEST_ADDOPTS": "-p tests.support.eight_lanes",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
}


def available(capability: str) -> list[str]:
    """Return the instruction sets of a CPU, given torch's name for the best one, such as "AVX2"."""
    names, best = [*SWITCHES], capability.lower()
    return names[: names.index(best) + 1] if best in names else ["default", best]


def main() -> int:
    names = available(torch.backends.cpu.get_cpu_capability())
    failed = []
    for name in names:
        print(f"Instruction set {name}:", flush=True)
        environment = os.environ | SWITCHES.get(name, {"ATEN_CPU_CAPABILITY": name})
        if subprocess.run([*NUMERIC, *sys.argv[1:]], env=environment).returncode:
            failed.append(name)
    print(f"Instruction sets: {', '.join(names)}. Failed: {', '.join(failed) or 'none'}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
