"""A timer that is right to some microseconds. An event loop's own are right to a millisecond, which is a third of an
answer's time."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Timerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarm:
    """Calls `ring` in the running loop when the time of time.monotonic() that was set last has come. Linux only.

    Raises:
        OSError: where the system has no timerfd.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed: run the load test on Linux")
        self._spec = _Timerspec()
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._rung)

    def set(self, at_s: float) -> None:
        """A time that is past rings at once."""
        self._spec.value_s, self._spec.value_ns = divmod(int(at_s * 1e9), 1_000_000_000)
        self._libc.timerfd_settime(self._descriptor, ABSOLUTE, ctypes.byref(self._spec), None)

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _rung(self) -> None:
        os.read(self._descriptor, 8)
        self._ring()
