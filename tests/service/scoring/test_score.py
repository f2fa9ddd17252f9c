"""POST /v1/score over HTTP: the responses, and the path and reason in the error for a bad request."""

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import UNSET

from contract.golden import largest_difference, read_golden
from tests.support.app import StartApp, a_request, app_of, post, problem
from tests.support.small_bundle import AGE


async def test_every_golden_request_gets_its_probabilities(client: httpx.AsyncClient, bundle: Any) -> None:
    for request in read_golden(bundle / "golden.jsonl"):
        answer = await post(client, msgspec.json.encode({"context": request.context, "candidates": request.candidates}))
        assert largest_difference(request.ctr, [s["ctr"] for s in answer.json()["scores"]]).is_tolerated


async def test_the_response_returns_ids_in_order_and_names_the_model(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/score", json=a_request(), headers={"X-Request-Id": "auction-12"})
    body = answer.json()
    assert [score["id"] for score in body["scores"]] == ["ad-7", 8]
    assert all(0 < score["ctr"] < 1 and "error" not in score for score in body["scores"])
    assert body["model"] == "small"
    assert body["version"] == (await client.get("/v1/model")).json()["version"]
    assert body["degraded"] == []
    assert body["request_id"] == answer.headers["x-request-id"] == "auction-12"
    phases = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert phases == ["admit", "parse", "encode", "queue", "run", "answer"]


@pytest.mark.parametrize("given", ["", "two words", "x" * 129])
async def test_an_invalid_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/v1/score", json=a_request(), headers={"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_number_and_its_string_are_the_same_token(client: httpx.AsyncClient) -> None:
    features = [{"item": 4082}, {"item": "4082"}, {"item": 4082.0}, {"item": " 4082 "}]
    candidates = [{"id": 1, "features": values} for values in features]
    scores = (await client.post("/v1/score", json=a_request(candidates=candidates))).json()["scores"]
    assert len({score["ctr"] for score in scores}) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Send a JSON object"),
        (b"hello", "malformed"),
        (b'{"context": {"user": "u1"', "truncated"),
    ],
)
async def test_a_body_that_is_not_json_is_a_400(client: httpx.AsyncClient, body: bytes, message: str) -> None:
    problem(await post(client, body), 400, None, message)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
async def test_a_number_that_json_does_not_have_is_a_400_with_its_path(client: httpx.AsyncClient, literal: str) -> None:
    body = f'{{"context": {{"age": {literal}}}, "candidates": []}}'.encode()
    problem(await post(client, body), 400, "$.context.age", "no NaN")


CANDIDATE = '{"id": 1, "features": {}}'


@pytest.mark.parametrize(
    ("body", "path", "messages"),
    [
        ("[]", "$", ["Expected an object with context and candidates, got a list"]),
        ("{}", "$.context", ["'context' is missing", "maps field names to"]),
        ('{"context": {}}', "$.candidates", ["'candidates' is missing", "at least one"]),
        ('{"context": [], "candidates": []}', "$.context", ["Expected an object", "got a list"]),
        ('{"context": {}, "candidates": {}}', "$.candidates", ["Expected a list", "got an object"]),
        ('{"context": {}, "candidates": []}', "$.candidates", ["Expected a list with at least one"]),
        ('{"context": {}, "candidates": [[]]}', "$.candidates[0]", ["Expected an object {id, features}", "got a list"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}, {{"features": {{}}}}]}}',
            "$.candidates[1].id",
            ["'id' is missing"],
        ),
        (
            '{"context": {}, "candidates": [{"id": 1.5, "features": {}}]}',
            "$.candidates[0].id",
            ["string or an integer", "got a decimal number"],
        ),
        (
            '{"context": {}, "candidates": [{"id": 1, "features": []}]}',
            "$.candidates[0].features",
            ["Expected an object", "got a list"],
        ),
        (f'{{"context": {{"age": 1e400}}, "candidates": [{CANDIDATE}]}}', "$.context.age", ["out of range", "finite"]),
        (
            f'{{"context": {{"age": [1, 1e400]}}, "candidates": [{CANDIDATE}]}}',
            "$.context.age",
            ["out of range", "finite"],
        ),
        (f'{{"context": {{"age": {"1" * 5000}}}, "candidates": [{CANDIDATE}]}}', "$.context.age", ["out of range"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}, {{"id": 2, "features": {{"cost": 1, "item": -1e999}}}}]}}',
            "$.candidates[1].features.item",
            ["out of range", "finite"],
        ),
        (f'{{"context": {{}}, "candidates": [{CANDIDATE}], "debug": 3}}', "$.debug", ["reserved", "Remove it"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}], "top_k": 0}}',
            "$.top_k",
            ["Expected a whole number of at least 1"],
        ),
        (f'{{"context": {{}}, "candidates": [{CANDIDATE}], "cascade": 1}}', "$.cascade", ["true or false"]),
        (f'{{"context": {{}}, "candidates": [{CANDIDATE}], "cascade": true}}', "$.cascade", ["Send top_k as well"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}], "cascade": true, "top_k": 1}}',
            "$.cascade",
            ["This model has no cascade"],
        ),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}], "timeout": 3}}',
            "$.timeout",
            ["not a field of this request", "Remove it", "timeout_ms"],
        ),
        (f'{{"context": {{}}, "candidates": [{CANDIDATE}], "timeout_ms": 0}}', "$.timeout_ms", ["from 1 to 10000"]),
        (f'{{"context": {{}}, "candidates": [{CANDIDATE}], "timeout_ms": 10001}}', "$.timeout_ms", ["from 1 to 10000"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}], "timeout_ms": "5"}}',
            "$.timeout_ms",
            ["Expected a whole number of milliseconds", "got a string"],
        ),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}], "on_bad_candidate": "drop"}}',
            "$.on_bad_candidate",
            ['Expected "refuse" or "skip"', "got 'drop'"],
        ),
        (
            f'{{"context": {{"user": ["u1"]}}, "candidates": [{CANDIDATE}]}}',
            "$.context.user",
            ["must be a string", "got a list"],
        ),
        (f'{{"context": {{"age": "31"}}, "candidates": [{CANDIDATE}]}}', "$.context.age", ["must be a number or null"]),
        (f'{{"context": {{"age": {"1" * 400}}}, "candidates": [{CANDIDATE}]}}', "$.context.age", ["finite"]),
        (
            f'{{"context": {{}}, "candidates": [{CANDIDATE}, {{"id": 2, "features": {{"item": {{}}}}}}]}}',
            "$.candidates[1].features.item",
            ["got an object"],
        ),
    ],
)
async def test_a_bad_request_is_a_422_with_a_path_and_a_message(
    client: httpx.AsyncClient, body: str, path: str, messages: list[str]
) -> None:
    problem(await post(client, body), 422, path, *messages)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_deep_nesting_is_a_422(client: httpx.AsyncClient, opening: str) -> None:
    body = '{"context": {"user": ' + opening * 100_000
    problem(await post(client, body), 422, "$", "nested too deep")


