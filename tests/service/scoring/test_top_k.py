"""top_k and cascade, with a real model."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from contract.bundle import CascadeRule, open_bundle
from contract.encode import ModelInput
from contract.golden import GoldenRequest, read_golden
from service.runtime.cascade import Screened, screened
from service.runtime.engine import open_engine
from service.scoring.batching import split
from tests.support.app import StartApp, a_request, post, problem


@pytest.fixture(scope="module")
def golden(cascade_bundle: Path) -> list[GoldenRequest]:
    return read_golden(cascade_bundle / "golden.jsonl")


@pytest.fixture
async def demo(start: StartApp, cascade_bundle: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with start(bundle=cascade_bundle) as client:
        yield client


@pytest.fixture(scope="module")
def largest(golden: list[GoldenRequest]) -> GoldenRequest:
    return max(golden, key=lambda request: len(request.candidates))


def body(request: GoldenRequest, copies: int = 1, **more: Any) -> bytes:
    """Return the golden request, with several copies of each candidate."""
    candidates = [{"id": f"{c.id}-{n}", "features": c.features} for n in range(copies) for c in request.candidates]
    return msgspec.json.encode({"context": request.context, "candidates": candidates, **more})


async def answer(client: httpx.AsyncClient, content: bytes) -> dict[str, Any]:
    response = await post(client, content)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_top_k_returns_the_first_k_of_the_sorted_scores(demo: httpx.AsyncClient, largest: GoldenRequest) -> None:
    everything = (await answer(demo, body(largest)))["scores"]
    ranked = sorted(everything, key=lambda score: -score["ctr"])
    for k in (1, 5, len(ranked), 1000):
        best = await answer(demo, body(largest, top_k=k))
        assert [score["id"] for score in best["scores"]] == [score["id"] for score in ranked[:k]]
        assert "scored_in_full" not in best


async def test_the_order_of_equal_candidates_depends_on_the_request_s_id(
    demo: httpx.AsyncClient, largest: GoldenRequest
) -> None:
    one = msgspec.structs.replace(largest, candidates=largest.candidates[:1])
    orders = []
    for request_id in [f"request-{n}" for n in range(20)] * 2:
        response = await post(demo, body(one, copies=5, top_k=3), **{"x-request-id": request_id})
        best = response.json()["scores"]
        assert len({score["ctr"] for score in best}) == 1
        orders.append([score["id"] for score in best])
    assert orders[:20] == orders[20:]
    assert len({order[0] for order in orders}) > 1
    scores = (await answer(demo, body(one, copies=5)))["scores"]
    assert [score["id"].rpartition("-")[2] for score in scores] == ["0", "1", "2", "3", "4"]


async def test_a_skipped_candidate_comes_last(client: httpx.AsyncClient) -> None:
    request = a_request(on_bad_candidate="skip", top_k=3)
    request["candidates"].insert(0, {"id": "bad", "features": {"item": []}})
    scores = (await answer(client, msgspec.json.encode(request)))["scores"]
    assert scores[-1]["id"] == "bad"
    assert scores[-1]["ctr"] is None
    assert "features.item" in scores[-1]["error"]
    assert scores[0]["ctr"] >= scores[1]["ctr"]
    two = (await answer(client, msgspec.json.encode(request | {"top_k": 2})))["scores"]
    assert two == scores[:2]


@pytest.mark.parametrize("k", [1, 2, 10])
async def test_a_cascade_scores_fewer_candidates_and_finds_the_best(
    demo: httpx.AsyncClient, largest: GoldenRequest, k: int
) -> None:
    whole = await answer(demo, body(largest, top_k=k))
    fewer = await answer(demo, body(largest, top_k=k, cascade=True))
    assert k <= fewer["scored_in_full"] < len(largest.candidates)
    assert [score["id"] for score in fewer["scores"]] == [score["id"] for score in whole["scores"]]
    for found, expected in zip(fewer["scores"], whole["scores"], strict=True):
        assert found["ctr"] == pytest.approx(expected["ctr"], abs=1e-6)


async def test_over_all_golden_requests_a_cascade_finds_97_percent_of_the_best_and_saves_20_percent(
    demo: httpx.AsyncClient, golden: list[GoldenRequest]
) -> None:
    wanted = found = scored = candidates = 0
    for request in golden:
        if len(request.candidates) < 10:
            continue
        best = {score["id"] for score in (await answer(demo, body(request, top_k=3)))["scores"]}
        fewer = await answer(demo, body(request, top_k=3, cascade=True))
        found += len(best & {score["id"] for score in fewer["scores"]})
        wanted += len(best)
        scored += fewer["scored_in_full"]
        candidates += len(request.candidates)
    assert found / wanted > 0.97
    assert scored / candidates < 0.8


async def test_all_candidates_are_scored_in_full_if_k_exceeds_all_rules(
    demo: httpx.AsyncClient, cascade_bundle: Path, largest: GoldenRequest
) -> None:
    max_k = max(rule.k for rule in open_bundle(cascade_bundle).manifest.cascade)
    fewer = await answer(demo, body(largest, copies=3, top_k=max_k + 1, cascade=True))
    assert fewer["scored_in_full"] == 3 * len(largest.candidates)


async def test_cascade_is_a_422_for_a_model_without_one(client: httpx.AsyncClient) -> None:
    request = msgspec.json.encode(a_request(top_k=1, cascade=True))
    problem(await post(client, request), 422, "$.cascade", "This model has no cascade", "Remove the field")


async def test_v1_model_states_the_recall_and_the_share_scored_in_full(demo: httpx.AsyncClient) -> None:
    model = (await demo.get("/v1/model")).json()
    assert model["cascade"]
    for rule in model["cascade"]:
        assert rule["recall"] > 0.99
        assert rule["scored"] <= 0.5
        assert rule["requests"] >= 100


def an_input(rows: int) -> ModelInput:
    context = np.zeros((1, 9), np.int64), np.zeros((1, 1), np.float32)
    candidates = np.zeros((rows, 7), np.int64), np.zeros((rows, 1), np.float32)
    return ModelInput(context[0], candidates[0], context[1], candidates[1])


def test_the_rule_of_the_next_larger_k_applies() -> None:
    rules = [CascadeRule(k, k / 10, 1.0, 0.5, 100, 300) for k in (1, 3, 10)]
    for k, margin in ((1, 0.1), (2, 0.3), (3, 0.3), (4, 1.0), (10, 1.0)):
        request = screened(an_input(50), k, rules)
        assert isinstance(request, Screened)
        assert request.rule.margin == margin
    assert not isinstance(screened(an_input(50), 11, rules), Screened)
    assert not isinstance(screened(an_input(3), 3, rules), Screened)
    assert not isinstance(screened(an_input(3), 2, rules), Screened)


def test_every_part_of_a_split_request_is_screened() -> None:
    request = screened(an_input(50), 3, [CascadeRule(3, 0.3, 1.0, 0.5, 100, 300)])
    parts = split(request, 20)
    assert [len(part.candidate_ids) for part in parts] == [20, 20, 10]
    assert all(isinstance(part, Screened) and part.rule.k == 3 for part in parts)


def test_screened_and_other_requests_share_a_batch(cascade_bundle: Path) -> None:
    engine = open_engine(open_bundle(cascade_bundle), 1)
    random = np.random.default_rng(0)
    others = [an_input(n) for n in (5, 1)]
    mixed = an_input(30)
    mixed.candidate_ids[:] = random.integers(0, 2, mixed.candidate_ids.shape)
    (alone,) = engine.run([mixed])
    batch = [others[0], screened(mixed, 2, [CascadeRule(2, 0.0, 1.0, 0.5, 100, 300)]), others[1]]
    first, found, last = engine.run(batch)
    rows = np.isfinite(found)
    assert 2 <= rows.sum() < 30
    np.testing.assert_allclose(found[rows], alone[rows], atol=1e-6)
    assert np.isfinite(first).all()
    assert np.isfinite(last).all()
