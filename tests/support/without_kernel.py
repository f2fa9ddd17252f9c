"""A pytest plugin that hides the kernel, as on a CPU without AVX2: it looks for its library beside its own file."""

import kernel

kernel.__file__ = "/nonexistent/kernel/__init__.py"
