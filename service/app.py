"""The ASGI application. It routes requests, and opens the model at startup."""

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

from contract.pseudonyms import Pseudonymizer, PseudonymKeyError, read_pseudonym_key
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
from service.settings import Settings, SettingsError, read_settings
from service.telemetry.metrics import Metrics

TITLE = "CTR scoring"
DISTRIBUTION = "stec-ctr"


class Application(FastAPI):
    """FastAPI with a shortcut for POST /v1/score.

    Middleware and routing would take as long as scoring a candidate.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SCORE_PATH and scope["method"] == "POST":
            response = await self.score(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def score(self, request: Request) -> Response:
        """Return the response to POST /v1/score, including error responses."""
        request.scope["app"] = self
        try:
            return await score(request)
        except Exception as error:
            return await render_problem(request, error)


def create_app(settings: Settings | None = None) -> Application:
    """Return the application. It opens the bundle and the engine when its lifespan starts.

    Args:
        settings: The settings. If it is None, they are read from the environment.

    Raises:
        SettingsError: A setting is invalid.
    """
    settings = settings or read_settings(os.environ)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await open_serving(app, settings, stack)
            yield

    app = Application(
        title=TITLE,
        version=version(DISTRIBUTION),
        lifespan=lifespan,
        docs_url="/docs" if settings.docs else None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.draining = False  # A server sets this to True before it stops. Then /readyz answers 503.
    app.state.current_refused = None  # The supervisor sets this to the store's current version if it was refused.
    app.state.metrics = Metrics()
    app.state.scrape = app.state.metrics.text  # Covers only this process. A worker replaces it to cover all workers.
    app.state.admission = Admission(settings.max_in_flight, settings.queue_target_ms / 1e3, settings.max_buffered_bytes)
    add_error_handlers(app)
    has_metrics = settings.admin_port is None
    document = openapi(TITLE, app.version, has_metrics)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI documents replacing it this way
    # These are Starlette routes rather than FastAPI routes, because the handlers read and parse the raw body.
    app.add_route(SCORE_PATH, score, methods=["POST"])
    app.add_route("/v1/explain", explain, methods=["POST"])
    app.add_route("/v1/model", describe_model, methods=["GET"])
    add_probes(app, has_metrics)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Render every exception as problem details."""
    for error in (Problem, HTTPException, Exception):
        app.add_exception_handler(error, render_problem)


def add_probes(app: FastAPI, metrics: bool = True) -> None:
    """Add /livez, /readyz and, if `metrics` is true, /metrics."""
    app.add_route("/livez", livez, methods=["GET"])
    app.add_route("/readyz", readyz, methods=["GET"])
    if metrics:
        app.add_route("/metrics", scrape, methods=["GET"])


async def open_serving(app: FastAPI, settings: Settings, stack: AsyncExitStack) -> None:
    """Open everything that is needed to serve requests. `stack` closes it in reverse order.

    Raises:
        SettingsError, BundleError, EngineMissing: The settings, the bundle or onnxruntime cannot be used.
    """
    assert settings.bundle is not None, "the supervisor chooses a store's bundle"
    keys = None if settings.api_keys_file is None else read_keys(settings.api_keys_file)
    pseudonyms = open_pseudonyms(settings)
    log = None if settings.request_log is None else RequestLog(settings, app.state.metrics, pseudonyms=pseudonyms)
    if log is not None:
        stack.push_async_callback(asyncio.to_thread, log.close)
    shared = SharedParts(settings, app.state.metrics, app.state.admission, keys, log, pseudonyms)
    model = await open_model(settings.bundle, shared)
    app.state.serving = serving = ModelManager(model, shared)
    stack.push_async_callback(serving.close)
    serving.start()


def open_pseudonyms(settings: Settings) -> Pseudonymizer | None:
    """Return the key for pseudonyms, or None if the settings name none. Raises SettingsError."""
    if settings.pseudonym_key_file is None:
        return None
    try:
        return read_pseudonym_key(settings.pseudonym_key_file)
    except PseudonymKeyError as error:
        raise SettingsError(f"CTR_PSEUDONYM_KEY_FILE: {error}") from error


def serving_of(request: Request) -> ModelManager:
    """Return the manager of the model that serves a request."""
    serving: ModelManager = request.app.state.serving
    return serving


async def score(request: Request) -> Response:
    """Handle POST /v1/score."""
    with serving_of(request).model.in_use() as model:
        return await model.scorer.score(request)


async def explain(request: Request) -> Response:
    """Handle POST /v1/explain."""
    with serving_of(request).model.in_use() as model:
        return await model.explainer.explain(request)


async def describe_model(request: Request) -> Response:
    """Handle GET /v1/model."""
    model = serving_of(request).model
    model.scorer.check_key(request)
    manifest = model.bundle.manifest
    response = ModelResponse(
        name=manifest.name,
        type=manifest.model,
        version=manifest.version,
        created=manifest.created,
        metrics=manifest.metrics,
        warnings=manifest.warnings or (),
        fields=[
            ModelField(field.name, field.side, field.kind, field.source, field.transform, field.pseudonym)
            for field in model.bundle.schema.fields
        ],
        attention=manifest.attention,
        graph=model.engine.graph,
        device=model.engine.device,
        cascade=manifest.cascade,
    )
    if model.engine.kernel_lanes is not None:
        response.kernel_lanes = model.engine.kernel_lanes
    if request.app.state.current_refused is not None:
        response.current_refused = request.app.state.current_refused
    return Response(msgspec.json.encode(response), media_type=JSON)


async def livez(request: Request) -> Response:
    """Handle GET /livez."""
    return PlainTextResponse("alive\n")


async def readyz(request: Request) -> Response:
    """Handle GET /readyz."""
    model = serving_of(request).model
    model.readiness.check()
    if request.app.state.draining:
        raise NotReady("The server is draining and will exit soon. Send requests to another server.")
    refused = request.app.state.current_refused
    note = "" if refused is None else f" (the store's current version {refused} was refused: see the log)"
    return PlainTextResponse(f"ready: {model.version}{note}\n")


async def scrape(request: Request) -> Response:
    """Handle GET /metrics."""
    return Response(await request.app.state.scrape(), media_type=CONTENT_TYPE_LATEST)
