"""The life of a request, from outside: what is answered, what is refused, and where the refusal points."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from contract.golden import TOLERANCE, largest_difference, read_golden
from tests.service.conftest import StartApp, a_request, app_of

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


async def test_every_golden_request_gets_its_probabilities(client: httpx.AsyncClient, bundle: Any) -> None:
    for one in read_golden(bundle / "golden.jsonl"):
        answer = await post(client, msgspec.json.encode({"context": one.context, "candidates": one.candidates}))
        assert largest_difference(one.ctr, [s["ctr"] for s in answer.json()["scores"]]) <= TOLERANCE


async def test_an_answer_echoes_ids_in_order_and_names_the_model(client: httpx.AsyncClient) -> None:
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
async def test_a_request_id_that_is_not_sane_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/v1/score", json=a_request(), headers={"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


async def test_numbers_and_their_strings_are_one_token(client: httpx.AsyncClient) -> None:
    features = [{"item": 4082}, {"item": "4082"}, {"item": 4082.0}, {"item": " 4082 "}]
    candidates = [{"id": 1, "features": one} for one in features]
    scores = (await client.post("/v1/score", json=a_request(candidates=candidates))).json()["scores"]
    assert len({score["ctr"] for score in scores}) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Send a JSON object"),
        (b"hello", "malformed"),
        (b'{"context": {"user": "u1"', "truncated"),
        (b'{"context": {"age": NaN}, "candidates": []}', "no NaN"),
        (b'{"context": {"age": Infinity}, "candidates": []}', "no NaN"),
        (rb'{"context": {"user": "\ud800"}, "candidates": []}', "lone surrogate"),
        (b'{"context": {"user": "\xff"}, "candidates": []}', "Send UTF-8"),
    ],
)
async def test_what_is_no_json_is_a_400(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    problem(await post(client, body), 400, None, words)


ONE = '{"id": 1, "features": {}}'


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ("[]", "$", ["Expected object, got list", "send an object with"]),
        ("{}", "$.context", ["'context' is missing", "field name ->"]),
        ('{"context": {}}', "$.candidates", ["'candidates' is missing", "at least one"]),
        ('{"context": [], "candidates": []}', "$.context", ["got list", "send an object"]),
        ('{"context": {}, "candidates": {}}', "$.candidates", ["got object", "send a list"]),
        ('{"context": {}, "candidates": []}', "$.candidates", ["length >= 1", "at least one"]),
        ('{"context": {}, "candidates": [[]]}', "$.candidates[0]", ["send {id, features}"]),
        (
            f'{{"context": {{}}, "candidates": [{ONE}, {{"features": {{}}}}]}}',
            "$.candidates[1].id",
            ["'id' is missing"],
        ),
        (
            '{"context": {}, "candidates": [{"id": 1.5, "features": {}}]}',
            "$.candidates[0].id",
            ["string or an integer"],
        ),
        ('{"context": {}, "candidates": [{"id": 1, "features": []}]}', "$.candidates[0].features", ["send an object"]),
        (f'{{"context": {{"age": 1e400}}, "candidates": [{ONE}]}}', "$.context.age", ["out of range", "finite"]),
        (f'{{"context": {{"age": {"1" * 5000}}}, "candidates": [{ONE}]}}', "$.context.age", ["out of range"]),
        (
            f'{{"context": {{}}, "candidates": [{ONE}, {{"id": 2, "features": {{"cost": 1, "item": -1e999}}}}]}}',
            "$.candidates[1].features.item",
            ["out of range", "finite"],
        ),
        (f'{{"context": {{}}, "candidates": [{ONE}], "top_k": 3}}', "$.top_k", ["reserved", "leave it out"]),
        (f'{{"context": {{}}, "candidates": [{ONE}], "timeout": 3}}', "$.timeout", ["a request has", "timeout_ms"]),
        (f'{{"context": {{}}, "candidates": [{ONE}], "timeout_ms": 0}}', "$.timeout_ms", ["from 1 to 10000"]),
        (f'{{"context": {{}}, "candidates": [{ONE}], "timeout_ms": 10001}}', "$.timeout_ms", ["from 1 to 10000"]),
        (f'{{"context": {{}}, "candidates": [{ONE}], "timeout_ms": "5"}}', "$.timeout_ms", ["whole milliseconds"]),
        (
            f'{{"context": {{}}, "candidates": [{ONE}], "on_bad_candidate": "drop"}}',
            "$.on_bad_candidate",
            ['send "refuse" or "skip"'],
        ),
        (
            f'{{"context": {{"user": ["u1"]}}, "candidates": [{ONE}]}}',
            "$.context.user",
            ["takes a string", "got a list"],
        ),
        (f'{{"context": {{"age": "31"}}, "candidates": [{ONE}]}}', "$.context.age", ["takes a number or null"]),
        (f'{{"context": {{"age": {"1" * 400}}}, "candidates": [{ONE}]}}', "$.context.age", ["finite"]),
        (
            f'{{"context": {{}}, "candidates": [{ONE}, {{"id": 2, "features": {{"item": {{}}}}}}]}}',
            "$.candidates[1].features.item",
            ["got an object"],
        ),
    ],
)
async def test_a_bad_request_is_a_422_that_says_where_and_what_to_send(
    client: httpx.AsyncClient, body: str, path: str, words: list[str]
) -> None:
    problem(await post(client, body), 422, path, *words)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_deep_nesting_is_refused(client: httpx.AsyncClient, opening: str) -> None:
    body = '{"context": {"user": ' + opening * 100_000
    problem(await post(client, body), 422, "$", "nested too deep")


async def test_ids_may_be_integers_of_any_size(client: httpx.AsyncClient) -> None:
    body = '{"context": {}, "candidates": [{"id": 123456789012345678901234567890, "features": {}}]}'
    answer = await post(client, body)
    assert json.loads(answer.text)["scores"][0]["id"] == 123456789012345678901234567890


async def test_more_candidates_than_the_limit_are_refused(start: StartApp) -> None:
    candidates = [{"id": i, "features": {}} for i in range(4)]
    async with start(max_candidates=3) as client:
        answer = await client.post("/v1/score", json=a_request(candidates=candidates))
        problem(answer, 422, "$.candidates", "4 candidates", "CTR_MAX_CANDIDATES")
        answer = await client.post("/v1/score", json=a_request(candidates=candidates[:3]))
        assert answer.status_code == 200


async def test_a_body_over_the_limit_is_refused_by_its_announced_length(client: httpx.AsyncClient) -> None:
    problem(await post(client, b"x" * 10_000_000), 413, None, "CTR_MAX_BODY_BYTES")


async def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(start: StartApp) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 10_000
            yield b" " * 10_000

    async with start(max_body_bytes=100_000) as client:
        answer = await client.post("/v1/score", content=endless(), headers=JSON)
    problem(answer, 413, None, "CTR_MAX_BODY_BYTES")
    assert read <= 120_000


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_another_content_type_is_a_415(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.post("/v1/score", content=json.dumps(a_request()), headers={"content-type": given})
    problem(answer, 415, None, "Content-Type: application/json")


async def test_a_content_type_may_have_a_charset(client: httpx.AsyncClient) -> None:
    body = json.dumps(a_request())
    assert (await post(client, body, **{"content-type": "Application/JSON; charset=utf-8"})).status_code == 200


@pytest.mark.parametrize("given", ["soon", "0", "10001", "-5", "1.5", "9" * 5000])
async def test_a_timeout_header_that_is_no_number_of_ms_is_refused(client: httpx.AsyncClient, given: str) -> None:
    answer = await post(client, json.dumps(a_request()), **{"X-Timeout-Ms": given})
    problem(answer, 422, None, "X-Timeout-Ms", "1 to 10000")


async def test_an_unknown_and_a_missing_field_are_scored_and_counted(client: httpx.AsyncClient) -> None:
    request = a_request(context={"user": "nobody", "weekday": None, "planet": "mars"})
    assert (await client.post("/v1/score", json=request)).status_code == 200
    counted = (await client.get("/metrics")).text
    assert 'ctr_tokens_total{field="user",kind="unknown"} 1.0' in counted
    assert 'ctr_tokens_total{field="weekday",kind="missing"} 1.0' in counted
    assert 'ctr_tokens_total{field="age",kind="missing"} 1.0' in counted
    assert 'ctr_ignored_names_total{side="context"} 1.0' in counted
    assert "ctr_candidates_total 2.0" in counted


async def test_a_strict_server_refuses_both(start: StartApp) -> None:
    async with start(strict=True) as client:
        assert (await client.post("/v1/score", json=a_request())).status_code == 200
        context = a_request()["context"]
        answer = await client.post("/v1/score", json=a_request(context={**context, "planet": "mars"}))
        problem(answer, 422, "$.context.planet", "unknown", "the model reads")
        answer = await client.post("/v1/score", json=a_request(context={"user": "u1", "age": 3}))
        problem(answer, 422, "$.context.weekday", "missing", "send a value")


def some_bad_candidates(**changes: Any) -> str:
    good = '{"item": 4082}'
    features = [good, '{"item": []}', good, '{"price": 1e400}', '"x"', good, '{"price": "2"}', "[" * 400 + "]" * 400]
    candidates = ", ".join(f'{{"id": {i}, "features": {one}}}' for i, one in enumerate(features))
    extra = "".join(f', "{name}": {json.dumps(value)}' for name, value in changes.items())
    return f'{{"context": {{"user": "u1"}}, "candidates": [{candidates}]{extra}}}'


async def test_a_bad_candidate_refuses_the_request(client: httpx.AsyncClient) -> None:
    problem(await post(client, some_bad_candidates()), 422, "$.candidates[3].features.price", "out of range")


async def test_with_skip_the_other_candidates_are_scored(client: httpx.AsyncClient) -> None:
    answer = await post(client, some_bad_candidates(on_bad_candidate="skip", timeout_ms=4000))
    assert answer.status_code == 200, answer.text
    scores = answer.json()["scores"]
    assert [score["ctr"] is not None for score in scores] == [True, False, True, False, False, True, False, False]
    assert [score["id"] for score in scores] == list(range(8))
    assert scores[0]["ctr"] == scores[2]["ctr"] == scores[5]["ctr"]
    for index, path in ((1, ".item"), (3, ".price"), (4, ""), (6, ".price")):
        assert scores[index]["error"].startswith(f"$.candidates[{index}].features{path}: ")
    assert "error" not in scores[0]


async def test_with_skip_a_bad_context_still_refuses(client: httpx.AsyncClient) -> None:
    body = f'{{"context": {{"age": 1e400}}, "candidates": [{ONE}], "on_bad_candidate": "skip"}}'
    problem(await post(client, body), 422, "$.context.age", "finite")
    body = '{"candidates": [{"id": 1, "features": {"price": 1e400}}], "on_bad_candidate": "skip"}'
    assert (await post(client, body)).status_code == 422
    body = '{"context": {}, "x": 1, "candidates": [{"id": 1, "features": []}], "on_bad_candidate": "skip"}'
    assert (await post(client, body)).status_code == 422


async def test_with_skip_and_nothing_but_bad_candidates_the_answer_is_still_a_200(client: httpx.AsyncClient) -> None:
    candidates = [{"id": i, "features": {"item": []}} for i in range(2)]
    answer = await client.post("/v1/score", json=a_request(candidates=candidates, on_bad_candidate="skip"))
    assert answer.status_code == 200
    assert [score["ctr"] for score in answer.json()["scores"]] == [None, None]


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    problem(await client.get("/v2/score"), 404, None, "/docs")
    problem(await client.get("/v1/score"), 405, None, "POST")


async def test_the_openapi_document_shows_the_types_that_decode(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert set(schemas["ScoreRequest"]["properties"]) == {"context", "candidates", "timeout_ms", "on_bad_candidate"}
    assert schemas["ScoreRequest"]["additionalProperties"] is False
    assert schemas["ScoreRequest"]["properties"]["candidates"]["minItems"] == 1
    body = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ScoreRequest"}
    assert (await client.post("/v1/score", json=body["example"])).status_code == 200
    assert "openapi.json" in (await client.get("/docs")).text


async def test_a_client_that_hangs_up_while_it_sends_ends_quietly(start: StartApp) -> None:
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
