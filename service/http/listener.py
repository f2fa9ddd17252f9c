"""Accept connections on a socket that all workers share.

A worker accepts one connection each time the socket becomes readable. If it accepted all waiting connections, it
would have to serve all of them until they are closed. A worker that has more connections than another worker yields: it
waits briefly, so that another worker can accept a new connection.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sized
from functools import partial

from service.http.connection_counts import WorkerSlot

log = logging.getLogger(__name__)

YIELD_S = 0.005  # Longer than an idle worker takes to accept.
MAX_UNUSED_YIELDS = 50  # A quarter of a second. Workers that accept nothing for that long are not just busy.
NO_YIELD_S = 0.1  # How long a worker stops yielding after MAX_UNUSED_YIELDS.
PAUSE_S = 0.1  # How long accepting pauses at the connection limit, or when the system is out of resources.
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Accepts connections. Implements the two methods of asyncio's Server that uvicorn calls: close and wait_closed."""

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[..., asyncio.Protocol],
        connections: Sized,
        max_connections: int,
        slot: WorkerSlot | None = None,
    ) -> None:
        """Start accepting connections in the running event loop.

        Args:
            listening: The shared socket.
            protocol: Creates the protocol for a new connection. It must call its argument `on_lost` once the connection
                is closed.
            connections: The open connections.
            max_connections: Maximum number of open connections. Further ones wait in the socket's queue.
            slot: Slot in which this worker publishes its connection count for the other workers. None: never yield.
        """
        self._socket = listening
        self._protocol = partial(protocol, on_lost=self.publish_count)
        self._connections = connections
        self._max_connections = max_connections
        self._slot = slot
        self._no_yield_until_s = 0.0
        self._unused_yields = 0  # Consecutive yields after which the connection was still waiting.
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self.publish_count()
        self._loop.add_reader(self._socket, self.accept_or_yield)

    def close(self) -> None:
        """Accept the connections that are waiting, then stop."""
        if self._slot is not None:
            self._slot.clear()
            self._slot = None
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        while self.accept_or_yield():
            pass
        # accept_or_yield may have paused, which schedules a new reader.
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        self._socket.close()

    async def wait_closed(self) -> None:
        """Wait until every accepted connection has been set up."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def publish_count(self) -> None:
        """Write this worker's number of connections to its slot."""
        if self._slot is not None:
            self._slot.set(self.count())

    def count(self) -> int:
        """Return the number of connections, including those that are being set up."""
        return len(self._connections) + len(self._connecting)

    def accept_or_yield(self) -> bool:
        """Accept a connection, unless this worker is full or yields. Return whether a connection was accepted."""
        count = self.count()
        if count >= self._max_connections:
            self.pause(PAUSE_S)
            return False
        if self._slot is not None and self._loop.time() >= self._no_yield_until_s and self._slot.exceeds_another(count):
            self.pause(YIELD_S, then=self.accept_after_yield)
            return False
        return self.accept()

    def accept_after_yield(self) -> None:
        """Accept the connection if no other worker has done so, because the others are busy or stopped."""
        self._unused_yields = self._unused_yields + 1 if self.accept() else 0
        if self._unused_yields >= MAX_UNUSED_YIELDS:
            self._unused_yields = 0
            self._no_yield_until_s = self._loop.time() + NO_YIELD_S

    def accept(self) -> bool:
        """Accept one connection and set up its protocol. Return whether a connection was accepted."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # Another worker accepted it, or the client closed it.
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                raise
            log.warning("Cannot accept connections for %g s: %s", PAUSE_S, error.strerror)
            self.pause(PAUSE_S)
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(self.connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        self.publish_count()
        return True

    async def connect(self, connection: socket.socket) -> None:
        """Set up the protocol of an accepted connection."""
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # The client has closed the connection.
            connection.close()

    def pause(self, seconds: float, then: Callable[[], object] | None = None) -> None:
        """Stop accepting for a while. New connections wait in the socket's queue, or another worker accepts them.

        Args:
            seconds: How long to pause.
            then: Called when accepting resumes.
        """

        def resume() -> None:
            self._loop.add_reader(self._socket, self.accept_or_yield)
            if then is not None:
                then()

        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, resume)
