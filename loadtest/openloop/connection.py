"""A client's keep-alive connection: one request at a time, as little work for each as can be."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

LOST = 0  # sent, and never answered
REFUSED = -1  # no connection to be had
HUNG = -2  # no whole answer within its own limit
HUNG_UP = -3  # by the client, as it meant to


class Exchange(Protocol):
    """A request on its way."""

    message: bytes
    sent_s: float

    def end(self, status: int, body: bytes) -> None:
        """status: HTTP's, or one of the above."""


class Connection(asyncio.Protocol):
    """released(connection, usable): it has no request any more."""

    def __init__(self, released: Callable[["Connection", bool], None]) -> None:
        self._released = released
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None

    def send(self, exchange: Exchange) -> None:
        assert self._transport is not None
        self.exchange = exchange
        exchange.sent_s = time.monotonic()
        self._transport.write(exchange.message)

    def give_up(self, status: int) -> None:
        """Ends its request as `status` and the connection with it."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end(status, b"")
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up(LOST)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        body, self._body = b"".join(self._body), []
        exchange, self.exchange = self.exchange, None
        usable = self._parser.should_keep_alive()
        if exchange is None:  # an answer to nothing
            self.close()
            return
        exchange.end(status, body)
        self._released(self, usable)

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up(LOST)
        self._released(self, False)
