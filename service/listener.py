"""Accepts connections on a socket that several workers share.

One connection at a time: whoever takes all that wait would have them all to itself for as long as they live.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sized

log = logging.getLogger(__name__)

PAUSE_S = 0.1  # of accepting, while there is no place or no file descriptor
NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Has the two methods of asyncio's Server that Uvicorn calls. connections: those that are open."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], connections: Sized, most: int
    ) -> None:
        self._socket = listening
        self._protocol = protocol
        self._connections = connections
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Takes those that wait, and no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        while self._accept():
            pass
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        self._socket.close()

    async def wait_closed(self) -> None:
        if self._starting:
            await asyncio.wait(self._starting)

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> bool:
        """Whether there was one."""
        if len(self._connections) + len(self._starting) >= self._most:
            self._wait_a_little()
            return False
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker has it, or it is gone
            return False
        except OSError as error:
            if error.errno not in NO_MORE:
                raise
            log.warning("cannot accept connections: %s", error.strerror)
            self._wait_a_little()
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(self._start(connection))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return True

    async def _start(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has gone already
            connection.close()

    def _wait_a_little(self) -> None:
        """The others wait in the socket's queue, or another worker takes them."""
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(PAUSE_S, self._listen)
