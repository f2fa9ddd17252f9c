"""A slow or silent Redis: requests are answered in time, and Redis is soon no longer called."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.bundle import open_bundle
from service.vocabulary.publish import publish
from tests.support.app import StartApp, a_request, app_of
from tests.support.redis_server import RedisServer, looking_up, stopped


@contextmanager
def a_silent_server() -> Iterator[str]:
    """Accept connections and never reply."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.mark.timing
async def test_budget_below_the_redis_timeout_is_met_and_opens_the_breaker(start: StartApp) -> None:
    with a_silent_server() as url:
        async with start(cache_tokens=0, redis_url=url, redis_timeout_ms=100, timeout_ms=80) as client:
            answers = [await client.post("/v1/score", json=a_request()) for _ in range(40)]
            scored = [answer.json()["degraded"] for answer in answers if answer.status_code == 200]
            assert len(scored) > 20  # All 40 requests are scored, unless the machine is busy.
            assert scored == [["redis"]] * len(scored)
            assert not app_of(client).state.serving.model.scorer.vocabulary._breaker.is_closed


@pytest.mark.timing
async def test_redis_gets_at_most_half_of_the_remaining_time(bundle: Path) -> None:
    with a_silent_server() as url:
        async with looking_up(url, open_bundle(bundle), 5.0) as lookup:
            start_s = time.perf_counter()
            assert (await lookup.find({"user": ["u1"]}, 1.2)).degraded
            assert 0.6 <= time.perf_counter() - start_s < 1.2


async def test_short_budgets_alone_do_not_open_the_breaker(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
    async with looking_up(redis_server.url, opened, 1.0) as lookup:
        for _ in range(10):
            await lookup.find({"user": ["u1"]}, 1e-6)
        assert not (await lookup.find({"user": ["u1"]}, 2.0)).degraded


async def test_single_late_reply_does_not_open_the_breaker(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as redis:
        publish(redis, opened)
    async with looking_up(redis_server.url, opened, 0.5) as lookup:
        assert not (await lookup.find({"user": ["u1"]}, 1.0)).degraded
        for _ in range(4):
            with stopped(redis_server):
                assert (await lookup.find({"user": ["u1"]}, 1.0)).degraded
            await asyncio.sleep(0.05)
            assert not (await lookup.find({"user": ["u1"]}, 1.0)).degraded
