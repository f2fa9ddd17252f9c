"""HTTP on a connection, where Uvicorn's own is too trusting or too brief.

* A head (or a trailer) has a limit: httptools joins the pieces of one endless header again and again.
* `Upgrade:` is not there for us: Java's client asks for h2c by default, and its body would be lost.
* What is no HTTP is answered as a problem, like everything else, and says nothing in the log.
"""

import uuid
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import ProblemDetails

LONGEST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 200
LINGER_S = 1.0  # for a client to read why, while it still sends

TOO_LARGE = (
    f"This server reads at most {MOST_HEADERS} headers and {LONGEST_HEAD_BYTES} bytes of them with the URL: send fewer"
)
NO_HTTP = "What came is not HTTP/1.1: send a request such as /docs shows"
NO_TUNNEL = "This server is no proxy, and takes no CONNECT"
HOP_BY_HOP = (b"upgrade", b"http2-settings")


class _HeadTooLarge(Exception):
    pass


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`. An endless header is noticed at most one read (256 KiB) after its limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused = False
        self._head_bytes = 0  # of the URL and the headers that are complete
        self._silent_bytes = 0  # since the parser last said anything
        self._upgrades = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadTooLarge):
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, NO_HTTP)
        else:
            if self._silent_bytes > LONGEST_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)

    def on_message_begin(self) -> None:
        self._silent_bytes = self._head_bytes = 0
        self._upgrades = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of trailers, too."""
        self._count(len(name) + len(value))
        if len(self.headers) >= MOST_HEADERS:
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._upgrades = self.parser.should_upgrade()
        if not self._upgrades:
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._silent_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        # With an upgrade the parser takes the body for another protocol's.
        if not self._upgrades:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._refused = True
        super().connection_lost(exc)

    def _count(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._head_bytes > LONGEST_HEAD_BYTES:
            raise _HeadTooLarge

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Reads the head again, by a fresh parser and without what asked for the upgrade; then the rest."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, NO_TUNNEL)
            return
        head = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
        head += [b"%b: %b\r\n" % header for header in self.headers if header[0] not in HOP_BY_HOP]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn does
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answers for the connection, and closes it."""
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            # Its body will never be whole.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.pipeline.clear()
        known_as = uuid.uuid4().hex
        body = msgspec.json.encode(ProblemDetails("about:blank", status.phrase, status, detail, known_as))
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", known_as.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"".join([STATUS_LINE[status], lines, b"\r\n", body]))
        # What is closed before all was read is reset, and the answer lost with it.
        self.loop.call_later(LINGER_S, self.transport.close)
