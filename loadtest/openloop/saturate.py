"""Closed-loop load: each connection sends its next request as soon as the previous one is answered.

This load measures throughput, not latency, because a slow server gets fewer requests. loadtest/openloop/load.py
measures latency.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import uvloop

from loadtest.openloop.connection import Connection

MAX_PROBLEMS = 5
Check = Callable[[int, bytes], str | None]
"""Takes the index of a message and the body of its 200. Returns what is wrong with the answer, or None."""


@dataclass
class Throughput:
    """The results of a closed-loop load.

    Args:
        seconds: The measured time.
        good: 200s within that time.
        late: 200s after that time, for requests that were in flight when it ended. They cost CPU time, too.
        other: Other answers, and connections that were lost before the answer.
        wrong: 200s that failed the check.
        problems: What was wrong with the first wrong answers.
        latencies_ms: Latency of each good request, from the sent time.
    """

    seconds: float
    good: int = 0
    late: int = 0
    other: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.good / self.seconds


class ConnectionLoop:
    """One connection, which sends requests one after another until `end_s`.

    Args:
        messages: Endless iterator of indexes and requests.
        end_s: End of the load, on the clock of time.monotonic().
        results: Results of all connections, which this connection updates.
        check: Called for each 200.
    """

    def __init__(
        self, messages: Iterator[tuple[int, bytes]], end_s: float, results: Throughput, check: Check | None
    ) -> None:
        self._messages = messages
        self._end_s = end_s
        self._results = results
        self._check = check
        self._index = 0
        self.message = b""
        self.sent_s = 0.0
        self.done = asyncio.Event()

    def send_next(self, connection: Connection) -> None:
        self._index, self.message = next(self._messages)
        connection.send(self)

    def end(self, status: int, body: bytes) -> None:
        now_s, results = time.monotonic(), self._results
        if status != 200:
            results.other += 1
        elif now_s >= self._end_s:
            results.late += 1
        else:
            results.good += 1
            results.latencies_ms.append((now_s - self.sent_s) * 1e3)
        if status == 200 and self._check is not None and (problem := self._check(self._index, body)) is not None:
            results.wrong += 1
            if len(results.problems) < MAX_PROBLEMS:
                results.problems.append(problem)

    def released(self, connection: Connection, usable: bool) -> None:
        if usable and time.monotonic() < self._end_s:
            self.send_next(connection)
        else:
            self.done.set()
            connection.close()


def saturate(
    url: str, messages: Sequence[bytes], connections: int, seconds: float, check: Check | None = None
) -> Throughput:
    """Keep `connections` connections busy for `seconds`. Each starts with a different message.

    Raises:
        OSError: The server refused a connection.
    """

    async def run() -> Throughput:
        address, loop = urlsplit(url), asyncio.get_running_loop()
        results, end_s = Throughput(seconds), time.monotonic() + seconds
        loops = []
        numbered = list(enumerate(messages))
        for first in range(connections):
            endless = itertools.cycle([*numbered[first:], *numbered[:first]])
            connection_loop = ConnectionLoop(endless, end_s, results, check)
            factory = partial(Connection, connection_loop.released)
            _, connection = await loop.create_connection(factory, address.hostname or "127.0.0.1", address.port or 80)
            loops.append(connection_loop)
            connection_loop.send_next(connection)
        for connection_loop in loops:
            await connection_loop.done.wait()
        return results

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
