"""What happens to a server during a soak, and when. Times are shares of the whole: a short one has all of it, too."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.scenarios.reload import timed_reload
from loadtest.scenarios.versions import TwoVersions
from loadtest.servers import RedisServer, Server

FROZEN_S = 10.0
AFTER_S = 10.0  # what comes this soon after a worker's end counts to it
RELOADS = 5


@dataclass(frozen=True)
class Phase:
    """From begin_s to end_s of time.monotonic()."""

    name: str
    begin_s: float
    end_s: float


@dataclass
class History:
    """What happened. memory_mib: of each worker, at a moment. killed_s: when the worker was."""

    phases: list[Phase] = field(default_factory=list)
    memory_mib: list[tuple[str, list[float]]] = field(default_factory=list)
    reloads_s: list[float] = field(default_factory=list)
    killed_s: float = 0.0


class Timeline:
    """Runs in the caller's thread, while generators send from processes of their own."""

    def __init__(
        self, server: Server, redis: RedisServer, versions: TwoVersions, begin_s: float, length_s: float
    ) -> None:
        self._server = server
        self._redis = redis
        self._versions = versions
        self._begin_s = begin_s
        self._length_s = length_s
        self._calm_since_s = begin_s
        self.history = History()

    def run(self) -> History:
        """Raises ServerFailed when a reload is refused, or Redis does not come back."""
        self._until(0.03)
        self._remember_memory("start")
        for at, name, happening in self._happenings():
            self._until(at)
            start_s = time.monotonic()
            self.history.phases.append(Phase("calm", self._calm_since_s, start_s))
            happening()
            self._calm_since_s = time.monotonic()
            self.history.phases.append(Phase(name, start_s, self._calm_since_s))
        self._until(0.97)
        self._remember_memory("end")
        self._until(1.0)
        end_s = max(self._calm_since_s, self._begin_s + self._length_s)
        self.history.phases.append(Phase("calm", self._calm_since_s, end_s))
        return self.history

    def _happenings(self) -> list[tuple[float, str, Callable[[], None]]]:
        """When at the earliest, as a share of the whole; its name; what."""
        return [
            (0.15, "Redis dead", self._kill_redis),
            (0.30, "Redis frozen", self._freeze_redis),
            *((0.40 + 0.06 * n, f"reload {n + 1}", self._reload) for n in range(RELOADS)),
            (0.76, "worker killed", self._kill_a_worker),
        ]

    def _kill_redis(self) -> None:
        """It comes back a while later, empty, and is filled again."""
        self._redis.signal(signal.SIGKILL)
        self._until(0.23)
        self._redis.start()
        self._redis.publish(self._versions.bundles)

    def _freeze_redis(self) -> None:
        self._redis.signal(signal.SIGSTOP)
        try:
            time.sleep(min(FROZEN_S, 0.07 * self._length_s))
        finally:
            self._redis.signal(signal.SIGCONT)

    def _reload(self) -> None:
        self.history.reloads_s.append(timed_reload(self._server, self._versions))
        if len(self.history.reloads_s) == RELOADS // 2:
            self._remember_memory("middle")

    def _kill_a_worker(self) -> None:
        self.history.killed_s = time.monotonic()
        os.kill(self._server.workers()[-1], signal.SIGKILL)
        time.sleep(min(AFTER_S, 0.1 * self._length_s))

    def _remember_memory(self, when: str) -> None:
        self.history.memory_mib.append((when, self._server.memory_mib()))

    def _until(self, share: float) -> None:
        time.sleep(max(0.0, self._begin_s + share * self._length_s - time.monotonic()))
