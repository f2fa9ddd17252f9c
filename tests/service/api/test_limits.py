"""Requests that are refused before anything is scored: too large, of the wrong type, or with an invalid header."""

import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.app import JSON, StartApp, a_request, post, problem


async def test_too_many_candidates_are_a_422(start: StartApp) -> None:
    candidates = [{"id": i, "features": {}} for i in range(4)]
    async with start(max_candidates=3) as client:
        answer = await client.post("/v1/score", json=a_request(candidates=candidates))
        problem(answer, 422, "$.candidates", "4 candidates", "CTR_MAX_CANDIDATES")
        answer = await client.post("/v1/score", json=a_request(candidates=candidates[:3]))
        assert answer.status_code == 200


async def test_a_body_whose_declared_length_exceeds_the_limit_is_a_413(client: httpx.AsyncClient) -> None:
    problem(await post(client, b"x" * 10_000_000), 413, None, "CTR_MAX_BODY_BYTES")


async def test_a_body_of_unknown_length_is_read_only_up_to_the_limit(start: StartApp) -> None:
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
async def test_an_invalid_timeout_header_is_a_422(client: httpx.AsyncClient, given: str) -> None:
    answer = await post(client, json.dumps(a_request()), **{"X-Timeout-Ms": given})
    problem(answer, 422, None, "X-Timeout-Ms", "1 to 10000")


@pytest.mark.parametrize("given", [" 4000", "4000 ", "4000"])
async def test_a_timeout_header_may_have_spaces_around_it(client: httpx.AsyncClient, given: str) -> None:
    assert (await post(client, json.dumps(a_request()), **{"X-Timeout-Ms": given})).status_code == 200


async def test_a_timeout_in_the_body_overrides_the_header(client: httpx.AsyncClient) -> None:
    body = json.dumps(a_request(timeout_ms=4000))
    assert (await post(client, body, **{"X-Timeout-Ms": "soon"})).status_code == 200


async def test_a_compressed_body_is_a_415(client: httpx.AsyncClient) -> None:
    body = gzip.compress(json.dumps(a_request()).encode())
    problem(await post(client, body, **{"Content-Encoding": "gzip"}), 415, None, "gzip", "Send an uncompressed body")
    assert (await post(client, json.dumps(a_request()), **{"Content-Encoding": "identity"})).status_code == 200
