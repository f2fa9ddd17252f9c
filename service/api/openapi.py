"""The OpenAPI document, made from the very types that the service decodes and encodes with."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from contract.pairs import MAX_CANDIDATES
from service.api.problem_details import ProblemDetails
from service.api.schemas import ExplainRequest, ExplainResponse, ModelResponse, ScoreRequest, ScoreResponse
from service.settings import MAX_TIMEOUT_MS

REFUSALS = {
    400: "the body is no JSON, or what came is not HTTP/1.1",
    401: "this server asks for an API key, and none of its keys was given",
    408: "the head did not arrive in time",
    413: "the body is too large",
    415: "the content type is not application/json, or the body is compressed",
    422: "the request cannot be scored; says where and why",
    429: "overloaded: try again after Retry-After seconds",
    431: "the head is too large",
    500: "the server failed; the request_id is in its log",
    503: "not ready",
    504: "the deadline has passed",
}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
# Or none of them: not every server has keys.
KEYED: dict[str, Any] = {"security": [{}, {"bearer": []}, {"header": []}]}
TIMEOUT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS}
HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "maxLength": 128},
        "description": "echoed; made up when it is missing",
    },
    {"name": "X-Timeout-Ms", "in": "header", "schema": TIMEOUT, "description": "timeout_ms in the body wins"},
]
REQUEST_EXAMPLE = {
    "context": {"user": "u1", "weekday": "sunday"},
    "candidates": [
        {"id": "ad-7", "features": {"item": 4082, "cost": "free"}},
        {"id": "ad-9", "features": {"item": 17, "cost": None}},
    ],
    "timeout_ms": 50,
}
RESPONSE_EXAMPLE = {
    "request_id": "5b0c6d5a0c3f4f5d8a4e1f7a3c2b1d00",
    "model": "stec-frappe",
    "version": "5f0c2a",
    "scores": [{"id": "ad-7", "ctr": 0.0132}, {"id": "ad-9", "ctr": 0.0087}],
    "degraded": [],
}


def openapi(title: str, version: str, metrics: bool = True) -> dict[str, Any]:
    """metrics: whether /metrics is on this port."""
    types = (ScoreRequest, ScoreResponse, ModelResponse, ProblemDetails, ExplainRequest, ExplainResponse)
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    request, response, model, problem, explain, explanation = references
    refused = partial(_refusals, problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": {
            "/v1/score": {"post": _score(request, response, problem)},
            "/v1/explain": {"post": _explain(explain, explanation, problem)},
            "/v1/model": {"get": _get("The model: version, metrics, fields", _json(model), refused(401)) | KEYED},
            "/livez": {"get": _get("200 while the process lives", _text())},
            "/readyz": {"get": _get("200 once the golden requests came out right", _text(), refused(503))},
            **({"/metrics": {"get": _get("Prometheus's text format", _text(), refused(503))}} if metrics else {}),
        },
        "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
    }


def _score(request: dict[str, Any], response: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": "The click probability of each candidate",
        **KEYED,
        "parameters": HEADERS,
        "requestBody": {"required": True, "content": _json(request, REQUEST_EXAMPLE)},
        "responses": {
            "200": {"description": "in the order of the candidates", "content": _json(response, RESPONSE_EXAMPLE)},
            **_refusals(problem),
        },
    }


def _explain(request: dict[str, Any], response: dict[str, Any], problem: dict[str, Any]) -> dict[str, Any]:
    example = {name: value for name, value in REQUEST_EXAMPLE.items() if name != "timeout_ms"} | {"pairs": 5}
    return {
        "summary": f"Which pairs of fields make a candidate's probability; of {MAX_CANDIDATES} candidates at most",
        **KEYED,
        "parameters": HEADERS,
        "requestBody": {"required": True, "content": _json(request, example)},
        "responses": {
            "200": {"description": "the largest contributions first", "content": _json(response)},
            "404": {"description": "this model has no explanation", "content": _problem(problem)},
            **_refusals(problem),
        },
    }


def _refusals(problem: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """All of them, where none is named."""
    return {
        str(status): {"description": REFUSALS[status], "content": _problem(problem)} for status in statuses or REFUSALS
    }


def _problem(problem: dict[str, Any]) -> dict[str, Any]:
    return {"application/problem+json": {"schema": problem}}


def _get(summary: str, content: dict[str, Any], refusals: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}, **(refusals or {})}}


def _json(schema: dict[str, Any], example: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema, **({"example": example} if example else {})}}


def _text() -> dict[str, Any]:
    return {"text/plain": {"schema": {"type": "string"}}}
