"""The application: builds the parts in order, closes them in reverse, and routes to them."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import msgspec
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from service.api.auth import read_keys
from service.api.body import JSON
from service.api.openapi import openapi
from service.api.problem_details import render_problem
from service.api.schemas import SCORE_PATH, ModelField, ModelResponse
from service.errors import NotReady, Problem
from service.models.loaded import SharedParts, open_model
from service.models.manager import ModelManager
from service.request_log.writer import RequestLog
from service.scoring.admission import Admission
from service.settings import Settings, read_settings
from service.telemetry.metrics import Metrics

TITLE = "CTR scoring"
DISTRIBUTION = "stec-ctr"


class Application(FastAPI):
    """FastAPI, with a short way to POST /v1/score: middlewares and routes cost as much as scoring one candidate."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SCORE_PATH and scope["method"] == "POST":
            response = await self.score(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def score(self, request: Request) -> Response:
        """The answer to a POST to /v1/score, whatever it is."""
        request.scope["app"] = self
        try:
            return await _score(request)
        except Exception as error:
            return await render_problem(request, error)


def create_app(settings: Settings | None = None) -> Application:
    """`settings`: None reads them from the environment.

    Raises:
        SettingsError: here and now; a bundle's and the engine's errors come when the lifespan starts.
    """
    known = settings or read_settings(os.environ)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as parts:
            await _build(app, known, parts)
            yield

    app = Application(
        title=TITLE,
        version=version(DISTRIBUTION),
        lifespan=lifespan,
        docs_url="/docs" if known.docs else None,
        openapi_url="/openapi.json" if known.docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.draining = False
    app.state.metrics = metrics = Metrics()
    app.state.scrape = metrics.text  # of this process; a supervisor has those of all
    app.state.admission = Admission(known.max_in_flight, known.queue_target_ms / 1e3, known.max_buffered_bytes)
    add_error_handlers(app)
    _route(app, known)
    return app


def add_error_handlers(app: FastAPI) -> None:
    for error in (Problem, HTTPException, Exception):
        app.add_exception_handler(error, render_problem)


def drain(app: FastAPI) -> None:
    """/readyz says 503 from now on. Whoever asks for scores all the same gets them, as long as the process lives."""
    app.state.draining = True


async def _build(app: FastAPI, settings: Settings, parts: AsyncExitStack) -> None:
    assert settings.bundle is not None, "the supervisor chooses a store's bundle"
    keys = None if settings.api_keys_file is None else read_keys(settings.api_keys_file)
    log = None if settings.request_log is None else RequestLog(settings, app.state.metrics)
    if log is not None:
        parts.push_async_callback(asyncio.to_thread, log.close)
    shared = SharedParts(settings, app.state.metrics, app.state.admission, keys, log)
    model = await open_model(settings.bundle, shared)
    app.state.serving = serving = ModelManager(model, shared)
    parts.push_async_callback(serving.close)
    serving.start()


def _route(app: FastAPI, settings: Settings) -> None:
    metrics = settings.admin_port is None
    document = openapi(TITLE, app.version, metrics)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own way to replace it
    # Starlette's routes and not FastAPI's: nothing is between the raw body and the life of a request.
    app.add_route(SCORE_PATH, _score, methods=["POST"])
    app.add_route("/v1/explain", _explain, methods=["POST"])
    app.add_route("/v1/model", _model, methods=["GET"])
    add_probes(app, metrics)


def add_probes(app: FastAPI, metrics: bool = True) -> None:
    app.add_route("/livez", _livez, methods=["GET"])
    app.add_route("/readyz", _readyz, methods=["GET"])
    if metrics:
        app.add_route("/metrics", _metrics, methods=["GET"])


def _serving(request: Request) -> ModelManager:
    serving: ModelManager = request.app.state.serving
    return serving


async def _score(request: Request) -> Response:
    with _serving(request).model.in_use() as model:
        return await model.scorer.score(request)


async def _explain(request: Request) -> Response:
    with _serving(request).model.in_use() as model:
        return await model.explainer.explain(request)


async def _model(request: Request) -> Response:
    model = _serving(request).model
    model.scorer.check_key(request)
    manifest = model.bundle.manifest
    answer = ModelResponse(
        name=manifest.name,
        type=manifest.model,
        version=manifest.version,
        created=manifest.created,
        metrics=manifest.metrics,
        fields=[ModelField(f.name, f.side, f.kind) for f in model.bundle.schema.fields],
        attention=manifest.attention,
        graph=model.engine.graph,
        device=model.engine.device,
        cascade=manifest.cascade,
    )
    return Response(msgspec.json.encode(answer), media_type=JSON)


async def _livez(request: Request) -> Response:
    return PlainTextResponse("alive\n")


async def _readyz(request: Request) -> Response:
    model = _serving(request).model
    model.readiness.check()
    if request.app.state.draining:
        raise NotReady("draining: the server is about to end, ask another one")
    return PlainTextResponse(f"ready: {model.version}\n")


async def _metrics(request: Request) -> Response:
    return Response(await request.app.state.scrape(), media_type=CONTENT_TYPE_LATEST)
