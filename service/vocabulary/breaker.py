"""A circuit breaker: what fails again and again is left alone for a while, and then tried by one."""

import time
from collections.abc import Callable

FAILURES = 3  # in a row: one late answer may be this process's own fault
PAUSE_S = 1.0
LONGEST_PAUSE_S = 5.0


class Breaker:
    """Closed: all may try. Open: nobody, for a pause. Half open: one, and all wait for what it reports.

    Whoever was allowed must report once, by `succeeded` or `failed`, with what `allows` has said.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s: float | None = None
        self._probing = False

    @property
    def is_closed(self) -> bool:
        return self._open_until_s is None

    def allows(self) -> bool:
        if self._open_until_s is None:
            return True
        if self._probing or self._clock() < self._open_until_s:
            return False
        self._probing = True
        return True

    def succeeded(self) -> bool:
        """Whether that closes it. What was begun before it opened says nothing about now."""
        if self._open_until_s is None:
            self._failures = 0
            return False
        if not self._probing:
            return False
        self._probing = False
        self._failures = 0
        self._pause_s = PAUSE_S
        self._open_until_s = None
        return True

    def failed(self, for_good: bool = False) -> bool:
        """Whether that opens it. for_good: to try again at once would bring the same."""
        if self._open_until_s is not None:
            if self._probing:
                self._probing = False
                self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
                self._open_until_s = self._clock() + self._pause_s
            return False
        self._failures += 1
        if self._failures < FAILURES and not for_good:
            return False
        self._open_until_s = self._clock() + self._pause_s
        return True
