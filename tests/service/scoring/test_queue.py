"""Requests in the queue, over HTTP: the real app, with a model that waits until the test lets it continue."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from contract.encode import ModelInput
from service.runtime.engine import Scored
from service.scoring.score import Scorer
from tests.support.app import StartApp, a_request, app_of
from tests.support.batching import WaitingModel


@asynccontextmanager
async def app_with(model: WaitingModel, start: StartApp, **settings: int) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the real app, in which `model` replaces the graph."""
    async with start(inline_ms=0, **settings) as client:  # An inline run would block the event loop.
        scorer: Scorer = app_of(client).state.serving.model.scorer
        real, scorer.batcher._run = scorer.batcher._run, model
        yield client
        model.go.set()
        scorer.batcher._run = real


async def until_queued(client: httpx.AsyncClient, rows: int) -> None:
    """Wait until this number of rows is queued, which means that an earlier request is running."""
    async with asyncio.timeout(30):
        while f"ctr_queued_rows {rows}.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.001)


async def until_running(model: WaitingModel) -> None:
    async with asyncio.timeout(30):
        while not model.batches:
            await asyncio.sleep(0.001)


async def test_a_deadline_that_passes_in_the_queue_is_a_504(start: StartApp) -> None:
    model = WaitingModel()
    async with app_with(model, start) as client:
        first = asyncio.create_task(client.post("/v1/score", json=a_request()))
        await until_running(model)
        waiting = asyncio.create_task(client.post("/v1/score", json=a_request()))
        answer = await client.post("/v1/score", json=a_request(timeout_ms=20), headers={"X-Timeout-Ms": "4000"})
        assert answer.status_code == 504
        assert answer.json()["title"] == "The deadline has passed"
        answer = await client.post("/v1/score", json=a_request(), headers={"X-Timeout-Ms": "20"})
        assert answer.status_code == 504
        model.go.set()
        assert [(await first).status_code, (await waiting).status_code] == [200, 200]
        assert model.batches == [[2], [2]]
        counted = (await client.get("/metrics")).text
        assert 'ctr_request_seconds_count{outcome="deadline_exceeded"} 2.0' in counted
        assert "ctr_queued_rows 0.0" in counted


async def test_a_full_queue_returns_429_with_retry_after(start: StartApp) -> None:
    model = WaitingModel()
    async with app_with(model, start, max_candidates=2, max_queued_rows=3) as client:
        accepted = [asyncio.create_task(client.post("/v1/score", json=a_request())) for _ in range(2)]
        await until_queued(client, 2)
        answer = await client.post("/v1/score", json=a_request())
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        model.go.set()
        assert [(await request).status_code for request in accepted] == [200, 200]


async def test_a_failure_of_the_model_is_a_500_whose_request_id_is_in_the_log(
    start: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(WaitingModel):
        def __call__(self, batch: Sequence[ModelInput]) -> list[Scored]:
            raise ArithmeticError("the model failed")

    async with app_with(Broken(), start) as client:
        answer = await client.post("/v1/score", json=a_request())
    assert answer.status_code == 500
    assert "the model failed" not in answer.text
    assert answer.json()["request_id"] in caplog.text


async def test_client_disconnect_drops_its_queued_rows(start: StartApp) -> None:
    model = WaitingModel()
    messages: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": json.dumps(a_request()).encode(), "more_body": False})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async with app_with(model, start) as client:
        first = asyncio.create_task(client.post("/v1/score", json=a_request()))
        await until_running(model)
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "http_version": "1.1"}
        scope["headers"] = [(b"content-type", b"application/json")]
        disconnected = asyncio.create_task(app_of(client)(scope, messages.get, send))
        await until_queued(client, 2)
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(disconnected, 5)
        assert sent[0]["status"] == 499
        model.go.set()
        assert (await first).status_code == 200
    assert model.batches == [[2]]


async def test_a_cancelled_request_drops_its_queued_rows(start: StartApp) -> None:
    model = WaitingModel()
    async with app_with(model, start) as client:
        first = asyncio.create_task(client.post("/v1/score", json=a_request()))
        await until_running(model)
        cancelled = asyncio.create_task(client.post("/v1/score", json=a_request()))
        await until_queued(client, 2)
        cancelled.cancel()
        await until_queued(client, 0)
        model.go.set()
        assert (await first).status_code == 200
        assert model.batches == [[2]]
        counted = (await client.get("/metrics")).text
    assert 'ctr_request_seconds_count{outcome="client_gone"} 1.0' in counted
