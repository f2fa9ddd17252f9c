"""A pytest plugin that hides the kernel, to simulate a CPU without AVX2."""

import kernel

# The package looks for its library next to this path.
kernel.__file__ = "/nonexistent/kernel/__init__.py"
