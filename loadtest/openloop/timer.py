"""A timer with a precision of a few microseconds.

An event loop's own timers have a precision of one millisecond, which is a third of a request's latency.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

TFD_TIMER_ABSTIME = 1


class Timerspec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls `callback` in the running event loop at the most recently set time. Linux only.

    Raises:
        OSError: The system does not support timerfd.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed: run the load test on Linux")
        self._spec = Timerspec()
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._expired)

    def set(self, at_s: float) -> None:
        """Set the timer to a time of time.monotonic(). If the time has passed, the timer expires immediately."""
        self._spec.value_s, self._spec.value_ns = divmod(int(at_s * 1e9), 1_000_000_000)
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _expired(self) -> None:
        os.read(self._descriptor, 8)
        self._callback()
