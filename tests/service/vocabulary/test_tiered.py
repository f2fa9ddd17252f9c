"""Redis and the bundle: whatever Redis does, the scores are correct and in time."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contract.bundle import open_bundle
from service.vocabulary.publish import publish
from service.vocabulary.tiered import hash_key, ready_key, vocabulary_digest
from tests.support.app import StartApp, a_request, app_of, score
from tests.support.redis_server import RedisServer, looking_up, start_redis, stopped
from tests.support.small_bundle import with_users_rotated, write_small_bundle

QUICK_MS = 1000.0  # Generous, because the machine may be busy.


def unpause(client: httpx.AsyncClient) -> None:
    breaker = app_of(client).state.serving.model.scorer.vocabulary._breaker
    if not breaker.is_closed:
        breaker._open_until_s = 0.0


@pytest.fixture
async def expected(client: httpx.AsyncClient) -> list[float]:
    """The scores that the bundle gives without Redis."""
    ctr, degraded = await score(client)
    assert degraded == []
    return ctr


async def test_published_version_is_read_from_redis(
    start: StartApp, bundle: Path, redis_server: RedisServer, expected: list[float]
) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
        async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
            assert await score(client) == (expected, [])
            # Redis is read, because a different id in Redis gives different scores.
            redis.hset(hash_key(vocabulary_digest(opened.manifest), "user"), "u1", 9)
            ctr, degraded = await score(client)
            assert ctr != expected
            assert degraded == []


async def test_request_costs_one_round_trip(start: StartApp, bundle: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as redis:
        publish(redis, open_bundle(bundle))
        async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
            await score(client)
            before = redis.info("commandstats")
            await score(client)
            after = redis.info("commandstats")
    assert after["cmdstat_get"]["calls"] - before["cmdstat_get"]["calls"] == 1
    assert after["cmdstat_hmget"]["calls"] - before["cmdstat_hmget"]["calls"] == 4


async def test_unknown_token_is_not_reported_as_degraded(
    start: StartApp, bundle: Path, redis_server: RedisServer, client: httpx.AsyncClient
) -> None:
    request = a_request(context={"user": "nobody"})
    with redis_server.client() as redis:
        publish(redis, open_bundle(bundle))
    async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as with_redis:
        assert await score(with_redis, **request) == await score(client, **request)
        assert await score(with_redis, context={}) == await score(client, context={})


@pytest.mark.parametrize("garbage", ["-1", "0", "1", "92", "1.5", "", "eleven", "9" * 40, "٣", "1 "])
async def test_token_with_an_invalid_id_in_redis_is_looked_up_in_the_bundle(
    start: StartApp, bundle: Path, redis_server: RedisServer, expected: list[float], garbage: str
) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
        redis.hset(hash_key(vocabulary_digest(opened.manifest), "item"), "4082", garbage)
    async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
        assert await score(client) == (expected, ["redis"])
        assert 'ctr_degraded_total{reason="redis"} 1.0' in (await client.get("/metrics")).text


async def test_token_that_redis_lost_is_looked_up_in_the_bundle(
    start: StartApp, bundle: Path, redis_server: RedisServer, expected: list[float]
) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
        redis.hdel(hash_key(vocabulary_digest(opened.manifest), "user"), "u1")
        async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
            assert await score(client) == (expected, ["redis"])
            redis.delete(hash_key(vocabulary_digest(opened.manifest), "item"))
            assert await score(client) == (expected, ["redis"])


async def test_tokens_in_a_key_of_the_wrong_type_are_looked_up_in_the_bundle(
    start: StartApp, bundle: Path, redis_server: RedisServer, expected: list[float]
) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
        redis.set(hash_key(vocabulary_digest(opened.manifest), "user"), "no hash")
    async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
        assert await score(client) == (expected, ["redis"])


NESTED = b'{"x": ' + b"[" * 100_000


@pytest.mark.parametrize(
    "ready", [None, b"", b"[]", b"\xff", b'{"counts": {}, "vocabulary": "of another model"}', NESTED], ids=range(6)
)
async def test_redis_is_not_used_while_the_ready_key_does_not_match(
    start: StartApp, bundle: Path, redis_server: RedisServer, expected: list[float], ready: bytes | None
) -> None:
    opened = open_bundle(bundle)
    digest = vocabulary_digest(opened.manifest)
    with redis_server.client() as redis:
        publish(redis, opened)
        redis.hset(hash_key(digest, "user"), "u1", 9)
        redis.delete(ready_key(digest)) if ready is None else redis.set(ready_key(digest), ready)
        async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
            assert await score(client) == (expected, ["redis"])
            publish(redis, opened)
            unpause(client)
            assert await score(client) == (expected, [])


async def test_all_bundles_with_the_same_vocabulary_use_the_same_keys(
    start: StartApp, bundle: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    retrained = write_small_bundle(tmp_path / "retrained", seed=1)
    async with start(bundle=retrained) as client:
        expected, _ = await score(client)
    with redis_server.client() as redis:
        publish(redis, open_bundle(bundle))
    settings = {"cache_tokens": 0, "redis_url": redis_server.url, "redis_timeout_ms": QUICK_MS}
    async with start(bundle=retrained, **settings) as client:
        assert await score(client) == (expected, [])


async def test_reload_with_the_same_vocabulary_keeps_the_cache_and_needs_no_redis(
    start: StartApp, bundle: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    recalibrated = write_small_bundle(tmp_path / "recalibrated", seed=1)
    other = with_users_rotated(write_small_bundle(tmp_path / "other", seed=1), 1)
    async with start(bundle=recalibrated) as client:
        expected, _ = await score(client)
    with redis_server.client() as redis:
        publish(redis, open_bundle(bundle))
    async with start(redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
        assert (await score(client))[1] == []
        manager = app_of(client).state.serving
        recent = manager.model.scorer.recent
        with stopped(redis_server):  # Every lookup outside the cache is reported as degraded.
            for folder, degraded in ((recalibrated, []), (bundle, []), (recalibrated, []), (other, ["redis"])):
                recent.clear()  # Otherwise, warming up with the recent request would fill the cache from the bundle.
                assert await manager.load(folder) is None
                ctr, found = await score(client)
                assert found == degraded
                assert (ctr == expected) == (folder is recalibrated)


async def test_another_vocabulary_in_redis_is_ignored(
    start: StartApp, tmp_path: Path, redis_server: RedisServer, expected: list[float]
) -> None:
    other = open_bundle(with_users_rotated(write_small_bundle(tmp_path / "other"), 1))
    with redis_server.client() as redis:
        publish(redis, other)
    async with start(cache_tokens=0, redis_url=redis_server.url, redis_timeout_ms=QUICK_MS) as client:
        assert await score(client) == (expected, ["redis"])


async def test_missing_redis_only_sets_the_degraded_flag(start: StartApp, expected: list[float]) -> None:
    async with start(cache_tokens=0, redis_url="redis://127.0.0.1:1/0") as client:
        for _ in range(3):
            assert await score(client) == (expected, ["redis"])


@pytest.mark.timing
async def test_hanging_redis_does_not_exhaust_the_deadline(
    start: StartApp, bundle: Path, tmp_path: Path, expected: list[float]
) -> None:
    with start_redis(tmp_path) as server:
        with server.client() as redis:
            publish(redis, open_bundle(bundle))
        async with start(cache_tokens=0, redis_url=server.url, redis_timeout_ms=200) as client:
            await score(client)  # This request connects to Redis.
            unpause(client)
            with stopped(server):
                start_s = time.perf_counter()
                for _ in range(3):
                    assert await score(client) == (expected, ["redis"])
                waited_s = time.perf_counter() - start_s
                assert 3 * 0.2 <= waited_s < 3
                # After three consecutive failures, requests do not wait for Redis at all.
                for _ in range(20):
                    assert await score(client) == (expected, ["redis"])
                assert time.perf_counter() - start_s - waited_s < 20 * 0.2 / 2
            await asyncio.sleep(0.1)
            unpause(client)
            await score(client)  # This reply may still be late.
            unpause(client)
            assert await score(client) == (expected, [])


async def test_abandoned_reply_never_reaches_the_next_caller(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    users = [f"u{i}" for i in range(40)]
    with redis_server.client() as redis:
        publish(redis, opened)
    async with looking_up(redis_server.url, opened, 5.0) as lookup:
        await lookup.find({"user": ["u0"]}, 5.0)
        for number, user in enumerate(users):
            # One caller has almost no time, and one is cancelled while it waits.
            await lookup.find({"user": [user]}, 1e-6)
            cancelled = asyncio.create_task(lookup.find({"user": [user]}, 5.0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cancelled.cancel()
            wanted = users[(number + 7) % 40]
            found = await lookup.find({"user": [wanted]}, 5.0)
            assert not found.degraded
            assert found.lookup["user"](wanted) == opened.vocabularies["user"](wanted)


async def test_redis_that_recovers_is_used_again_after_a_pause(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    now = 0.0
    async with looking_up(redis_server.url, opened, 1.0, clock=lambda: now) as lookup:
        assert (await lookup.find({"user": ["u1"]}, 1.0)).degraded
        with redis_server.client() as redis:
            publish(redis, opened)
        now = 0.9
        assert (await lookup.find({"user": ["u1"]}, 1.0)).degraded
        now = 1.1
        assert not (await lookup.find({"user": ["u1"]}, 1.0)).degraded


async def test_password_is_not_logged(
    start: StartApp, tmp_path: Path, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = redis_server.url.replace(redis_server.password, "wrong-but-secret")
    async with start(cache_tokens=0, redis_url=wrong, redis_timeout_ms=QUICK_MS) as client:
        for _ in range(3):
            assert (await score(client))[1] == ["redis"]
        assert "secret" not in repr(app_of(client).state.serving.model.scorer.settings)
    assert "redis is not used" in caplog.text
    assert "secret" not in caplog.text


async def test_ready_key_has_the_documented_format(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
        prefix = f"ctr:vocabulary:{{{vocabulary_digest(opened.manifest)}}}"
        raw: Any = redis.get(f"{prefix}:ready")
        assert redis.hget(f"{prefix}:ids:user", "u0") == b"2"
    assert msgspec.json.decode(raw)["counts"] == {"user": 40, "weekday": 3, "item": 90, "cost": 3}
