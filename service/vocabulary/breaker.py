"""A circuit breaker: stop calling a dependency that keeps failing, then probe it with one call at a time."""

import time
from collections.abc import Callable

FAILURES = 3  # Consecutive failures. A single late reply may be this process's own fault.
PAUSE_S = 1.0
MAX_PAUSE_S = 5.0


class CircuitBreaker:
    """Decides whether a call may be made.

    Closed: every call is allowed. Open: no call is allowed until a pause is over. Half open: one call, the probe, is
    allowed, and its result closes the breaker or starts a longer pause.

    A caller whose call was allowed must report its result exactly once, with `record_success` or `record_failure`.
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
        """Return whether a call may be made now. If the breaker was open, this call becomes the probe."""
        if self._open_until_s is None:
            return True
        if self._probing or self._clock() < self._open_until_s:
            return False
        self._probing = True
        return True

    def record_success(self) -> bool:
        """Return whether this success closed the breaker.

        A call that started before the breaker opened does not close it, because its result is out of date.
        """
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

    def record_failure(self, permanent: bool = False) -> bool:
        """Return whether this failure opened the breaker.

        Args:
            permanent: An immediate retry would fail in the same way. The breaker opens on the first such failure.
        """
        if self._open_until_s is not None:
            if self._probing:
                self._probing = False
                self._pause_s = min(MAX_PAUSE_S, self._pause_s * 2)
                self._open_until_s = self._clock() + self._pause_s
            return False
        self._failures += 1
        if self._failures < FAILURES and not permanent:
            return False
        self._open_until_s = self._clock() + self._pause_s
        return True
