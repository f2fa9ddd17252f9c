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
from contract.golden import read_golden
from service.runtime.engine import Engine
from tests.support.app import JSON, StartApp, a_request, app_of, post, problem
from tests.support.paths import DEMO

ONE = next(one for one in read_golden(DEMO / "golden.jsonl") if len(one.candidates) >= 3)


@pytest.fixture
async def demo(start: StartApp) -> AsyncIterator[httpx.AsyncClient]:
    async with start(bundle=DEMO) as client:
        yield client


def body(**more: Any) -> bytes:
    return msgspec.json.encode({"context": ONE.context, "candidates": ONE.candidates[:3], **more})


async def ask(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await client.post("/v1/explain", content=content, headers=JSON)


async def explanations(client: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    response = await ask(client, body(**more))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["explanations"]
    return found


async def test_the_contributions_and_the_bias_are_the_logit(demo: httpx.AsyncClient) -> None:
    for one in await explanations(demo, pairs=10_000):
        assert one["others"] == pytest.approx(0, abs=1e-9)
        assert one["bias"] + sum(pair["contribution"] for pair in one["pairs"]) == pytest.approx(one["logit"], abs=1e-5)
        assert one["bias"] + sum(one["levels"]) == pytest.approx(one["logit"], abs=1e-5)
        for pair in one["pairs"]:
            assert sum(pair["levels"]) == pytest.approx(pair["contribution"], abs=1e-9)


async def test_it_explains_the_very_probability_that_scoring_answers(demo: httpx.AsyncClient) -> None:
    scores = (await post(demo, body())).json()["scores"]
    for one, score in zip(await explanations(demo), scores, strict=True):
        assert one["id"] == score["id"]
        assert one["ctr"] == pytest.approx(score["ctr"], abs=1e-6)


async def test_pairs_are_ranked_each_once_and_the_rest_is_summed(demo: httpx.AsyncClient) -> None:
    (whole, *_), (short, *_) = await explanations(demo, pairs=10_000), await explanations(demo, pairs=4)
    sizes = [abs(pair["contribution"]) for pair in whole["pairs"]]
    assert sizes == sorted(sizes, reverse=True)
    names = [frozenset(pair["fields"]) for pair in whole["pairs"]]
    assert len(set(names)) == len(names) == 18 * 19 / 2
    assert short["pairs"] == whole["pairs"][:4]
    assert short["others"] == pytest.approx(sum(pair["contribution"] for pair in whole["pairs"][4:]))


async def test_attention_comes_on_request_and_context_attends_to_context_only(demo: httpx.AsyncClient) -> None:
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
    ("change", "path", "words"),
    [
        ({"candidates": []}, "$.candidates", "at least one"),
        ({"candidates": [{"id": 1, "features": {}}] * 9}, "$.candidates", "9 candidates, an explanation takes 8"),
        ({"pairs": -1}, "$.pairs", "whole number from 0"),
        ({"attention": "yes"}, "$.attention", "true or false"),
        ({"top_k": 3}, "$.top_k", "a request has context, candidates, pairs, attention, timeout_ms"),
        ({"context": {"hour": []}}, "$.context.hour", "takes a string"),
    ],
)
async def test_a_bad_request_says_where_and_what_to_send(
    demo: httpx.AsyncClient, change: dict[str, Any], path: str, words: str
) -> None:
    content = msgspec.json.encode({"context": ONE.context, "candidates": ONE.candidates[:1], **change})
    problem(await ask(demo, content), 422, path, words)


async def test_no_json_is_a_400_and_another_type_a_415(demo: httpx.AsyncClient) -> None:
    problem(await ask(demo, b"{"), 400, None)
    response = await demo.post("/v1/explain", content=body(), headers={"content-type": "text/plain"})
    problem(response, 415, None, "application/json")


async def test_the_header_of_the_timeout_counts_unless_the_body_has_one(demo: httpx.AsyncClient) -> None:
    for timeout_ms, status in (("never", 422), ("5000", 200)):
        headers = JSON | {"x-timeout-ms": timeout_ms}
        assert (await demo.post("/v1/explain", content=body(timeout_ms=None), headers=headers)).status_code == status
    headers = JSON | {"x-timeout-ms": "never"}
    assert (await demo.post("/v1/explain", content=body(timeout_ms=5000), headers=headers)).status_code == 200


async def test_a_model_that_has_no_explanation_says_so(client: httpx.AsyncClient) -> None:
    problem(await ask(client, msgspec.json.encode(a_request())), 404, None, "hidden layers in its head")


async def test_one_explanation_at_a_time_and_a_deadline(
    demo: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine, held up on its way."""
    engine: Engine = app_of(demo).state.serving.model.engine
    go, explain = threading.Event(), engine.explain
    monkeypatch.setattr(engine, "explain", lambda one: (go.wait(30), explain(one))[1])
    late = asyncio.create_task(ask(demo, body(timeout_ms=200)))
    await asyncio.sleep(0.1)
    problem(await ask(demo, body()), 429, None, "try again later")
    assert (await post(demo, body())).status_code == 200  # scoring goes on
    problem(await late, 504, None, "allow more")
    go.set()
    async with asyncio.timeout(10):  # the thread that was late is free again
        while (await ask(demo, body())).status_code == 429:
            await asyncio.sleep(0.01)
    assert (await ask(demo, body())).status_code == 200


async def test_explanations_are_counted_by_outcome_and_not_as_scored_requests(demo: httpx.AsyncClient) -> None:
    await explanations(demo)
    await ask(demo, b"{")
    text = (await demo.get("/metrics")).text
    assert 'ctr_explanations_total{outcome="ok"} 1.0' in text
    assert 'ctr_explanations_total{outcome="bad_request"} 1.0' in text
    assert 'ctr_request_seconds_count{outcome="ok"} 0.0' in text


async def test_a_server_whose_explanations_are_wrong_is_not_ready(start: StartApp, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    model = onnx.load(folder / EXPLAIN, load_external_data=False)
    (constant,) = (tensor for tensor in model.graph.initializer if tensor.name == "constant")
    constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant) + 1, "constant"))
    (folder / EXPLAIN).write_bytes(model.SerializeToString())
    write_manifest(folder, "demo", 1, {}, open_bundle(DEMO).manifest.calibration)
    async with start(bundle=folder) as client:
        problem(await client.get("/readyz"), 503, None, "golden requests came out", "export the run again")
