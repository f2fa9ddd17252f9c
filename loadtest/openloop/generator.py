"""One process of an open-loop load. It sends requests at precomputed times, whatever the server does.

loadtest/openloop/load.py starts it with a folder that contains the plan. The process prints "ready", reads the start
time from stdin, and writes its records to that folder.
"""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

from loadtest.openloop.arrivals import Profile, arrival_times
from loadtest.openloop.check import what_is_wrong
from loadtest.openloop.connection import HUNG, HUNG_UP, LOST, REFUSED, Connection
from loadtest.openloop.hostile import Hostile
from loadtest.openloop.message import Prepared
from loadtest.openloop.records import RECORD, Records
from loadtest.openloop.timer import Timer

PLAN, RECORDS, NOTES = "plan.json", "records.npy", "notes.json"
SWEEP_S = 0.25  # interval between searches for hung requests
FIRST_CONNECTIONS = 16  # opened before the first request
HANG_UP_S = 0.3
NOT_DEGRADED = b'"degraded":[]}'
MAX_EXAMPLES = 5


class Plan(msgspec.Struct, frozen=True):
    """What a process sends.

    Args:
        rate: Requests/s of this process.
        seconds: Length of the load.
        timeout_ms: Deadline of each request.
        grace_s: A request counts as hung if its answer is not complete this long after its deadline.
        connections: Maximum number of connections.
        check: Share of answers whose scores are checked.
        hostile: Share of requests that are hostile.
        seed: Seed for this process's requests and arrival times.
        shared_seed: Seed for what all processes of a load have in common.
        cpus: CPUs to run on. Empty: any.
    """

    host: str
    port: int
    rate: float
    seconds: float
    timeout_ms: int
    grace_s: float
    connections: int
    check: float
    hostile: float
    seed: int
    shared_seed: int
    cpus: list[int]
    requests: list[Prepared]
    hostile_requests: list[Hostile]
    profile: Profile = "steady"


class Notes(msgspec.Struct, frozen=True):
    """What a process reports besides its records.

    Args:
        cpu_s: CPU seconds that the process used while sending.
        opened: Number of connections opened.
        examples: What was wrong with the first wrong answers.
    """

    cpu_s: float
    opened: int
    examples: list[str]


class InFlight:
    """A request that is in flight or waiting for a connection."""

    __slots__ = ("_generator", "_index", "hostile", "intended_s", "message", "request", "sent_s")

    def __init__(
        self, generator: "Generator", index: int, intended_s: float, request: Prepared | None, hostile: Hostile | None
    ) -> None:
        self._generator = generator
        self._index = index
        self.intended_s = intended_s
        self.request = request
        self.hostile = hostile
        self.message = request.message if request is not None else hostile.message if hostile is not None else b""
        self.sent_s = 0.0

    def end(self, status: int, body: bytes) -> None:
        self._generator.record(self._index, self, status, body)


