"""As many requests as a server answers: each connection sends its next request when it has the last one's answer.

A closed loop, so it measures throughput and not latency. loadtest/openloop/load.py measures latency.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import uvloop

from loadtest.openloop.connection import Connection


@dataclass(frozen=True)
class Answered:
    """good: 200s within the time. other: answers that were none, and connections lost. late: what came after the time,
    for it was on its way: its work was done, too."""

    seconds: float
    good: int
    other: int
    late: int

    @property
    def per_s(self) -> float:
        return self.good / self.seconds


class _Asking:
    """One connection's requests, one after the other, until the time is up."""

    def __init__(self, messages: Iterator[bytes], end_s: float) -> None:
        self._messages = messages
        self._end_s = end_s
        self.message = b""
        self.sent_s = 0.0
        self.good = self.other = self.late = 0
        self.done = asyncio.Event()

    def begin(self, connection: Connection) -> None:
        self.message = next(self._messages)
        connection.send(self)

    def end(self, status: int, body: bytes) -> None:
        if time.monotonic() >= self._end_s:
            self.late += 1
        elif status == 200:
            self.good += 1
        else:
            self.other += 1

    def released(self, connection: Connection, usable: bool) -> None:
        if usable and time.monotonic() < self._end_s:
            self.begin(connection)
        else:
            self.done.set()
            connection.close()


def saturate(url: str, messages: Sequence[bytes], connections: int, seconds: float) -> Answered:
    """Raises OSError when a connection is refused."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_saturate(url, messages, connections, seconds))


async def _saturate(url: str, messages: Sequence[bytes], connections: int, seconds: float) -> Answered:
    split, loop = urlsplit(url), asyncio.get_running_loop()
    host, port = split.hostname or "127.0.0.1", split.port or 80
    begin_s = time.monotonic()
    all_asking = []
    for number in range(connections):
        own = itertools.cycle([*messages[number:], *messages[:number]])
        asking = _Asking(own, begin_s + seconds)
        _, connection = await loop.create_connection(partial(Connection, asking.released), host, port)
        all_asking.append(asking)
        asking.begin(connection)
    for asking in all_asking:
        await asking.done.wait()
    good, other, late = (sum(getattr(one, name) for one in all_asking) for name in ("good", "other", "late"))
    return Answered(seconds, good, other, late)
