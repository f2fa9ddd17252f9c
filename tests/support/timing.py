"""Timing code in tests."""

import time
from collections.abc import Callable


def shortest_cpu_s(call: Callable[[], object]) -> float:
    """Return the shortest CPU time of three calls in this thread, in seconds."""
    times_s = []
    for _ in range(3):
        start_s = time.thread_time()
        call()
        times_s.append(time.thread_time() - start_s)
    return min(times_s)
