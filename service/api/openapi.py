"""The OpenAPI document, generated from the types that the service decodes and encodes with."""

from collections.abc import Mapping
from typing import Any

import msgspec

from contract.pairs import MAX_CANDIDATES
from service.api.problem_details import ProblemDetails
from service.api.schemas import ExplainRequest, ExplainResponse, ModelResponse, ScoreRequest, ScoreResponse
from service.settings import MAX_TIMEOUT_MS

PROBLEMS = {
    400: "The body is not JSON, or the request is not HTTP/1.1.",
    401: "The server requires an API key, and the request has no valid one.",
    408: "The request's head did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not application/json, or the body is compressed.",
    422: "The request is invalid. The details say where the error is and what to send instead.",
    429: "The server is overloaded. Try again after Retry-After seconds.",
    431: "The request's head is too large.",
    500: "The server failed. Its log has the details under this request_id.",
    503: "The server is not ready.",
    504: "The deadline has passed.",
}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
# The empty object means that no key is needed, because a server without CTR_API_KEYS_FILE requires none.
KEYED: dict[str, Any] = {"security": [{}, {"bearer": []}, {"header": []}]}
TIMEOUT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS}
HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "maxLength": 128},
        "description": "Returned in the response. Generated if it is missing.",
    },
    {"name": "X-Timeout-Ms", "in": "header", "schema": TIMEOUT, "description": "The body's timeout_ms overrides it."},
]
REQUEST_EXAMPLE = {
    "context": {"user": "u1", "weekday": "sunday"},
    "candidates": [
        {"id": "ad-7", "features": {"item": 4082, "cost": "free"}},
        {"id": "ad-9", "features": {"item": 17, "cost": None}},
    ],
    "unit": "u1",
    "timeout_ms": 50,
}
RESPONSE_EXAMPLE = {
    "request_id": "5b0c6d5a0c3f4f5d8a4e1f7a3c2b1d00",
    "score_id": "019ad6f3-5c00-7a4e-9f1d-2b8c6e0d4a31",
    "model": "stec-frappe",
    "version": "5f0c2a",
    "scores": [{"id": "ad-7", "candidate": 0, "ctr": 0.0132}, {"id": "ad-9", "candidate": 1, "ctr": 0.0087}],
    "degraded": [],
}


def openapi(title: str, version: str, metrics: bool = True) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        title: The application's title.
        version: The application's version.
        metrics: Whether this port serves /metrics.
    """
    types = (ScoreRequest, ScoreResponse, ModelResponse, ProblemDetails, ExplainRequest, ExplainResponse)
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    score_request, score_response, model, problem, explain_request, explain_response = references
    explain_example = {name: value for name, value in REQUEST_EXAMPLE.items() if name in ("context", "candidates")} | {
        "pairs": 5
    }
    paths = {
        "/v1/score": {
            "post": {
                "summary": "Return the click probability of each candidate",
                **KEYED,
                "parameters": HEADERS,
                "requestBody": {"required": True, "content": json_content(score_request, REQUEST_EXAMPLE)},
                "responses": {
                    "200": {
                        "description": "The scores, in the order of the candidates.",
                        "content": json_content(score_response, RESPONSE_EXAMPLE),
                    },
                    **problems(problem),
                },
            }
        },
        "/v1/explain": {
            "post": {
                "summary": f"Explain the probability of up to {MAX_CANDIDATES} candidates by pairs of fields",
                **KEYED,
                "parameters": HEADERS,
                "requestBody": {"required": True, "content": json_content(explain_request, explain_example)},
                "responses": {
                    "200": {
                        "description": "The explanations, in the order of the candidates.",
                        "content": json_content(explain_response),
                    },
                    **problems(problem, {404: "The model cannot be explained.", **PROBLEMS}),
                },
            }
        },
        "/v1/model": {
            "get": {
                "summary": "Return the version, metrics and fields of the model",
                **KEYED,
                "responses": {
                    "200": {"description": "The model.", "content": json_content(model)},
                    **problems(problem, {401: PROBLEMS[401]}),
                },
            }
        },
        "/livez": probe("Return 200 while the process is alive"),
        "/readyz": probe("Return 200 once the model has passed its self-test", problems(problem, {503: PROBLEMS[503]})),
    }
    if metrics:
        paths["/metrics"] = probe("Return metrics in Prometheus's text format", problems(problem, {503: PROBLEMS[503]}))
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
    }


def problems(schema: Mapping[str, Any], descriptions: Mapping[int, str] = PROBLEMS) -> dict[str, Any]:
    """Return a response with problem details for each status."""
    content = {"application/problem+json": {"schema": schema}}
    return {str(status): {"description": text, "content": content} for status, text in descriptions.items()}


def probe(summary: str, failures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the path item of a GET endpoint that returns text."""
    ok = {"description": "OK.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"get": {"summary": summary, "responses": {"200": ok, **(failures or {})}}}


def json_content(schema: Mapping[str, Any], example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema, **({"example": example} if example else {})}}
