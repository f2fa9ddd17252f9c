"""What the supervisor and a worker say to each other, over a pair of sockets: a line of JSON a message."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable

import msgspec

log = logging.getLogger(__name__)

LONGEST_LINE = 64 * 1024 * 1024  # of /metrics, above all


class Load(msgspec.Struct, tag=True, frozen=True):
    """To a worker: open this bundle, which has been checked, and serve it."""

    folder: str


class Drain(msgspec.Struct, tag=True, frozen=True):
    """To a worker: not ready any more; finish what is in hand and end."""


class Spread(msgspec.Struct, tag=True, frozen=True):
    """To a worker: another one has joined, there are so many now. Give it its share of the connections."""

    workers: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: it accepts requests. problem: why /readyz says 503 all the same."""

    version: str
    problem: str | None


class Reload(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: have all workers serve what is current."""


class Scrape(msgspec.Struct, tag=True, frozen=True):
    """To the supervisor: the metrics of all workers."""


class Done(msgspec.Struct, tag=True, frozen=True):
    """The answer to Load, Reload and Scrape: text (a version, or metrics), or why not."""

    text: str = ""
    problem: str | None = None


Message = Load | Drain | Spread | Ready | Reload | Scrape | Done


class _Line(msgspec.Struct):
    """number: of the question; an answer has that of its question, negated."""

    number: int
    message: Message


class Gone(ConnectionError):
    """The other process does not answer any more."""


class Channel:
    """Questions and answers in both directions. Lives in one event loop."""

    def __init__(self, answer: Callable[[Message], Awaitable[Done | None]]) -> None:
        self._answer = answer
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Done]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, end: socket.socket) -> None:
        """Until the other end is closed."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=LONGEST_LINE)
        try:
            while line := await reader.readline():
                self._take(msgspec.json.decode(line, type=_Line))
        except (OSError, ValueError, msgspec.DecodeError):  # half a line, or a line without end
            pass
        finally:
            self._writer.close()
            for waiting in self._open.values():
                if not waiting.done():
                    waiting.set_exception(Gone("the other process has ended"))

    def tell(self, message: Message) -> None:
        self._send(_Line(next(self._numbers), message))

    async def ask(self, message: Message, timeout_s: float) -> Done:
        """Raises Gone when the other end is closed, or says nothing in time."""
        number = next(self._numbers)
        self._open[number] = answer = asyncio.get_running_loop().create_future()
        try:
            self._send(_Line(number, message))
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise Gone(f"no answer within {timeout_s:g} s") from None
        finally:
            del self._open[number]

    def _take(self, line: _Line) -> None:
        if line.number < 0:
            waiting = self._open.get(-line.number)
            if waiting is not None and not waiting.done() and isinstance(line.message, Done):
                waiting.set_result(line.message)
            return
        task = asyncio.ensure_future(self._reply(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, line: _Line) -> None:
        try:
            answer = await self._answer(line.message)
        except Exception as error:  # whoever asked must not wait for ever
            log.exception("a message of the other process could not be answered")
            answer = Done(problem=f"{type(error).__name__}, see the log")
        if answer is not None:
            self._send(_Line(-line.number, answer))

    def _send(self, line: _Line) -> None:
        if self._writer is None or self._writer.is_closing():
            raise Gone("the other process has ended")
        self._writer.write(msgspec.json.encode(line) + b"\n")
