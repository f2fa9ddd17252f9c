"""How many requests may be in hand at once. The limit adapts to how long requests wait.

A standing queue makes every answer late and no more of them: where even the luckiest request of a window had to wait
longer than the target, fewer are let in. Where one did not have to, and the limit kept others out, more are.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Overloaded

WINDOW_S = 0.2  # at least
WINDOW_ANSWERS = 10  # at least: a hiccup under two requests is no queue
FEWEST = 4  # in hand: enough to keep the model busy while the next are read
STRONGEST_CUT = 0.7  # of the limit, in one window


class Admission:
    """Counts requests in hand, and the bytes of their bodies. Lives in one event loop."""

    def __init__(
        self, most: int, target_s: float, most_bytes: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.in_hand = 0
        self.lag_s = 0.0  # how long what is read just now may have waited to be
        self.limit = float(most)
        self._most = most
        self._target_s = target_s
        self._most_bytes = most_bytes
        self._bytes = 0
        self._clock = clock
        self._shortest_s = math.inf
        self._begin_window(clock())

    def has_room(self) -> bool:
        if self.in_hand < self.limit:
            return True
        self._was_full = True
        return False

    def enter(self) -> None:
        self.in_hand += 1

    def leave(self) -> None:
        self.in_hand -= 1

    def waited(self, seconds: float) -> None:
        """What a request that was answered has spent waiting for others."""
        self._answers += 1
        self._shortest_s = min(self._shortest_s, seconds)
        now = self._clock()
        if now >= self._window_ends_s and self._answers >= WINDOW_ANSWERS:
            self._adapt(self._shortest_s)
            self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._window_ends_s = now + WINDOW_S
        self._answers = 0
        self._shortest_s = math.inf
        self._was_full = False

    def _adapt(self, shortest_s: float) -> None:
        if shortest_s > self._target_s:
            cut = max(STRONGEST_CUT, self._target_s / shortest_s)
            self.limit = max(FEWEST, min(self.limit, self.in_hand + 1) * cut)
        elif self._was_full:
            self.limit = min(self._most, self.limit * 1.05 + 1)
        elif self.limit < self._most:
            self.limit = min(self._most, self.limit + 1)

    @contextmanager
    def buffer(self) -> Iterator[Callable[[int], None]]:
        """Counts a body's bytes while it is held.

        Raises:
            Overloaded: when all bodies together would take more than they may.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._bytes + size > self._most_bytes:
                raise Overloaded("The bodies of other requests fill the memory for them: try again later")
            self._bytes += size
            held += size

        try:
            yield hold
        finally:
            self._bytes -= held
