"""Messages between the supervisor and a worker: one line of JSON each, over a pair of connected sockets."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable

import msgspec

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 64 * 1024 * 1024  # The metrics of all workers are the longest message.


class Load(msgspec.Struct, tag=True, frozen=True):
    """Tell a worker to open and serve a bundle that has been checked."""

    folder: str


class Drain(msgspec.Struct, tag=True, frozen=True):
    """Tell a worker to report that it is not ready, finish the requests in flight, and exit."""


class Rebalance(msgspec.Struct, tag=True, frozen=True):
    """Tell a worker to give up a share of its connections, because a new worker has joined."""

    workers: int  # Including the new one.


class CurrentRefused(msgspec.Struct, tag=True, frozen=True):
    """Tell a worker which current version of the store was refused. None if the current version is served."""

    version: str | None


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Tell the supervisor that a worker accepts requests."""

    version: str
    problem: str | None  # Why /readyz returns 503 although the worker accepts requests.


class Reload(msgspec.Struct, tag=True, frozen=True):
    """Ask the supervisor to load the current bundle into all workers."""


class Scrape(msgspec.Struct, tag=True, frozen=True):
    """Ask the supervisor for the metrics of all workers."""


class Reply(msgspec.Struct, tag=True, frozen=True):
    """The reply to Load, Reload and Scrape.

    Attributes:
        text: A version (Load, Reload) or the metrics (Scrape).
        problem: Why the request failed, or None.
    """

    text: str = ""
    problem: str | None = None


Message = Load | Drain | Rebalance | CurrentRefused | Ready | Reload | Scrape | Reply


class _Line(msgspec.Struct):
    """A message with its number. The number of a reply is its request's number, negated."""

    number: int
    message: Message


class PeerClosed(ConnectionError):
    """The other process has exited, or did not reply in time."""


class Channel:
    """Sends messages and requests in both directions. Use it from one event loop only.

    Args:
        handle: Handles a message from the other process. Returns the reply, or None if the message needs none.
    """

    def __init__(self, handle: Callable[[Message], Awaitable[Reply | None]]) -> None:
        self._handle = handle
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Reply]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, end: socket.socket) -> None:
        """Handle messages until the other end of the socket is closed."""
        reader, self._writer = await asyncio.open_connection(sock=end, limit=MAX_LINE_BYTES)
        try:
            while line := await reader.readline():
                self.dispatch(msgspec.json.decode(line, type=_Line))
        except (OSError, ValueError, msgspec.DecodeError):
            pass  # The peer exited in the middle of a line, or the line is too long.
        finally:
            self._writer.close()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(PeerClosed("the other process has exited"))

    def send(self, message: Message) -> None:
        """Send a message that needs no reply.

        Raises:
            PeerClosed: The other end is closed.
        """
        self._write(_Line(next(self._numbers), message))

    async def request(self, message: Message, timeout_s: float) -> Reply:
        """Send a message and return its reply.

        Raises:
            PeerClosed: The other end is closed, or does not reply in time.
        """
        number = next(self._numbers)
        self._pending[number] = future = asyncio.get_running_loop().create_future()
        try:
            self._write(_Line(number, message))
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise PeerClosed(f"no reply within {timeout_s:g} s") from None
        finally:
            del self._pending[number]

    def dispatch(self, line: _Line) -> None:
        """Complete the request that a line replies to, or start to handle the line's message."""
        if line.number < 0:
            future = self._pending.get(-line.number)
            if future is not None and not future.done() and isinstance(line.message, Reply):
                future.set_result(line.message)
            return
        task = asyncio.ensure_future(self.respond(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def respond(self, line: _Line) -> None:
        """Handle a message and send its reply, if it has one."""
        try:
            reply = await self._handle(line.message)
        except Exception as error:
            # Without a reply, the other process would wait until its timeout.
            log.exception("Cannot handle a %s message", type(line.message).__name__)
            reply = Reply(problem=f"{type(error).__name__}, see the log")
        if reply is not None:
            self._write(_Line(-line.number, reply))

    def _write(self, line: _Line) -> None:
        if self._writer is None or self._writer.is_closing():
            raise PeerClosed("the other process has exited")
        self._writer.write(msgspec.json.encode(line) + b"\n")
