"""Fixtures: a small bundle, an app that serves it, and a real Redis."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.support.app import TIMEOUT_MS, StartApp, client_of
from tests.support.processes import Server, serving
from tests.support.redis_server import RedisServer, start_redis
from tests.support.small_bundle import write_small_bundle


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CTR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle. Tests share it: do not change it."""
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle, which a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def start(bundle: Path) -> StartApp:
    """start(**settings), which yields a client of an app that has finished its self-test."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(Settings(**{"bundle": bundle, "timeout_ms": TIMEOUT_MS, **settings}))
        async with app.router.lifespan_context(app), client_of(app) as client:
            await asyncio.wait_for(app.state.serving.model.scorer.readiness.tested.wait(), 30)
            yield client

    return started


@pytest.fixture
async def client(start: StartApp) -> AsyncIterator[httpx.AsyncClient]:
    async with start() as client:
        yield client


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    """A running ctr-serve. Tests share it: do not stop it."""
    with serving(bundle, CTR_TIMEOUT_MS="5000") as server:
        yield server


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    """An empty Redis. Do not stop it; use `start_redis` for a Redis that a test stops."""
    with running_redis.client() as client:
        client.flushall()
    return running_redis
