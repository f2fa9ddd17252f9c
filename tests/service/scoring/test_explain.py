"""POST /v1/explain, with the demo bundle's real model."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest

from contract.bundle import EXPLAIN, open_bundle, write_manifest
from contract.encode import ModelInput
from contract.golden import read_golden
from service.runtime.engine import Engine
from tests.support.app import JSON, StartApp, a_request, app_of, post, problem
from tests.support.paths import DEMO

GOLDEN = next(request for request in read_golden(DEMO / "golden.jsonl") if len(request.candidates) >= 3)


@pytest.fixture
async def demo(start: StartApp) -> AsyncIterator[httpx.AsyncClient]:
    async with start(bundle=DEMO) as client:
        yield client


def body(**more: Any) -> bytes:
    return msgspec.json.encode({"context": GOLDEN.context, "candidates": GOLDEN.candidates[:3], **more})


async def ask(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post("/v1/explain", content=content, headers=JSON)


async def explanations(client: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    response = await ask(client, body(**more))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["explanations"]
    return found


async def test_the_bias_and_the_contributions_add_up_to_the_logit(demo: httpx.AsyncClient) -> None:
    for explanation in await explanations(demo, pairs=10_000):
        bias, pairs, logit = explanation["bias"], explanation["pairs"], explanation["logit"]
        assert explanation["others"] == pytest.approx(0, abs=1e-9)
        assert bias + sum(pair["contribution"] for pair in pairs) == pytest.approx(logit, abs=1e-5)
        assert bias + sum(explanation["levels"]) == pytest.approx(logit, abs=1e-5)
        for pair in pairs:
            assert sum(pair["levels"]) == pytest.approx(pair["contribution"], abs=1e-9)


async def test_the_explained_probability_is_the_one_that_scoring_returns(demo: httpx.AsyncClient) -> None:
    scores = (await post(demo, body())).json()["scores"]
    for explanation, score in zip(await explanations(demo), scores, strict=True):
        assert explanation["id"] == score["id"]
        assert explanation["ctr"] == pytest.approx(score["ctr"], abs=1e-6)


async def test_each_pair_appears_once_in_descending_order_and_the_rest_is_summed(demo: httpx.AsyncClient) -> None:
    (whole, *_), (short, *_) = await explanations(demo, pairs=10_000), await explanations(demo, pairs=4)
    sizes = [abs(pair["contribution"]) for pair in whole["pairs"]]
    assert sizes == sorted(sizes, reverse=True)
    names = [frozenset(pair["fields"]) for pair in whole["pairs"]]
    assert len(set(names)) == len(names) == 18 * 19 / 2
    assert short["pairs"] == whole["pairs"][:4]
    assert short["others"] == pytest.approx(sum(pair["contribution"] for pair in whole["pairs"][4:]))


async def test_attention_is_returned_on_request_and_context_attends_only_to_context(
    demo: httpx.AsyncClient,
) -> None:
    assert "attention" not in (await explanations(demo))[0]
    answer = (await ask(demo, body(attention=True))).json()
    model = (await demo.get("/v1/model")).json()
    assert model["attention"] == "request"
    attention = np.array(answer["explanations"][0]["attention"])
    fields = answer["fields"]
    assert attention.shape == (1, 2, len(fields), len(fields))
    np.testing.assert_allclose(attention.sum(3), 1, atol=1e-5)
    is_context = np.array([{f["name"]: f["side"] for f in model["fields"]}[name] == "context" for name in fields])
    assert (attention[:, :, is_context][:, :, :, ~is_context] == 0).all()
    assert (attention[:, :, ~is_context] > 0).all()


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"candidates": []}, "$.candidates", "at least one"),
        ({"candidates": [{"id": 1, "features": {}}] * 9}, "$.candidates", "9 candidates exceed the limit of 8"),
        ({"pairs": -1}, "$.pairs", "whole number from 0"),
        ({"attention": "yes"}, "$.attention", "true or false"),
        ({"top_k": 3}, "$.top_k", "fields of this request are context, candidates, pairs, attention, timeout_ms"),
        ({"context": {"hour": []}}, "$.context.hour", "must be a string"),
    ],
)
async def test_a_bad_request_is_a_422_with_a_path_and_a_message(
    demo: httpx.AsyncClient, change: dict[str, Any], path: str, message: str
) -> None:
    content = msgspec.json.encode({"context": GOLDEN.context, "candidates": GOLDEN.candidates[:1], **change})
    problem(await ask(demo, content), 422, path, message)


async def test_a_body_that_is_not_json_is_a_400_and_another_content_type_a_415(demo: httpx.AsyncClient) -> None:
    problem(await ask(demo, b"{"), 400, None)
    response = await demo.post("/v1/explain", content=body(), headers={"content-type": "text/plain"})
    problem(response, 415, None, "application/json")


async def test_the_timeout_header_applies_unless_the_body_has_a_timeout(demo: httpx.AsyncClient) -> None:
    for timeout_ms, status in (("never", 422), ("5000", 200)):
        headers = JSON | {"x-timeout-ms": timeout_ms}
        assert (await demo.post("/v1/explain", content=body(timeout_ms=None), headers=headers)).status_code == status
    headers = JSON | {"x-timeout-ms": "never"}
    assert (await demo.post("/v1/explain", content=body(timeout_ms=5000), headers=headers)).status_code == 200


async def test_a_model_without_explanations_is_a_404(client: httpx.AsyncClient) -> None:
    problem(await ask(client, msgspec.json.encode(a_request())), 404, None, "hidden layers in its head")


async def test_only_one_explanation_runs_at_a_time_and_a_late_one_is_a_504(
    demo: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block the real engine until the test lets it continue."""
    engine: Engine = app_of(demo).state.serving.model.engine
    started, go, explain = threading.Event(), threading.Event(), engine.explain

    def explain_later(request: ModelInput) -> Any:
        started.set()
        go.wait(30)
        return explain(request)

    monkeypatch.setattr(engine, "explain", explain_later)
    late = asyncio.create_task(ask(demo, body(timeout_ms=1000)))
    assert await asyncio.to_thread(started.wait, 30)
    problem(await ask(demo, body()), 429, None, "Try again later")
    assert (await post(demo, body())).status_code == 200  # Scoring is not blocked.
    problem(await late, 504, None, "Allow more time")
    go.set()
    async with asyncio.timeout(10):  # Wait until the late explanation has finished.
        while (await ask(demo, body())).status_code == 429:
            await asyncio.sleep(0.01)
    assert (await ask(demo, body())).status_code == 200


async def test_explanations_are_counted_by_outcome_and_separately_from_scored_requests(demo: httpx.AsyncClient) -> None:
    await explanations(demo)
    await ask(demo, b"{")
    text = (await demo.get("/metrics")).text
    assert 'ctr_explanations_total{outcome="ok"} 1.0' in text
    assert 'ctr_explanations_total{outcome="bad_request"} 1.0' in text
    assert 'ctr_request_seconds_count{outcome="ok"} 0.0' in text


async def test_a_server_with_wrong_explanations_is_not_ready(start: StartApp, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    model = onnx.load(folder / EXPLAIN, load_external_data=False)
    (constant,) = (tensor for tensor in model.graph.initializer if tensor.name == "constant")
    constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant) + 1, "constant"))
    (folder / EXPLAIN).write_bytes(model.SerializeToString())
    write_manifest(folder, "demo", 1, {}, open_bundle(DEMO).manifest.calibration)
    async with start(bundle=folder) as client:
        problem(await client.get("/readyz"), 503, None, "golden requests differ", "export the run again")
