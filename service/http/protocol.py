"""HTTP on a connection, where Uvicorn's own is too trusting or too brief.

* A request for scores that has no room is answered 429 before anything of it is decoded: what a server cannot do must
  cost it next to nothing.
* A client that begins a request and does not go on, or takes no answer, loses its connection.
* A head (or a trailer) has a limit: httptools joins the pieces of one endless header again and again.
* A request for scores is answered without the steps of ASGI, which check and copy what is known to be right.
* `Upgrade:` is not there for us: Java's client asks for h2c by default, and its body would be lost.
* What is no HTTP is answered as a problem, like everything else and in its turn, and says nothing in the log.
* A client that closes its side of the connection is taken to have gone, as Uvicorn and most servers do.
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
from service.api.schemas import SCORE_PATH
from service.http.early_responses import overloaded, problem
from service.http.header_limits import TOO_LARGE, Head, HeadTooLarge, without_upgrade
from service.settings import Settings

MOST_UNREAD_BYTES = 256 * 1024  # of refusals, on one connection
LINGER_S = 1.0  # for a client to read why, while it still sends

NO_HTTP = "What came is not HTTP/1.1: send a request such as /docs shows"
MOST_AHEAD = 64  # requests of one connection that wait for the answers before theirs
TOO_MANY_AHEAD = f"More than {MOST_AHEAD} requests wait on this connection for their turn: read the answers first"
NO_TUNNEL = "This server is no proxy, and takes no CONNECT"
TOO_SLOW = "The request's head did not arrive in time: send it at once"

Score = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """How long a client may take, in seconds."""

    head_s: float
    idle_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.head_timeout_ms / 1e3, settings.keep_alive_ms / 1e3)


class _TooManyAhead(Exception):
    pass


class Protocol(HttpToolsProtocol):
    """An endless header is noticed at most one read (256 KiB) after its limit. parts: see service/app.py. score: what
    answers a POST to SCORE_PATH; None: the application, as everything else."""

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        parts: Any,
        score: Score | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._parts = parts
        self._score = score
        self.is_last = False  # the next answer is the last one on this connection
        self._refused = False  # what still comes is not read
        self._refusal = b""  # that waits for the answers before it
        self._answering: RequestResponseCycle | None = None  # the one whose turn it is, or was
        self._ends = False  # its last answer has been given
        self._head = Head()
        self._upgrades = False
        self._unread: RequestResponseCycle | None = None  # is being scored, or will be when its body is there
        self._unsent = 0  # bytes of answers, when it was last looked
        self._in_hand: set[RequestResponseCycle] = set()
        self._in_message = True  # a new connection has to say something
        self._since_s = self.loop.time()  # waiting for the client

    def sweep(self, now: float) -> None:
        """Ends the connection of a client that does not go on."""
        if not self.transport.is_closing():
            unsent = self.transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._since_s = now  # it reads, if slowly
            self._unsent = unsent
        waited_s = now - self._since_s
        if self._unsent:
            if waited_s > self._limits.head_s:
                self.transport.abort()  # takes no answer
        elif self.cycle is not None and not self.cycle.response_complete:
            self._since_s = now  # the server's turn
        elif self._in_message and waited_s > self._limits.head_s:
            if self.cycle is None and not self._refused and self._head.has_begun:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, TOO_SLOW)
            else:
                self.transport.close()
        elif waited_s > self._limits.idle_s:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        while data:
            data = self._read(data)

    def _read(self, data: bytes) -> bytes:
        """What has to be read yet: all from the head of a request that asked for an upgrade."""
        self._head.feed(len(data))
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooManyAhead):
                self._refuse(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_AHEAD)
            elif isinstance(error.__context__, HeadTooLarge):
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, NO_HTTP)
            return b""
        else:
            if self._head.is_endless:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LARGE)
            return b""
        return self._without_upgrade(rest)

    def on_message_begin(self) -> None:
        self._head.begin()
        self._upgrades = False
        self._in_message = True
        self._since_s = self.loop.time()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head.count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of trailers, too, which are counted and say nothing (RFC 9110, 6.5.1)."""
        self._head.count(len(name) + len(value), len(self.headers))
        if self._head.is_open:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head.is_open = False
        self._upgrades = self.parser.should_upgrade()
        if len(self.pipeline) >= MOST_AHEAD:
            raise _TooManyAhead
        if not self._upgrades:
            self.scope["state"]["arrived_s"] = time.perf_counter() - self._parts.admission.lag_s
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._head.hear()

    def on_body(self, body: bytes) -> None:
        self._head.hear()
        super().on_body(body)

    def on_message_complete(self) -> None:
        # With an upgrade the parser takes the body for another protocol's.
        self._in_message = self._upgrades
        if not self._upgrades:
            super().on_message_complete()
            if self.cycle is not None:
                self._is_read(self.cycle)

    def leave(self, now: float, patience_s: float) -> None:
        """Closes it when it is idle, and has been for so long that its client hardly sends just now."""
        if self.cycle is None or self.cycle.response_complete:
            if now - self._since_s > patience_s:
                self.transport.close()
        else:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        super().on_response_complete()
        self._say_refusal()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._ends:
            return
        self._answering = cycle
        if self.is_last or self._parts.draining:
            cycle.keep_alive = False
        if cycle.scope["path"] != SCORE_PATH or cycle.scope["method"] != "POST":
            _end_if_body_is_awaited(cycle)
            super()._start_asgi_task(cycle, app)
        elif self._parts.admission.has_room():
            answering = cycle.run_asgi(app) if self._score is None else self._answer(cycle, self._score)
            task = self.loop.create_task(answering)
            task.add_done_callback(lambda done: self._ended(done, cycle))
            self.tasks.add(task)
            self._unread = cycle
            if not cycle.more_body:
                self._is_read(cycle)
        else:
            self._refuse_one(cycle)

    async def _answer(self, cycle: RequestResponseCycle, score: Score) -> None:
        """What Uvicorn's cycle and Starlette's response do, for one whole response at once."""
        try:
            request = Request(cycle.scope, cycle.receive)  # type: ignore[arg-type]  # Uvicorn's types, and Starlette's
            response = await score(request)
            if self.flow.write_paused and not cycle.disconnected:
                await self.flow.drain()
            if not cycle.disconnected and not self.transport.is_closing():
                self._write(cycle, response)
        finally:
            if not cycle.response_complete and not cycle.disconnected:
                self.transport.close()

    def _write(self, cycle: RequestResponseCycle, response: Response) -> None:
        self._leave(cycle)  # now: its client may send the next one before this task has ended
        _end_if_body_is_awaited(cycle)
        headers = [*self.server_state.default_headers, *response.raw_headers]
        if not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self.transport.write(b"".join([STATUS_LINE[response.status_code], lines, b"\r\n", response.body]))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._close(at_once=not cycle.more_body)
        self.on_response_complete()

    def _close(self, at_once: bool) -> None:
        """Not at once: what is closed before all was read is reset, and the answer lost with it."""
        self._ends = True
        if at_once:
            self.transport.close()
        else:
            self._refused = True
            self.flow.resume_reading()
            self.loop.call_later(LINGER_S, self.transport.close)

    def _is_read(self, cycle: RequestResponseCycle) -> None:
        """From now on it is in hand. A client that sends no body must not keep others out."""
        if cycle is self._unread:
            self._unread = None
            self._in_hand.add(cycle)
            self._parts.admission.enter()

    def _ended(self, task: Any, cycle: RequestResponseCycle) -> None:
        self.tasks.discard(task)
        if cycle is self._unread:
            self._unread = None
        self._leave(cycle)

    def _leave(self, cycle: RequestResponseCycle) -> None:
        if cycle in self._in_hand:
            self._in_hand.discard(cycle)
            self._parts.admission.leave()

    def _refuse_one(self, cycle: RequestResponseCycle) -> None:
        """429 for this request; the connection goes on."""
        self._parts.metrics.count_early_rejection()
        if self.transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            self.transport.abort()  # asks and asks, and takes no answer
            return
        _end_if_body_is_awaited(cycle)
        self.transport.write(overloaded(cycle, self.server_state.default_headers))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self._close(at_once=False)
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._refused = True
        if self._answering is not None and not self._answering.response_complete:
            self._withdraw(self._answering)  # Uvicorn tells the newest one only
        super().connection_lost(exc)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The head for a fresh parser, without what asked for the upgrade, and the rest."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, NO_TUNNEL)
            return b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn does
        return without_upgrade(method, self.url, version, self.headers) + rest

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answers for the connection, after the requests that have come whole, and closes it."""
        self._refused = True
        details = ProblemDetails("about:blank", status.phrase, status, detail, request_id_for(""))
        self._refusal = problem(details, self.server_state.default_headers, [(b"connection", b"close")])
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:  # its body will never be whole
            if self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
            self._withdraw(cycle)
        self._say_refusal()

    def _withdraw(self, cycle: RequestResponseCycle) -> None:
        """Nobody waits for it."""
        cycle.disconnected = True
        cycle.message_event.set()

    def _say_refusal(self) -> None:
        """When no answer is owed any more, and none has said that it is the last."""
        now = self._answering
        if not self._refusal or (now is not None and not now.response_complete and not now.disconnected):
            return
        if not self._ends and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self._close(at_once=False)
        self._refusal = b""


def _end_if_body_is_awaited(cycle: RequestResponseCycle) -> None:
    """With `Expect: 100-continue` it may come or not, and what follows could be either."""
    if cycle.waiting_for_100_continue:
        cycle.keep_alive = False
