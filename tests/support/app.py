"""The app in this process: a client, a request, and checks of its answers."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
from fastapi import FastAPI

TIMEOUT_MS = 5000  # long enough that tests do not fail on a busy machine
StartApp = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
JSON = {"content-type": "application/json"}


def app_of(client: httpx.AsyncClient) -> FastAPI:
    app: FastAPI = client._transport.app  # type: ignore[attr-defined]
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://ctr")


def a_request(**changes: Any) -> dict[str, Any]:
    request = {
        "context": {"user": "u1", "weekday": "sunday", "age": 31},
        "candidates": [
            {"id": "ad-7", "features": {"item": 4082, "cost": "free", "price": 2.5}},
            {"id": 8, "features": {"item": "4001", "cost": "paid", "price": 1}},
        ],
    }
    return {**request, **changes}


async def post(client: httpx.AsyncClient, body: bytes | str, **headers: str) -> httpx.Response:
    return await client.post("/v1/score", content=body, headers={**JSON, **headers})


def problem(answer: httpx.Response, status: int, path: str | None, *words: str) -> dict[str, Any]:
    """Check an error response, and return its problem details (RFC 9457).

    Args:
        answer: The response.
        status: The expected status.
        path: The expected location of the error in the request.
        words: Texts that the detail must contain.
    """
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


async def score(client: httpx.AsyncClient, **changes: Any) -> tuple[list[float], list[str]]:
    answer = await client.post("/v1/score", json=a_request(**changes))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return [score["ctr"] for score in body["scores"]], body["degraded"]