class Generator:
    """Sends the plan's requests and records their outcomes. It belongs to one event loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        random = np.random.default_rng(plan.seed)
        shared = np.random.default_rng(plan.shared_seed)
        self._times: list[float] = arrival_times(plan.profile, plan.rate, plan.seconds, random, shared).tolist()
        self._kinds: list[int] = random.integers(0, len(plan.requests), len(self._times)).tolist()
        self._hostile: list[bool] = (random.random(len(self._times)) < plan.hostile).tolist()
        self._attacks: list[int] = random.integers(0, max(1, len(plan.hostile_requests)), len(self._times)).tolist()
        self._checked: list[bool] = (random.random(len(self._times)) < plan.check).tolist()
        self.records: Records = np.zeros(len(self._times), RECORD)
        self.examples: list[str] = []
        self.opened = 0
        self._next = self._ended = 0
        self._free: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._connecting = 0
        self._waiting: list[InFlight] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def run(self, start_s: float) -> None:
        """Send all requests, and return when each has been answered or abandoned.

        Args:
            start_s: Start of the load, on the clock of time.monotonic().
        """
        self._start_s = start_s
        # A client that has run for a while has open connections. If one is refused now, it can be opened later.
        for _ in range(min(FIRST_CONNECTIONS, self._plan.connections)):
            with suppress(OSError):
                self._release(await self._connect(self._release), True)
        timer = self._timer = Timer(self._send_due)
        if self._times:
            timer.set(start_s + self._times[0])
            while self._ended < len(self._times):
                await asyncio.sleep(SWEEP_S)
                self._give_up_hung()
                if self._failure is not None:
                    raise self._failure
        timer.close()
        for connection in list(self._all):
            connection.close()

    def _send_due(self) -> None:
        """Send every request that is due, and set the timer for the next one."""
        elapsed_s = time.monotonic() - self._start_s
        times = self._times
        while self._next < len(times) and times[self._next] <= elapsed_s:
            self._send(self._next)
            self._next += 1
        if self._next < len(times):
            self._timer.set(self._start_s + times[self._next])

    def _send(self, index: int) -> None:
        """Send a request on a free connection, or queue it until one is free."""
        intended_s, kind, plan = self._start_s + self._times[index], self._kinds[index], self._plan
        if self._hostile[index]:
            hostile = plan.hostile_requests[self._attacks[index]]
            self._create_task(self._attack(InFlight(self, index, intended_s, None, hostile)))
            return
        request = InFlight(self, index, intended_s, plan.requests[kind], None)
        if self._free:
            # Use the connection that has been idle longest. Reusing the same few would always load the same worker.
            self._free.popleft().send(request)
            return
        self._waiting.append(request)
        if len(self._all) + self._connecting < plan.connections:
            self._connect_for_waiting()

    def record(self, index: int, request: InFlight, status: int, body: bytes) -> None:
        """Check the answer if the plan requires it, and store the request's record."""
        prepared, hostile = request.request, request.hostile
        checked = status == 200 and prepared is not None and self._checked[index]
        problem = what_is_wrong(prepared, body) if checked and prepared is not None else None
        if hostile is not None and status not in (HUNG_UP, LOST, REFUSED, HUNG, *hostile.statuses):
            problem = f"{hostile.name}: answered with {status}, expected one of {hostile.statuses}"
        if problem is not None and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(problem)
        self.records[index] = (
            request.intended_s,
            request.sent_s or time.monotonic(),
            time.monotonic(),
            status,
            self._plan.timeout_ms,
            hostile is not None,
            checked,
            problem is not None,
            status == 200 and prepared is not None and not body.endswith(NOT_DEGRADED),
        )
        self._ended += 1

    async def _connect(self, released: Callable[[Connection, bool], None]) -> Connection:
        """Open a connection. Raises OSError when it is refused."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(released), self._plan.host, self._plan.port)
        self.opened += 1
        self._all.add(connection)
        return connection

    def _release(self, connection: Connection, usable: bool) -> None:
        """Send the next waiting request on the connection, or mark it free. Replace unusable ones if needed."""
        if not usable:
            self._all.discard(connection)
            if connection in self._free:
                self._free.remove(connection)
            connection.close()
            self._connect_for_waiting()
        elif self._waiting:
            connection.send(self._waiting.pop(0))
        else:
            self._free.append(connection)

    def _connect_for_waiting(self) -> None:
        async def open_one() -> None:
            try:
                connection = await self._connect(self._release)
            except OSError:
                self._connecting -= 1
                if self._waiting:
                    self._waiting.pop(0).end(REFUSED, b"")
                return
            self._connecting -= 1
            self._release(connection, True)

        if self._connecting < len(self._waiting):
            self._connecting += 1
            self._create_task(open_one())

    async def _attack(self, request: InFlight) -> None:
        """Send a hostile request on its own connection, which is not reused."""
        done = asyncio.Event()

        def released(connection: Connection, usable: bool) -> None:
            self._all.discard(connection)
            done.set()

        try:
            connection = await self._connect(released)
        except OSError:
            request.end(REFUSED, b"")
            return
        connection.send(request)
        if request.hostile is not None and request.hostile.hangs_up:
            await asyncio.sleep(HANG_UP_S)
            connection.give_up(HUNG_UP)
        else:
            await done.wait()
        connection.close()

    def _give_up_hung(self) -> None:
        """Give up on requests whose deadline and grace period have passed."""
        limit_s = time.monotonic() - self._plan.timeout_ms / 1e3 - self._plan.grace_s
        for connection in list(self._all):
            if connection.exchange is not None and connection.exchange.sent_s < limit_s:
                connection.give_up(HUNG)
        while self._waiting and self._waiting[0].intended_s < limit_s:
            self._waiting.pop(0).end(REFUSED, b"")

    def _create_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background. If it fails, `run` raises its exception."""

        def done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                self._failure = task.exception() or self._failure

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)


def main(argv: Sequence[str]) -> int:
    folder = Path(argv[0])
    plan = msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan)
    if plan.cpus:
        os.sched_setaffinity(0, plan.cpus)
    generator = Generator(plan)
    print("ready", flush=True)
    start_s = float(sys.stdin.readline())
    before_s = time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(generator.run(start_s))
    notes = Notes(time.process_time() - before_s, generator.opened, generator.examples)
    np.save(folder / RECORDS, generator.records, allow_pickle=False)
    (folder / NOTES).write_bytes(msgspec.json.encode(notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
