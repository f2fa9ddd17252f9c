"""HTTP/1.1 on one connection: uvicorn's httptools protocol, with admission control and limits.

Differences from uvicorn:

* A request of the direct route (/v1/score) over the limit on requests in flight gets a 429 before its body is decoded,
  because refusing a request must cost almost nothing.
* If a client stalls in the middle of a request, or does not read its responses, its connection is closed.
* Heads and trailers have a size limit, because httptools concatenates the pieces of an endless header on every read.
* Requests of the direct route bypass ASGI messages, which would validate and copy data that is known to be correct.
* `Upgrade:` is ignored. Java's HTTP client requests h2c by default, and uvicorn would lose the body of such a request.
* Invalid HTTP is answered with a problem document, after the responses to earlier requests. It is not logged.
* A client that closes its side of the connection is considered gone, as in uvicorn and most servers.

Uvicorn must call `_start_asgi_task` for each request: see service/http/uvicorn_support.py.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httptools
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.problem_details import ProblemDetails, request_id_for
from service.http.early_responses import overloaded_response, problem_response
from service.http.header_limits import HEAD_TOO_LARGE, HeadSize, HeadTooLarge, head_without_upgrade
from service.settings import HttpSettings

MAX_UNREAD_BYTES = 256 * 1024  # Unread 429 responses on one connection.
# How long to keep a connection open after an error, so that a client that is still sending can read the error.
LINGER_S = 1.0
MAX_PIPELINED = 64  # Requests on one connection that wait for the responses to earlier requests.

INVALID_HTTP = "This is not a valid HTTP/1.1 request. See /docs for an example."
TOO_MANY_PIPELINED = f"More than {MAX_PIPELINED} requests are pipelined on this connection. Read the responses first."
NO_CONNECT = "This server is not a proxy and does not support CONNECT."
HEAD_TIMEOUT = "The request line and headers did not arrive in time. Send them without a pause."


@dataclass(frozen=True)
class DirectRoute:
    """The path whose POST requests are subject to admission control, and are answered without ASGI messages."""

    path: str
    answer: Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """Timeouts for a client, in seconds.

    Attributes:
        head_s: Maximum time for a request's head to arrive, and for a client to read a response.
        idle_s: Maximum time until the next request on a connection.
    """

    head_s: float
    idle_s: float

    @classmethod
    def of(cls, settings: HttpSettings) -> Self:
        return cls(settings.head_timeout_ms / 1e3, settings.keep_alive_ms / 1e3)


class TooManyPipelined(Exception):
    """More than MAX_PIPELINED requests wait on this connection."""


class Protocol(HttpToolsProtocol):
    """One connection. A head that is too large is detected at most one read (256 KiB) past the limit.

    Args:
        limits: The client's timeouts.
        on_lost: Called when the connection has been closed.
        parts: The application's state, see service/app.py.
        direct: The direct route. If it is None, the application answers all requests.

    Attributes:
        close_after_response: Whether the next response is the last one on this connection.
    """

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        on_lost: Callable[[], None],
        parts: Any,
        direct: DirectRoute | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._on_lost = on_lost
        self._parts = parts
        self._direct = direct
        self.close_after_response = False
        self._ignores_input = False
        self._error_response = b""  # Sent after the responses to earlier requests. Ends the connection.
        self._current: RequestResponseCycle | None = None  # The request being answered, or the last answered one.
        self._last_response_sent = False
        self._head = HeadSize()
        self._is_upgrade = False
        self._awaiting_body: RequestResponseCycle | None = None  # An admitted request whose body is incomplete.
        self._unsent_bytes = 0  # Unsent bytes of responses at the last check.
        self._in_flight: set[RequestResponseCycle] = set()
        self._in_message = True  # A new connection has to send a request.
        self._waiting_since_s = self.loop.time()  # When the server started to wait for the client.

    def check_timeouts(self, now: float) -> None:
        """Close the connection if the client has exceeded a timeout."""
        if not self.transport.is_closing():
            unsent_bytes = self.transport.get_write_buffer_size()
            if unsent_bytes < self._unsent_bytes:
                self._waiting_since_s = now  # The client is reading, even if slowly.
            self._unsent_bytes = unsent_bytes
        waited_s = now - self._waiting_since_s
        if self._unsent_bytes:
            if waited_s > self._limits.head_s:
                self.transport.abort()  # The client does not read its responses.
        elif self.cycle is not None and not self.cycle.response_complete:
            self._waiting_since_s = now  # The client waits for the server.
        elif self._in_message and waited_s > self._limits.head_s:
            if self.cycle is None and not self._ignores_input and self._head.has_begun:
                self.refuse_connection(HTTPStatus.REQUEST_TIMEOUT, HEAD_TIMEOUT)
            else:
                self.transport.close()
        elif waited_s > self._limits.idle_s:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        self._unset_keepalive_if_required()
        while data:
            data = self.parse(data)

    def parse(self, data: bytes) -> bytes:
        """Parse bytes from the client. Return the bytes to parse next: an upgrade request, with the upgrade removed."""
        self._head.add_fed(len(data))
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, TooManyPipelined):
                self.refuse_connection(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_PIPELINED)
            elif isinstance(error.__context__, HeadTooLarge):
                self.refuse_connection(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HEAD_TOO_LARGE)
            else:
                self.refuse_connection(HTTPStatus.BAD_REQUEST, INVALID_HTTP)
            return b""
        else:
            if self._head.has_endless_line:
                self.refuse_connection(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HEAD_TOO_LARGE)
            return b""
        return self.restart_without_upgrade(rest)

    def on_message_begin(self) -> None:
        self._head.begin()
        self._is_upgrade = False
        self._in_message = True
        self._waiting_since_s = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head.add_parsed(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers count toward the limits and are otherwise ignored (RFC 9110, section 6.5.1)."""
        self._head.add_parsed(len(name) + len(value), len(self.headers))
        if self._head.in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head.in_headers = False
        self._is_upgrade = self.parser.should_upgrade()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TooManyPipelined
        if not self._is_upgrade:
            self.scope["state"]["arrived_s"] = time.perf_counter() - self._parts.admission.lag_s
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._head.mark_progress()

    def on_body(self, body: bytes) -> None:
        self._head.mark_progress()
        super().on_body(body)

    def on_message_complete(self) -> None:
        # After a head with an upgrade, the parser leaves the body to the other protocol, so the request is incomplete.
        self._in_message = self._is_upgrade
        if not self._is_upgrade:
            super().on_message_complete()
            if self.cycle is not None:
                self.count_if_admitted(self.cycle)

    def finish(self, now: float, min_idle_s: float) -> None:
        """Close the connection if it is idle, otherwise after its current response.

        Args:
            now: The event loop's time.
            min_idle_s: Close only connections that have been idle for longer than this. Their clients are unlikely to
                be sending a request.
        """
        if self.cycle is None or self.cycle.response_complete:
            if now - self._waiting_since_s > min_idle_s:
                self.transport.close()
        else:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self._waiting_since_s = self.loop.time()
        super().on_response_complete()
        self.send_error_if_due()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Start answering a request whose head is complete. Uvicorn calls this when it is the request's turn."""
        if self._last_response_sent:
            return
        self._current = cycle
        if self.close_after_response or self._parts.draining:
            cycle.keep_alive = False
        direct = self._direct
        if direct is None or cycle.scope["path"] != direct.path or cycle.scope["method"] != "POST":
            disable_keep_alive_if_body_is_uncertain(cycle)
            super()._start_asgi_task(cycle, app)
        elif self._parts.admission.has_room():
            task = self.loop.create_task(self.answer(cycle, direct))
            task.add_done_callback(lambda done: self.on_task_done(done, cycle))
            self.tasks.add(task)
            self._awaiting_body = cycle
            if not cycle.more_body:
                self.count_if_admitted(cycle)
        else:
            self.refuse_request(cycle)

    async def answer(self, cycle: RequestResponseCycle, direct: DirectRoute) -> None:
        """Answer a request and write the response in one piece. Replaces uvicorn's cycle and Starlette's response."""
        try:
            request = Request(cycle.scope, cycle.receive)  # type: ignore[arg-type]  # uvicorn's and Starlette's types
            response = await direct.answer(request)
            if self.flow.write_paused and not cycle.disconnected:
                await self.flow.drain()
            if not cycle.disconnected and not self.transport.is_closing():
                self.write_response(cycle, response)
        finally:
            if not cycle.response_complete and not cycle.disconnected:
                self.transport.close()

    def write_response(self, cycle: RequestResponseCycle, response: Response) -> None:
        # Release the request before the task ends, because by then the client may have sent its next request.
        self.release(cycle)
        disable_keep_alive_if_body_is_uncertain(cycle)
        headers = [*self.server_state.default_headers, *response.raw_headers]
        if not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self.transport.write(b"".join([STATUS_LINE[response.status_code], lines, b"\r\n", response.body]))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.close_connection(at_once=not cycle.more_body)
        self.on_response_complete()

    def close_connection(self, at_once: bool) -> None:
        """Close the connection after its last response.

        Args:
            at_once: Close immediately. Otherwise close after LINGER_S, because closing a socket with unread input
                resets the connection and discards the response.
        """
        self._last_response_sent = True
        if at_once:
            self.transport.close()
        else:
            self._ignores_input = True
            self.flow.resume_reading()
            self.loop.call_later(LINGER_S, self.transport.close)

    def count_if_admitted(self, cycle: RequestResponseCycle) -> None:
        """Count an admitted request as in flight, now that its body is complete.

        It is not counted earlier, because a client that sends a head and no body must not use up the limit.
        """
        if cycle is self._awaiting_body:
            self._awaiting_body = None
            self._in_flight.add(cycle)
            self._parts.admission.enter()

    def on_task_done(self, task: Any, cycle: RequestResponseCycle) -> None:
        self.tasks.discard(task)
        if cycle is self._awaiting_body:
            self._awaiting_body = None
        self.release(cycle)

    def release(self, cycle: RequestResponseCycle) -> None:
        """Stop counting a request as in flight."""
        if cycle in self._in_flight:
            self._in_flight.discard(cycle)
            self._parts.admission.leave()

    def refuse_request(self, cycle: RequestResponseCycle) -> None:
        """Answer this request with a 429. The connection stays open for the next request."""
        self._parts.metrics.count_early_rejection()
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()  # The client keeps sending requests and reads no responses.
            return
        disable_keep_alive_if_body_is_uncertain(cycle)
        self.transport.write(overloaded_response(cycle, self.server_state.default_headers))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.close_connection(at_once=False)
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ignores_input = True
        # Uvicorn notifies only the newest request of the connection, which need not be the one being answered.
        if self._current is not None and not self._current.response_complete:
            self.disconnect(self._current)
        super().connection_lost(exc)
        self._on_lost()

    def restart_without_upgrade(self, rest: bytes) -> bytes:
        """Replace the parser, which stopped at an upgrade.

        Args:
            rest: The bytes after the head.

        Returns:
            The bytes to parse: the head without its upgrade headers, and the rest.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self.refuse_connection(HTTPStatus.METHOD_NOT_ALLOWED, NO_CONNECT)
            return b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn does.
        return head_without_upgrade(method, self.url, version, self.headers) + rest

    def refuse_connection(self, status: HTTPStatus, detail: str) -> None:
        """Ignore further input, answer the requests that are complete, then send an error and close."""
        self._ignores_input = True
        details = ProblemDetails("about:blank", status.phrase, status, detail, request_id_for(""))
        self._error_response = problem_response(details, self.server_state.default_headers, [(b"connection", b"close")])
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:  # Its body will never be complete.
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
            self.disconnect(cycle)
        self.send_error_if_due()

    def disconnect(self, cycle: RequestResponseCycle) -> None:
        """Tell the application that the client no longer waits for this response."""
        cycle.disconnected = True
        cycle.message_event.set()

    def send_error_if_due(self) -> None:
        """Send the error from refuse_connection() once all earlier requests are answered.

        Do nothing if there is no error to send, or if an earlier response closed the connection.
        """
        current = self._current
        if not self._error_response or (
            current is not None and not current.response_complete and not current.disconnected
        ):
            return
        if not self._last_response_sent and not self.transport.is_closing():
            self.transport.write(self._error_response)
            self.close_connection(at_once=False)
        self._error_response = b""


def disable_keep_alive_if_body_is_uncertain(cycle: RequestResponseCycle) -> None:
    """Close the connection after this response if the client waits for `100 Continue`.

    The client may or may not send its body after the response, so the next bytes could be a body or a request.
    """
    if cycle.waiting_for_100_continue:
        cycle.keep_alive = False
