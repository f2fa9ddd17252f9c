"""on_bad_candidate: a bad candidate either fails the whole request or is skipped."""

import json
from typing import Any

import httpx

from tests.support.app import StartApp, a_request, post, problem

CANDIDATE = '{"id": 1, "features": {}}'


def a_request_with_bad_candidates(**changes: Any) -> str:
    good = '{"item": 4082}'
    features = [good, '{"item": []}', good, '{"price": 1e400}', '"x"', good, '{"price": "2"}', "[" * 400 + "]" * 400]
    candidates = ", ".join(f'{{"id": {i}, "features": {values}}}' for i, values in enumerate(features))
    extra = "".join(f', "{name}": {json.dumps(value)}' for name, value in changes.items())
    return f'{{"context": {{"user": "u1"}}, "candidates": [{candidates}]{extra}}}'


async def test_a_bad_candidate_is_a_422(client: httpx.AsyncClient) -> None:
    problem(await post(client, a_request_with_bad_candidates()), 422, "$.candidates[3].features.price", "out of range")


async def test_with_skip_the_other_candidates_are_scored(client: httpx.AsyncClient) -> None:
    answer = await post(client, a_request_with_bad_candidates(on_bad_candidate="skip", timeout_ms=4000))
    assert answer.status_code == 200, answer.text
    scores = answer.json()["scores"]
    assert [score["ctr"] is not None for score in scores] == [True, False, True, False, False, True, False, False]
    assert [score["id"] for score in scores] == list(range(8))
    assert scores[0]["ctr"] == scores[2]["ctr"] == scores[5]["ctr"]
    for index, path in ((1, ".item"), (3, ".price"), (4, ""), (6, ".price")):
        assert scores[index]["error"].startswith(f"$.candidates[{index}].features{path}: ")
    assert "error" not in scores[0]


async def test_with_skip_a_bad_context_is_still_a_422(client: httpx.AsyncClient) -> None:
    body = f'{{"context": {{"age": 1e400}}, "candidates": [{CANDIDATE}], "on_bad_candidate": "skip"}}'
    problem(await post(client, body), 422, "$.context.age", "finite")
    body = '{"candidates": [{"id": 1, "features": {"price": 1e400}}], "on_bad_candidate": "skip"}'
    assert (await post(client, body)).status_code == 422
    body = '{"context": {}, "x": 1, "candidates": [{"id": 1, "features": []}], "on_bad_candidate": "skip"}'
    assert (await post(client, body)).status_code == 422


async def test_with_skip_and_only_bad_candidates_the_response_is_still_a_200(client: httpx.AsyncClient) -> None:
    candidates = [{"id": i, "features": {"item": []}} for i in range(2)]
    answer = await client.post("/v1/score", json=a_request(candidates=candidates, on_bad_candidate="skip"))
    assert answer.status_code == 200
    assert [score["ctr"] for score in answer.json()["scores"]] == [None, None]


async def test_a_field_name_that_looks_like_a_path_is_reported_as_it_was_sent(start: StartApp) -> None:
    features = ['{"price": 1e400}', '{"item": 1, "cost": "free", "price": 1, "$.candidates[7]": 1}']
    candidates = ", ".join(f'{{"id": {i}, "features": {values}}}' for i, values in enumerate(features))
    body = f'{{"context": {{"user": "u1", "weekday": "sunday", "age": 1}}, "candidates": [{candidates}]'
    async with start(strict=True) as client:
        answer = await post(client, body + ', "on_bad_candidate": "skip"}')
    assert answer.json()["scores"][1]["error"].startswith("$.candidates[1].features.$.candidates[7]: ")
