"""A pytest plugin that limits the kernel to eight lanes, to simulate a CPU without AVX-512."""

import contextlib

import kernel

with contextlib.suppress(kernel.NoKernel):
    kernel.limit_lanes(8)