async def test_ids_may_be_integers_of_any_size(client: httpx.AsyncClient) -> None:
    body = '{"context": {}, "candidates": [{"id": 123456789012345678901234567890, "features": {}}]}'
    answer = await post(client, body)
    assert json.loads(answer.text)["scores"][0]["id"] == 123456789012345678901234567890


async def test_a_number_outside_the_range_of_train_is_clipped_to_it_and_counted(
    client: httpx.AsyncClient,
) -> None:
    assert AGE.seen is not UNSET
    answers = [
        (await client.post("/v1/score", json=a_request(context={"age": value}))).json()["scores"]
        for value in (AGE.seen[1], 1e9)
    ]
    assert answers[0] == answers[1]
    counted = (await client.get("/metrics")).text
    assert 'ctr_tokens_total{field="age",kind="outside"} 1.0' in counted


async def test_unknown_and_missing_values_are_scored_and_counted(client: httpx.AsyncClient) -> None:
    request = a_request(context={"user": "nobody", "weekday": None, "planet": "mars"})
    assert (await client.post("/v1/score", json=request)).status_code == 200
    counted = (await client.get("/metrics")).text
    assert 'ctr_tokens_total{field="user",kind="unknown"} 1.0' in counted
    assert 'ctr_tokens_total{field="weekday",kind="missing"} 1.0' in counted
    assert 'ctr_tokens_total{field="age",kind="missing"} 1.0' in counted
    assert 'ctr_ignored_names_total{side="context"} 1.0' in counted
    assert "ctr_candidates_total 2.0" in counted


async def test_a_strict_server_refuses_unknown_fields_and_missing_values(start: StartApp) -> None:
    async with start(strict=True) as client:
        assert (await client.post("/v1/score", json=a_request())).status_code == 200
        context = a_request()["context"]
        answer = await client.post("/v1/score", json=a_request(context={**context, "planet": "mars"}))
        problem(answer, 422, "$.context.planet", "unknown", "expected one of")
        answer = await client.post("/v1/score", json=a_request(context={"user": "u1", "age": 3}))
        problem(answer, 422, "$.context.weekday", "missing", "send a value")


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    problem(await client.get("/v2/score"), 404, None, "/docs")
    problem(await client.get("/v1/score"), 405, None, "POST")


async def test_the_openapi_document_describes_the_types_that_decode_requests(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert set(schemas["ScoreRequest"]["properties"]) == {
        "context",
        "candidates",
        "unit",
        "timeout_ms",
        "on_bad_candidate",
        "top_k",
        "cascade",
    }
    assert schemas["ScoreRequest"]["additionalProperties"] is False
    assert schemas["ScoreRequest"]["properties"]["candidates"]["minItems"] == 1
    body = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ScoreRequest"}
    assert (await client.post("/v1/score", json=body["example"])).status_code == 200
    assert "openapi.json" in (await client.get("/docs")).text


async def test_client_disconnect_while_sending_the_body_is_counted(start: StartApp) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with start() as client:
        scope = {"type": "http", "method": "POST", "path": "/v1/score", "query_string": b"", "http_version": "1.1"}
        scope["headers"] = [(b"content-type", b"application/json")]
        await app_of(client)(scope, receive, send)
        counted = (await client.get("/metrics")).text
    assert 'ctr_request_seconds_count{outcome="client_gone"} 1.0' in counted
    assert sent[0]["status"] == 499


async def test_every_outcome_is_counted_once(client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(client.post("/v1/score", json=a_request()) for _ in range(5)))
    await post(client, b"[]")
    await post(client, b"")
    counted = (await client.get("/metrics")).text
    assert 'ctr_request_seconds_count{outcome="ok"} 5.0' in counted
    assert 'ctr_request_seconds_count{outcome="bad_request"} 2.0' in counted
    assert 'ctr_phase_seconds_count{phase="run"} 5.0' in counted
    assert 'ctr_phase_seconds_count{phase="parse"} 7.0' in counted
