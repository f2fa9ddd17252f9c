"""A client's keep-alive connection. It sends one request at a time, with as little work per request as possible."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

# Statuses for requests that have no HTTP status.
LOST = 0  # sent, but the connection closed before the answer arrived
REFUSED = -1  # no connection could be opened
HUNG = -2  # the answer was not complete in time
HUNG_UP = -3  # the client closed the connection on purpose


class Exchange(Protocol):
    """A request in flight."""

    message: bytes
    sent_s: float

    def end(self, status: int, body: bytes) -> None:
        """Handle the result. status: the HTTP status, or one of the constants above."""


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        released: Called when the connection no longer has a request in flight, with the connection and whether it can
            send another one.
    """

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
        """End the request in flight, if any, with this status, and close the connection."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end(status, b"")
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it

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
        if exchange is None:  # an answer without a request
            self.close()
            return
        exchange.end(status, body)
        self._released(self, usable)

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up(LOST)
        self._released(self, False)
