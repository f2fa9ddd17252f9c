"""The failures during a soak, and the time of each.

Times are shares of the total duration, so that even a short soak includes every failure.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.scenarios.reload import timed_reload
from loadtest.scenarios.versions import TwoVersions
from loadtest.servers import RedisServer, Server

MAX_FROZEN_S = 10.0
MAX_AFTER_S = 10.0  # the "worker killed" phase includes requests up to this long after the worker's death
RELOADS = 5


@dataclass(frozen=True)
class Phase:
    """A part of the soak, from begin_s to end_s on the clock of time.monotonic()."""

    name: str
    begin_s: float
    end_s: float


@dataclass
class History:
    """What happened during a soak.

    Args:
        phases: Phases in order, without gaps.
        memory_mib: Memory of each worker at named times.
        reloads_s: Duration of each reload in seconds.
        killed_s: When the worker was killed, on the clock of time.monotonic().
    """

    phases: list[Phase] = field(default_factory=list)
    memory_mib: list[tuple[str, list[float]]] = field(default_factory=list)
    reloads_s: list[float] = field(default_factory=list)
    killed_s: float = 0.0


class Timeline:
    """Causes the failures in the caller's thread, while the generators send requests from their own processes.

    Args:
        begin_s: Start of the load on the clock of time.monotonic().
        length_s: Duration of the load.
    """

    def __init__(
        self, server: Server, redis: RedisServer, versions: TwoVersions, begin_s: float, length_s: float
    ) -> None:
        self._server = server
        self._redis = redis
        self._versions = versions
        self._begin_s = begin_s
        self._length_s = length_s
        self._normal_since_s = begin_s
        self.history = History()

    def run(self) -> History:
        """Cause each failure at its scheduled time, and return when the load ends.

        Raises:
            ServerFailed: A reload was refused, or Redis did not restart.
        """
        failures: list[tuple[float, str, Callable[[], None]]] = [
            (0.15, "Redis dead", self._kill_redis),
            (0.30, "Redis frozen", self._freeze_redis),
            *((0.40 + 0.06 * n, f"reload {n + 1}", self._reload) for n in range(RELOADS)),
            (0.76, "worker killed", self._kill_worker),
        ]
        self._wait_until(0.03)
        self._record_memory("start")
        for share, name, cause in failures:
            self._wait_until(share)  # later if the previous failure took longer
            start_s = time.monotonic()
            self.history.phases.append(Phase("normal", self._normal_since_s, start_s))
            cause()
            self._normal_since_s = time.monotonic()
            self.history.phases.append(Phase(name, start_s, self._normal_since_s))
        self._wait_until(0.97)
        self._record_memory("end")
        self._wait_until(1.0)
        end_s = max(self._normal_since_s, self._begin_s + self._length_s)
        self.history.phases.append(Phase("normal", self._normal_since_s, end_s))
        return self.history

    def _kill_redis(self) -> None:
        """Kill Redis, restart it without data some time later, and publish the vocabularies again."""
        self._redis.signal(signal.SIGKILL)
        self._wait_until(0.23)
        self._redis.start()
        self._redis.publish(self._versions.bundles)

    def _freeze_redis(self) -> None:
        self._redis.signal(signal.SIGSTOP)
        try:
            time.sleep(min(MAX_FROZEN_S, 0.07 * self._length_s))
        finally:
            self._redis.signal(signal.SIGCONT)

    def _reload(self) -> None:
        self.history.reloads_s.append(timed_reload(self._server, self._versions))
        if len(self.history.reloads_s) == RELOADS // 2:
            self._record_memory("middle")

    def _kill_worker(self) -> None:
        self.history.killed_s = time.monotonic()
        os.kill(self._server.workers()[-1], signal.SIGKILL)
        time.sleep(min(MAX_AFTER_S, 0.1 * self._length_s))

    def _record_memory(self, when: str) -> None:
        self.history.memory_mib.append((when, self._server.memory_mib()))

    def _wait_until(self, share: float) -> None:
        """Sleep until this share of the load's duration has passed."""
        time.sleep(max(0.0, self._begin_s + share * self._length_s - time.monotonic()))
