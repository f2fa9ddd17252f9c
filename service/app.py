"""The application: builds the parts in order, closes them in reverse, and routes to them."""

import asyncio
import gc
import logging
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

from contract.bundle import GOLDEN, Bundle, BundleError, open_bundle
from contract.encode import Encoder
from contract.golden import TOLERANCE, GoldenRequest, read_golden
from service.batching import Batcher
from service.engine import Engine, explained_difference, golden_answers, golden_difference, open_engine
from service.errors import NotReady, Problem, render_problem
from service.explain import Explainer
from service.lookup import RedisLookup, connect
from service.metrics import Metrics
from service.openapi import openapi
from service.score import JSON, Readiness, Scorer
from service.settings import Settings, read_settings
from service.wire import ModelField, ModelResponse

log = logging.getLogger(__name__)

TITLE = "CTR scoring"
DISTRIBUTION = "stec-ctr"


def create_app(settings: Settings | None = None) -> FastAPI:
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

    app = FastAPI(title=TITLE, version=version(DISTRIBUTION), lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.state.draining = False
    for error in (Problem, HTTPException, Exception):
        app.add_exception_handler(error, render_problem)
    _route(app)
    return app


def drain(app: FastAPI) -> None:
    """/readyz says 503 from now on. Whoever asks for scores all the same gets them, as long as the process lives."""
    app.state.draining = True


async def _build(app: FastAPI, settings: Settings, parts: AsyncExitStack) -> None:
    bundle = await asyncio.to_thread(open_bundle, settings.bundle)
    golden = _golden(bundle)
    engine = await asyncio.to_thread(
        open_engine, bundle, settings.threads, settings.device, settings.device_strict, settings.max_rows
    )
    metrics = Metrics(bundle.manifest.name, bundle.manifest.version)
    redis = _redis(bundle, settings)
    if redis is not None:
        parts.push_async_callback(redis.close)
    batcher = Batcher(
        engine.run,
        metrics,
        slots=settings.slots,
        max_rows=settings.max_rows,
        max_queued_rows=settings.max_queued_rows,
    )
    parts.push_async_callback(batcher.close)
    readiness = Readiness()
    encoder = Encoder(bundle.schema, settings.strict)
    app.state.scorer = Scorer(
        settings, readiness, encoder, bundle.vocabularies, redis, batcher, metrics, bundle.manifest
    )
    app.state.explainer = Explainer(app.state.scorer, engine, bundle.schema)
    app.state.engine = engine
    app.state.bundle = bundle
    app.state.golden = golden
    testing = asyncio.create_task(_test(engine, bundle, golden, readiness))
    parts.push_async_callback(_finished, testing)


def _golden(bundle: Bundle) -> list[GoldenRequest]:
    try:
        return read_golden(bundle.folder / GOLDEN)
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {bundle.folder}: {error}") from error


def _redis(bundle: Bundle, settings: Settings) -> RedisLookup | None:
    if settings.redis_url is None:
        return None
    client = connect(settings.redis_url.get_secret_value())
    return RedisLookup(client, bundle, settings.redis_timeout_ms / 1e3)


async def _test(engine: Engine, bundle: Bundle, golden: list[GoldenRequest], readiness: Readiness) -> None:
    """Ready only when this machine gives the exporter's answers."""
    try:
        difference = await asyncio.to_thread(golden_difference, golden_answers(engine, bundle), golden)
        if engine.explains:
            difference = max(difference, await asyncio.to_thread(explained_difference, engine, bundle, golden[0]))
    except Exception as error:  # whatever it is, it means: not ready, and say why
        log.exception("the self-test failed")
        readiness.settle(f"the self-test failed: {type(error).__name__}: {error}: export the run again")
        return
    if not difference <= TOLERANCE:
        problem = f"the golden requests came out {difference:.3g} off, more than {TOLERANCE:g}: export the run again"
        log.error("not ready: %s", problem)
        readiness.settle(problem)
        return
    # The collector stops all threads: spare it what lives as long as the process.
    gc.collect()
    gc.freeze()
    log.info("ready: %s %s, %s on %s", bundle.manifest.name, bundle.manifest.version, engine.graph, engine.device)
    readiness.settle(None)


async def _finished(testing: "asyncio.Task[None]") -> None:
    await testing


def _route(app: FastAPI) -> None:
    document = openapi(TITLE, app.version)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's own way to replace it
    # Starlette's routes and not FastAPI's: nothing is between the raw body and the life of a request.
    app.add_route("/v1/score", _score, methods=["POST"])
    app.add_route("/v1/explain", _explain, methods=["POST"])
    app.add_route("/v1/model", _model, methods=["GET"])
    app.add_route("/livez", _livez, methods=["GET"])
    app.add_route("/readyz", _readyz, methods=["GET"])
    app.add_route("/metrics", _metrics, methods=["GET"])


def _scorer(request: Request) -> Scorer:
    scorer: Scorer = request.app.state.scorer
    return scorer


async def _score(request: Request) -> Response:
    return await _scorer(request).score(request)


async def _explain(request: Request) -> Response:
    explainer: Explainer = request.app.state.explainer
    return await explainer.explain(request)


async def _model(request: Request) -> Response:
    bundle: Bundle = request.app.state.bundle
    engine: Engine = request.app.state.engine
    manifest = bundle.manifest
    model = ModelResponse(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        metrics=manifest.metrics,
        fields=[ModelField(f.name, f.side, f.kind) for f in bundle.schema.fields],
        attention=manifest.attention,
        graph=engine.graph,
        device=engine.device,
        cascade=manifest.cascade,
    )
    return Response(msgspec.json.encode(model), media_type=JSON)


async def _livez(request: Request) -> Response:
    return PlainTextResponse("alive\n")


async def _readyz(request: Request) -> Response:
    scorer = _scorer(request)
    scorer.readiness.check()
    if request.app.state.draining:
        raise NotReady("draining: the server is about to end, ask another one")
    return PlainTextResponse(f"ready: {scorer.manifest.version}\n")


async def _metrics(request: Request) -> Response:
    return Response(await _scorer(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
