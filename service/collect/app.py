"""The ASGI application of ctr-collect."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import msgspec
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.api.auth import ApiKeys, read_keys
from service.api.body import JSON, check_content_type, read_body
from service.api.problem_details import only_problems, problem_response, problem_type, render_problem, request_id
from service.collect.errors import NoValidEvent, StorageFull
from service.collect.event_folder import EventFolder
from service.collect.events import CheckedEvents, Limits, check_events
from service.collect.group_commit import GroupCommit
from service.collect.metrics import NOT_STORED, STORED, CollectMetrics
from service.collect.openapi import EVENTS_PATH, NDJSON_TYPES, EventsResponse, InvalidEvents, openapi
from service.collect.redis_stream import StreamReader
from service.collect.settings import CollectSettings, read_collect_settings
from service.errors import NotReady, Problem
from service.scoring.admission import Admission
from service.settings import COLLECT_PREFIX

TITLE = "CTR events"
DISTRIBUTION = "stec-ctr"
CONTENT_TYPES = (JSON, *NDJSON_TYPES)


class CollectApplication(FastAPI):
    """FastAPI with a handler for POST /v1/events that the HTTP protocol calls directly."""

    async def answer(self, request: Request) -> Response:
        """Return the response to POST /v1/events, including error responses."""
        request.scope["app"] = self
        try:
            collector: Collector = self.state.collector
            return await collector.collect(request)
        except Exception as error:
            return await render(request, error)


def create_app(settings: CollectSettings | None = None, clock: Callable[[], float] = time.time) -> CollectApplication:
    """Return the application. Its lifespan checks the folder regularly, reads the Redis stream, and closes the files.

    Args:
        settings: The settings. If it is None, they are read from the environment.
        clock: Returns seconds since 1970.

    Raises:
        SettingsError: A setting is invalid, or the folder is not writable.
    """
    settings = settings or read_collect_settings(os.environ)
    metrics = CollectMetrics()
    keys = None if settings.api_keys_file is None else read_keys(settings.api_keys_file)
    folder = EventFolder(settings, metrics, clock)
    commit = GroupCommit(folder, metrics)
    reader = None if settings.redis_url is None else StreamReader(settings, commit, metrics, clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        checking = asyncio.create_task(commit.check_regularly())
        reading = None if reader is None else asyncio.create_task(reader.run())
        try:
            yield
        finally:
            if reader is not None and reading is not None:
                await reader.stop(reading)
            checking.cancel()
            await commit.close()

    app = CollectApplication(
        title=TITLE,
        version=version(DISTRIBUTION),
        lifespan=lifespan,
        docs_url="/docs" if settings.docs else None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.draining = False  # The server sets this to True before it stops. Then /readyz answers 503.
    app.state.metrics = metrics
    app.state.folder = folder
    # Nothing records waits, so the limit stays at max_in_flight.
    app.state.admission = Admission(settings.max_in_flight, float("inf"), settings.max_buffered_bytes)
    app.state.collector = Collector(settings, commit, metrics, app.state.admission, keys, clock)
    document = openapi(TITLE, app.version)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI documents replacing it this way
    for error in (Problem, HTTPException, Exception):
        app.add_exception_handler(error, render)
    app.add_route(EVENTS_PATH, app.answer, methods=["POST"])
    app.add_route("/livez", livez, methods=["GET"])
    app.add_route("/readyz", readyz, methods=["GET"])
    app.add_route("/metrics", scrape, methods=["GET"])
    return app


class Collector:
    """Handles POST /v1/events."""

    def __init__(
        self,
        settings: CollectSettings,
        commit: GroupCommit,
        metrics: CollectMetrics,
        admission: Admission,
        keys: ApiKeys | None,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._limits = Limits(settings.max_events, settings.max_skew_s)
        self._commit = commit
        self._metrics = metrics
        self._admission = admission
        self._keys = keys
        self._clock = clock

    async def collect(self, request: Request) -> Response:
        """Store the events of a request, and return 202 when they are on the disk.

        Raises:
            Problem: No event was stored.
        """
        with self._metrics.request(), only_problems(request, log_values=False), self._admission.buffer() as hold:
            client = None if self._keys is None else self._keys.require(request.headers)
            check_content_type(request, CONTENT_TYPES)
            timeout_s = self._settings.body_timeout_ms / 1e3
            body = await read_body(request, self._settings.max_body_bytes, timeout_s, hold, COLLECT_PREFIX)
            checked = check_events(body, self._clock(), client, self._limits)
            await self._store(checked)
            answer = EventsResponse(request_id(request), checked.types.total(), checked.invalid)
            headers = {"x-request-id": answer.request_id}
            return Response(msgspec.json.encode(answer), 202, headers, media_type=JSON)

    async def _store(self, checked: CheckedEvents) -> None:
        outcome = NOT_STORED
        try:
            if not checked.types:
                raise NoValidEvent(checked.invalid)
            await self._commit.store(checked.lines)
            outcome = STORED
        finally:
            self._metrics.count_events(checked, outcome)


async def render(request: Request, error: Exception) -> Response:
    """Return the error response for an exception."""
    if isinstance(error, NoValidEvent):
        kind, known_as = problem_type(error), request_id(request)
        details = InvalidEvents(kind, error.title, error.status, error.detail, known_as, invalid=error.invalid)
        return problem_response(details, {})
    return await render_problem(request, error)


async def livez(request: Request) -> Response:
    """Handle GET /livez."""
    return PlainTextResponse("alive\n")


async def readyz(request: Request) -> Response:
    """Handle GET /readyz."""
    if request.app.state.draining:
        raise NotReady("The server is draining and will exit soon. Send requests to another server.")
    if (problem := request.app.state.folder.problem) is not None:
        raise StorageFull(problem)
    return PlainTextResponse("ready\n")


async def scrape(request: Request) -> Response:
    """Handle GET /metrics."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
