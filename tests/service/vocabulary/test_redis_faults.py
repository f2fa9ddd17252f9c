"""Faults of a real Redis: responses stay correct and in time, report that they are degraded, and recover."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr
from redis.asyncio import Connection

from contract.bundle import open_bundle
from service.vocabulary import publish as publishing
from service.vocabulary.publish import publish
from service.vocabulary.tiered import Unusable, hash_key, vocabulary_digest
from tests.support.app import StartApp, a_request, score
from tests.support.processes import a_free_port, eventually, get
from tests.support.processes import start as start_process
from tests.support.redis_server import RedisServer, looking_up, proxy_before, start_redis, storm, through

DEADLINE_MS = 3000
TIMEOUT_MS = 500


async def expected_of(start: StartApp) -> list[float]:
    """Return the scores that the bundle gives without Redis."""
    async with start() as client:
        return (await score(client))[0]


@asynccontextmanager
async def scoring(start: StartApp, url: str) -> AsyncIterator[Callable[[], Awaitable[list[str]]]]:
    """Yield a function that scores once, checks that the response is correct and in time, and returns `degraded`."""
    expected = await expected_of(start)
    settings = {"redis_url": url, "redis_timeout_ms": TIMEOUT_MS, "cache_tokens": 0, "timeout_ms": DEADLINE_MS}
    async with start(**settings) as client:

        async def once() -> list[str]:
            start_s = time.perf_counter()
            ctr, degraded = await score(client)
            assert time.perf_counter() - start_s < DEADLINE_MS / 1e3
            assert ctr == expected
            return degraded

        yield once


async def recovers(once: Callable[[], Awaitable[list[str]]]) -> None:
    for _ in range(200):
        if await once() == []:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("responses were still degraded after 20 s")


async def is_degraded(once: Callable[[], Awaitable[list[str]]]) -> None:
    for _ in range(20):
        assert await once() == ["redis"]


async def test_redis_that_is_killed_and_restarts_empty(start: StartApp, bundle: Path, tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        with server.client() as client:
            publish(client, open_bundle(bundle))
        async with scoring(start, server.url) as once:
            assert await once() == []
            server.process.kill()
            server.process.wait()
            await is_degraded(once)
            with start_redis(tmp_path, port=server.port) as again:
                await asyncio.sleep(1.2)
                await is_degraded(once)  # Redis restarted empty.
                with again.client() as client:
                    publish(client, open_bundle(bundle))
                await recovers(once)


@pytest.mark.timing
async def test_redis_that_hangs_and_continues(start: StartApp, bundle: Path, tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        with server.client() as client:
            publish(client, open_bundle(bundle))
        async with scoring(start, server.url) as once:
            assert await once() == []
            os.kill(server.process.pid, signal.SIGSTOP)
            await is_degraded(once)
            start_s = time.perf_counter()
            for _ in range(20):
                await once()
            assert time.perf_counter() - start_s < 20 * TIMEOUT_MS / 1e3 / 2  # Requests no longer wait for Redis.
            os.kill(server.process.pid, signal.SIGCONT)
            await recovers(once)


async def test_redis_that_is_slow_for_a_while(start: StartApp, bundle: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        publish(client, open_bundle(bundle))
    async with proxy_before(redis_server.port) as (proxy, port), scoring(start, through(redis_server, port)) as once:
        assert await once() == []
        proxy.delay_s = 3.0
        await is_degraded(once)
        proxy.delay_s = 0.0
        await recovers(once)


@pytest.mark.parametrize("cut_after", [0, 1, 5, 40, 120])
async def test_truncated_replies(start: StartApp, bundle: Path, redis_server: RedisServer, cut_after: int) -> None:
    with redis_server.client() as client:
        publish(client, open_bundle(bundle))
    async with proxy_before(redis_server.port) as (proxy, port), scoring(start, through(redis_server, port)) as once:
        assert await once() == []
        proxy.cut_after = cut_after
        await is_degraded(once)
        proxy.cut_after = None
        await recovers(once)


async def test_garbled_replies(start: StartApp, bundle: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        publish(client, open_bundle(bundle))
    async with proxy_before(redis_server.port) as (proxy, port), scoring(start, through(redis_server, port)) as once:
        assert await once() == []
        proxy.garble = True
        await is_degraded(once)
        proxy.garble = False
        await recovers(once)


async def test_wrong_password_until_it_is_fixed(start: StartApp, bundle: Path, tmp_path: Path) -> None:
    with start_redis(tmp_path) as server, server.client() as client:
        publish(client, open_bundle(bundle))
        async with scoring(start, server.url.replace(server.password, "another")) as once:
            await is_degraded(once)
            client.config_set("requirepass", "another")
            await recovers(once)


async def test_full_redis_keeps_serving_and_publishing_reports_it(
    start: StartApp, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_redis(tmp_path, "--maxmemory-policy", "noeviction") as server, server.client() as client:
        publish(client, open_bundle(bundle))
        client.config_set("maxmemory", "1mb")
        async with scoring(start, server.url) as once:
            assert await once() == []
            client.delete(publishing.PUBLICATIONS)
            assert publishing.main([str(bundle), "--redis-url", server.url]) == 2
            assert "Redis is full" in capsys.readouterr().err
            assert await once() in ([], ["redis"])
            client.config_set("maxmemory", "0")
            assert publishing.main([str(bundle), "--redis-url", server.url]) == 0
            await recovers(once)


async def test_tokens_that_redis_evicted_are_looked_up_in_the_bundle(
    start: StartApp, bundle: Path, tmp_path: Path
) -> None:
    with start_redis(tmp_path) as server, server.client() as client:
        publish(client, open_bundle(bundle))
        async with scoring(start, server.url) as once:
            for key in list(client.scan_iter("ctr:*:ids:*")):
                assert await once() in ([], ["redis"])
                client.delete(key)
            await is_degraded(once)
            publish(client, open_bundle(bundle))
            await recovers(once)


async def test_reply_never_reaches_another_caller(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        publish(client, opened)
    async with looking_up(redis_server.url, opened, 2.0) as lookup:
        await storm(lookup, opened)
        assert (await lookup.find({"user": ["u1"]}, 4.0)).degraded == ()


class FaultyClient:
    """A client with a bug that redis-py once had: a cancelled command leaves its reply on the connection."""

    def __init__(self, server: RedisServer) -> None:
        self.connection = Connection(host="127.0.0.1", port=server.port, password=server.password, protocol=2)
        self.turn = asyncio.Lock()

    def pipeline(self, transaction: bool) -> "FaultyPipeline":
        return FaultyPipeline(self)

    async def aclose(self) -> None:
        await self.connection.disconnect()


class FaultyPipeline:
    def __init__(self, client: FaultyClient) -> None:
        self.client = client
        self.commands: list[tuple[Any, ...]] = []

    def get(self, key: str) -> None:
        self.commands.append(("GET", key))

    def hmget(self, key: str, tokens: list[str]) -> None:
        self.commands.append(("HMGET", key, *tokens))

    def hlen(self, key: str) -> None:
        self.commands.append(("HLEN", key))

    async def execute(self) -> list[Any]:
        connection = self.client.connection
        async with self.client.turn:
            await connection.connect()
            await connection.send_packed_command(connection.pack_commands(self.commands))
            return [await connection.read_response(disconnect_on_error=False) for _ in self.commands]


async def wait_and_cancel(trips: "set[asyncio.Task[Any]]", wait_s: float) -> None:
    """Cancel the command after a timeout. This is the obvious implementation, but it is wrong."""
    for trip in trips:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(trip, wait_s)


@pytest.mark.parametrize("cancels", [False, True])
async def test_reply_reaches_its_own_caller_even_with_a_client_that_mixes_up_cancelled_commands(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, cancels: bool
) -> None:
    """If the implementation cancels commands, `storm` detects that replies reach the wrong caller."""
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        publish(client, opened)
    if cancels:
        monkeypatch.setattr("service.vocabulary.tiered.wait_for_round_trips", wait_and_cancel)

    async def storms() -> None:
        for _ in range(100 if cancels else 1):  # Every second or third storm detects the fault.
            async with looking_up(redis_server.url, opened, 2.0) as lookup:
                await lookup._redis.aclose()
                lookup._redis = FaultyClient(redis_server)
                await storm(lookup, opened)

    with pytest.raises((AssertionError, Unusable, TypeError)) if cancels else contextlib.nullcontext():
        await storms()


async def test_requests_for_the_same_tokens_share_a_round_trip(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        publish(client, opened)
        async with looking_up(redis_server.url, opened, 2.0, cached=1000) as lookup:
            before = asked(client)
            found = await asyncio.gather(*(lookup.find({"user": ["u1", "u2"]}, 4.0) for _ in range(50)))
            assert asked(client) == before + 1
            assert all(
                each.degraded == () and each.lookup["user"]("u2") == found[0].lookup["user"]("u2") for each in found
            )
            await lookup.find({"user": ["u1", "u2"]}, 4.0)
            assert asked(client) == before + 1  # The ids are cached now.
            await lookup.find({"user": ["nobody"]}, 4.0)
            await lookup.find({"user": ["nobody"]}, 4.0)
            assert asked(client) == before + 2  # The unknown token is cached as well.


async def test_request_that_shares_a_round_trip_may_need_fewer_fields(bundle: Path, redis_server: RedisServer) -> None:
    """A request does not look up a field whose tokens are all cached."""
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        publish(client, opened)
    fields = list(opened.vocabularies)[:2]
    both = {field: ["nobody"] for field in fields}
    one = {fields[0]: ["nobody"]}
    async with looking_up(redis_server.url, opened, 2.0, cached=1000) as lookup:
        first, second = await asyncio.gather(lookup.find(both, 4.0), lookup.find(one, 4.0))
    assert second.degraded == ()
    assert second.lookup.keys() == one.keys()
    assert first.lookup.keys() == both.keys()


def asked(client: "redis.Redis") -> int:
    stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_hmget", {"calls": 0})["calls"])


async def test_cached_tokens_need_no_redis(start: StartApp, bundle: Path, tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        with server.client() as client:
            publish(client, open_bundle(bundle))
        async with start(redis_url=server.url, redis_timeout_ms=TIMEOUT_MS) as client:
            expected, degraded = await score(client)
            assert degraded == []
            server.process.kill()
            for _ in range(5):
                assert await score(client) == (expected, [])
            assert (await score(client, context={"user": "u39"}))[1] == ["redis"]
            counted = (await client.get("/metrics")).text
    assert 'ctr_vocabulary_tokens_total{tier="cache"} 24.0' in counted or 'tier="cache"' in counted
    assert "ctr_redis_round_trip_seconds_count" in counted


async def test_vocabulary_that_is_only_in_redis(
    start: StartApp, own_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    """If Redis does not reply, tokens are unknown, and the response reports it."""
    expected = await expected_of(start)
    for path in (own_bundle / "vocabulary").iterdir():
        path.unlink()
    with start_redis(tmp_path) as server, server.client() as client:
        publish(client, open_bundle(bundle))
        settings = {"redis_url": server.url, "redis_timeout_ms": TIMEOUT_MS, "cache_tokens": 0}
        async with start(bundle=own_bundle, vocabulary="redis", **settings) as app:
            assert (await app.get("/readyz")).status_code == 200
            assert await score(app) == (expected, [])
            os.kill(server.process.pid, signal.SIGSTOP)
            ctr, degraded = await score(app)
            assert degraded == ["vocabulary"]
            assert ctr != expected
            os.kill(server.process.pid, signal.SIGCONT)
            for _ in range(100):
                if await score(app) == (expected, []):
                    break
                await asyncio.sleep(0.1)
            assert await score(app) == (expected, [])
            # A token that Redis has lost is not treated as unknown.
            client.hdel(hash_key(vocabulary_digest(open_bundle(bundle).manifest), "user"), "u1")
            assert (await score(app))[1] == ["vocabulary"]
            assert (await score(app, context={"user": "u2"}))[1] == []


async def test_server_without_its_vocabulary_becomes_ready_once_it_is_published(
    own_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    from service.app import create_app
    from service.settings import Settings
    from tests.support.app import client_of

    for path in (own_bundle / "vocabulary").iterdir():
        path.unlink()
    with start_redis(tmp_path) as server, server.client() as redis_client:
        url = SecretStr(server.url)
        settings = Settings(bundle=own_bundle, vocabulary="redis", redis_url=url, redis_timeout_ms=TIMEOUT_MS)
        app = create_app(settings)
        async with app.router.lifespan_context(app), client_of(app) as client:
            async with asyncio.timeout(30):  # The cost of a run is measured before the model is ready.
                while app.state.serving.model.scorer.batcher._cost.seconds(1) == 0:
                    await asyncio.sleep(0.01)
                while "run ctr-publish" not in (refused := await client.get("/readyz")).text:
                    await asyncio.sleep(0.01)
            assert refused.status_code == 503
            publish(redis_client, open_bundle(bundle))
            await asyncio.wait_for(app.state.serving.model.scorer.readiness.tested.wait(), 30)
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.post("/v1/score", json=a_request(timeout_ms=5000))).json()["degraded"] == []


def test_server_that_waits_for_its_vocabulary_can_be_stopped(own_bundle: Path) -> None:
    for path in (own_bundle / "vocabulary").iterdir():
        path.unlink()
    url = "redis://127.0.0.1:1/0"
    settings = {"CTR_BUNDLE": str(own_bundle), "CTR_VOCABULARY": "redis", "CTR_REDIS_URL": url, "CTR_WORKERS": "1"}
    port = a_free_port()
    with start_process(**settings, CTR_PORT=str(port)) as process:
        eventually(lambda: says_503(port), "/readyz gives the reason")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def says_503(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return "run ctr-publish" in get(f"http://127.0.0.1:{port}/readyz").text
    return False
