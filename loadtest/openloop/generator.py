"""One process of an open loop: sends at times drawn beforehand, whatever the server does.

loadtest/openloop/load.py starts it with a folder that holds the plan. It prints "ready", reads the start time from
stdin, and writes its records to that folder.
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

from loadtest.openloop.alarm import Alarm
from loadtest.openloop.arrivals import Profile, arrival_times
from loadtest.openloop.check import what_is_wrong
from loadtest.openloop.connection import HUNG, HUNG_UP, LOST, REFUSED, Connection
from loadtest.openloop.hostile import Hostile
from loadtest.openloop.message import Prepared
from loadtest.openloop.records import RECORD, Records

PLAN, RECORDS, NOTES = "plan.json", "records.npy", "notes.json"
SWEEP_S = 0.25
OPENED_FIRST = 16  # connections, before the first request
HANG_UP_S = 0.3
WHOLE = b'"degraded":[]}'
MOST_EXAMPLES = 5


class Plan(msgspec.Struct, frozen=True):
    """rate: requests/s of this process; check, hostile: shares of the requests; cpus: those to run on, none: any.
    patience_s: after the deadline; what is not whole by then hangs. shared_seed: equal in all processes of a load."""

    host: str
    port: int
    rate: float
    seconds: float
    timeout_ms: int
    patience_s: float
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
    """cpu_s: of this process while it sent. examples: of what was wrong. opened: connections."""

    cpu_s: float
    opened: int
    examples: list[str]


class Sending:
    """A request on its way, and its place in the records."""

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
        self._generator.ended(self._index, self, status, body)


class Generator:
    """Lives in one event loop."""

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
        self._waiting: list[Sending] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def run(self, start_s: float) -> None:
        """Until every request has its end."""
        self._start_s = start_s
        await self._open_some()
        self._alarm = Alarm(self._send_due)
        if self._times:
            self._alarm.set(start_s + self._times[0])
            while self._ended < len(self._times):
                await asyncio.sleep(SWEEP_S)
                self._sweep()
                if self._failure is not None:
                    raise self._failure
        self._alarm.close()
        for connection in list(self._all):
            connection.close()

    async def _open_some(self) -> None:
        """As a client that has been there for a while has them; those that are refused now may be had later."""
        for _ in range(min(OPENED_FIRST, self._plan.connections)):
            with suppress(OSError):
                self._release(await self._connect(self._release), True)

    def ended(self, index: int, sending: Sending, status: int, body: bytes) -> None:
        request, hostile = sending.request, sending.hostile
        checked = status == 200 and request is not None and self._checked[index]
        problem = what_is_wrong(request, body) if checked and request is not None else None
        if hostile is not None and status not in (HUNG_UP, LOST, REFUSED, HUNG, *hostile.statuses):
            problem = f"{hostile.name}: answered with {status}, not {hostile.statuses}"
        if problem is not None and len(self.examples) < MOST_EXAMPLES:
            self.examples.append(problem)
        degraded = status == 200 and request is not None and not body.endswith(WHOLE)
        sent_s = sending.sent_s or time.monotonic()
        self.records[index] = (
            sending.intended_s,
            sent_s,
            time.monotonic(),
            status,
            self._plan.timeout_ms,
            hostile is not None,
            checked,
            problem is not None,
            degraded,
        )
        self._ended += 1

    def _send_due(self) -> None:
        elapsed_s = time.monotonic() - self._start_s
        times = self._times
        while self._next < len(times) and times[self._next] <= elapsed_s:
            self._send(self._next)
            self._next += 1
        if self._next < len(times):
            self._alarm.set(self._start_s + times[self._next])

    def _send(self, index: int) -> None:
        intended_s, kind, plan = self._start_s + self._times[index], self._kinds[index], self._plan
        if self._hostile[index]:
            bad = plan.hostile_requests[self._attacks[index]]
            self._go(self._attack(Sending(self, index, intended_s, None, bad)))
            return
        sending = Sending(self, index, intended_s, plan.requests[kind], None)
        if self._free:
            # The one that has been idle the longest: always the same few would be always the same worker's.
            self._free.popleft().send(sending)
            return
        self._waiting.append(sending)
        if self._connecting < len(self._waiting) and len(self._all) + self._connecting < plan.connections:
            self._connecting += 1
            self._go(self._connect_one())

    async def _connect_one(self) -> None:
        try:
            connection = await self._connect(self._release)
        except OSError:
            self._connecting -= 1
            if self._waiting:
                self._waiting.pop(0).end(REFUSED, b"")
            return
        self._connecting -= 1
        self._release(connection, True)

    async def _connect(self, released: Callable[[Connection, bool], None]) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(released), self._plan.host, self._plan.port)
        self.opened += 1
        self._all.add(connection)
        return connection

    def _release(self, connection: Connection, usable: bool) -> None:
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
        if self._connecting < len(self._waiting):
            self._connecting += 1
            self._go(self._connect_one())

    async def _attack(self, sending: Sending) -> None:
        """On a connection of its own, which is no good afterwards."""
        done = asyncio.Event()

        def released(connection: Connection, usable: bool) -> None:
            self._all.discard(connection)
            done.set()

        try:
            connection = await self._connect(released)
        except OSError:
            sending.end(REFUSED, b"")
            return
        connection.send(sending)
        if sending.hostile is not None and sending.hostile.hangs_up:
            await asyncio.sleep(HANG_UP_S)
            connection.give_up(HUNG_UP)
        else:
            await done.wait()
        connection.close()

    def _sweep(self) -> None:
        limit_s = time.monotonic() - self._plan.timeout_ms / 1e3 - self._plan.patience_s
        for connection in list(self._all):
            if connection.exchange is not None and connection.exchange.sent_s < limit_s:
                connection.give_up(HUNG)
        while self._waiting and self._waiting[0].intended_s < limit_s:
            self._waiting.pop(0).end(REFUSED, b"")

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._failure = task.exception() or self._failure


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
