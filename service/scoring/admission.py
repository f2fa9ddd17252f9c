"""Limit the number of requests in flight, depending on how long requests wait.

A standing queue delays every response without increasing throughput. If even the fastest request of a time window
waited longer than the target, the limit falls. Otherwise, the limit rises, and it rises faster if
requests were rejected during the window.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Overloaded

MIN_WINDOW_S = 0.2
MIN_WINDOW_REQUESTS = 10  # a pause of the process that delays one or two requests is not a queue
MIN_LIMIT = 4  # keeps the model busy while the next requests are read
MIN_CUT = 0.7  # the limit never falls below this share of its value within one window


class Admission:
    """Counts the requests in flight, and the bytes of their bodies. Use it from one event loop only.

    Attributes:
        in_flight: Number of requests in flight.
        limit: How many requests may be in flight now.
        lag_s: How late the event loop is. A request that it reads now may have been waiting for this long.
    """

    def __init__(
        self,
        max_in_flight: int,
        target_s: float,
        max_buffered_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start with the limit at `max_in_flight`, which it never exceeds.

        Args:
            max_in_flight: Maximum value of the limit.
            target_s: How long the fastest request of a window may wait.
            max_buffered_bytes: Maximum total size of all bodies.
            clock: Returns seconds.
        """
        self.in_flight = 0
        self.lag_s = 0.0
        self.limit = float(max_in_flight)
        self._max_in_flight = max_in_flight
        self._target_s = target_s
        self._max_buffered_bytes = max_buffered_bytes
        self._buffered_bytes = 0
        self._clock = clock
        self._shortest_s = math.inf
        self._start_window(clock())

    def has_room(self) -> bool:
        """Return whether another request can be admitted."""
        if self.in_flight < self.limit:
            return True
        self._was_full = True
        return False

    def enter(self) -> None:
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1

    def record_wait(self, seconds: float) -> None:
        """Record how long a request waited for others. At the end of a window, adapt the limit."""
        self._requests += 1
        self._shortest_s = min(self._shortest_s, seconds)
        now = self._clock()
        if now < self._window_end_s or self._requests < MIN_WINDOW_REQUESTS:
            return
        if self._shortest_s > self._target_s:
            cut = max(MIN_CUT, self._target_s / self._shortest_s)
            self.limit = max(MIN_LIMIT, min(self.limit, self.in_flight + 1) * cut)
        elif self._was_full:
            self.limit = min(self._max_in_flight, self.limit * 1.05 + 1)
        elif self.limit < self._max_in_flight:
            self.limit = min(self._max_in_flight, self.limit + 1)
        self._start_window(now)

    def _start_window(self, now: float) -> None:
        self._window_end_s = now + MIN_WINDOW_S
        self._requests = 0
        self._shortest_s = math.inf
        self._was_full = False

    @contextmanager
    def buffer(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of one body until the context ends.

        Yields:
            A function that adds bytes to the count. It raises Overloaded if the total size of all bodies would exceed
            the maximum.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._buffered_bytes + size > self._max_buffered_bytes:
                raise Overloaded("The bodies of other requests fill this server's buffer. Try again later.")
            self._buffered_bytes += size
            held += size

        try:
            yield hold
        finally:
            self._buffered_bytes -= held
