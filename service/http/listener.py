"""Accepts connections on a socket that several workers share.

One connection at a time: whoever takes all that wait would have them all to itself for as long as they live. And who
has more connections than another worker steps aside for a moment.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sized

from service.http.connection_counts import Place

log = logging.getLogger(__name__)

STEP_ASIDE_S = 0.005  # longer than another one takes to come to it
MOST_IN_VAIN = 50  # a quarter of a second: less is a busy moment of the other one
ALONE_S = 0.1  # without stepping aside, after nobody came so often
PAUSE_S = 0.1  # of accepting, while there is no place or no file descriptor
NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Has the two methods of asyncio's Server that Uvicorn calls. connections: those that are open. place: where the
    other workers can see how many that are; None: there are no others.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        most: int,
        place: Place | None = None,
    ) -> None:
        self._socket = listening
        self._protocol = protocol
        self._connections = connections
        self._most = most
        self._place = place
        self._alone_until_s = 0.0
        self._in_vain = 0  # times in a row that it stepped aside and nobody came
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self.tell()
        self._listen()

    def close(self) -> None:
        """Takes those that wait, and no more."""
        if self._place is not None:
            self._place.leave()
            self._place = None
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

    def tell(self) -> None:
        """The other workers, how many connections there are."""
        if self._place is not None:
            self._place.put(self._number)

    @property
    def _number(self) -> int:
        return len(self._connections) + len(self._starting)

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> bool:
        """Whether there was one."""
        if self._number >= self._most:
            self._pause_for(PAUSE_S)
            return False
        if self._place is not None and self._loop.time() >= self._alone_until_s and self._place.has_more(self._number):
            self._pause_for(STEP_ASIDE_S, then=self._take_what_is_left)
            return False
        return self._take()

    def _take_what_is_left(self) -> None:
        """Nobody wanted it: the others have no time just now, or stand still."""
        self._in_vain = self._in_vain + 1 if self._take() else 0
        if self._in_vain >= MOST_IN_VAIN:
            self._in_vain = 0
            self._alone_until_s = self._loop.time() + ALONE_S

    def _take(self) -> bool:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker has it, or it is gone
            return False
        except OSError as error:
            if error.errno not in NO_MORE:
                raise
            log.warning("cannot accept connections: %s", error.strerror)
            self._pause_for(PAUSE_S)
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(self._start(connection))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        self.tell()
        return True

    async def _start(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has gone already
            connection.close()

    def _pause_for(self, seconds: float, then: Callable[[], object] | None = None) -> None:
        """Those that wait do so in the socket's queue, or another worker takes them."""

        def go_on() -> None:
            self._listen()
            if then is not None:
                then()

        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, go_on)
