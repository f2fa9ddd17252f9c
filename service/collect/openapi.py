"""The OpenAPI document of ctr-collect, generated from the types that it decodes and encodes with."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contract.events import Event
from contract.score_ids import SCORE_ID
from service.api.openapi import HEADERS, KEYED, PROBLEMS, SECURITY_SCHEMES, json_content, probe, problems
from service.api.problem_details import ProblemDetails
from service.collect.events import InvalidEvent

EVENTS_PATH = "/v1/events"
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson")
EVENT_PROBLEMS = {
    **{status: PROBLEMS[status] for status in (401, 408, 413, 415, 429, 431, 500)},
    503: "The disk is full or not writable, or the server is draining. Try again after Retry-After seconds.",
    504: "The body did not arrive in time.",
}
EXAMPLE = {
    "event_id": "click-7f3a9c",
    "type": "click",
    "score_id": "019e830e-1a00-707b-90a0-15a4d6fa21c3",
    "candidate": 0,
    "time": "2026-06-01T12:00:03.120Z",
}


class EventsResponse(msgspec.Struct):
    """The answer to POST /v1/events: the valid events are on the disk."""

    request_id: Annotated[str, Meta(description="The request's X-Request-Id, or a generated id.")]
    stored: Annotated[int, Meta(description="Number of events that are on the disk.")]
    invalid: Annotated[list[InvalidEvent], Meta(description="The events that were not stored. Do not send them again.")]


class InvalidEvents(ProblemDetails, kw_only=True):
    """Problem details with the reason for each event."""

    invalid: Sequence[InvalidEvent] = ()


def openapi(title: str, version: str) -> dict[str, Any]:
    """Return the OpenAPI document."""
    types = (Event, EventsResponse, InvalidEvents, ProblemDetails)
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    event, response, invalid, problem = references
    members = components["Event"]["properties"]
    members["score_id"]["pattern"] = f"^{SCORE_ID.pattern}$"
    members["time"]["format"] = "date-time"
    body = {"oneOf": [event, {"type": "array", "items": event, "minItems": 1}]}
    content: dict[str, Any] = json_content(body, EXAMPLE)
    for name in NDJSON_TYPES:
        content[name] = {"schema": {"type": "string", "description": "One event per line."}}
    none_valid = {
        "description": "The body is not JSON, or none of its events is valid.",
        "content": {"application/problem+json": {"schema": {"anyOf": [invalid, problem]}}},
    }
    stored = {"description": "The valid events are on the disk.", "content": json_content(response)}
    paths: Mapping[str, Any] = {
        EVENTS_PATH: {
            "post": {
                "summary": "Store events",
                **KEYED,
                "parameters": HEADERS[:1],
                "requestBody": {"required": True, "content": content},
                "responses": {"202": stored, "400": none_valid, **problems(problem, EVENT_PROBLEMS)},
            }
        },
        "/livez": probe("Return 200 while the process is alive"),
        "/readyz": probe("Return 200 while events can be stored", problems(problem, {503: EVENT_PROBLEMS[503]})),
        "/metrics": probe("Return metrics in Prometheus's text format"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY_SCHEMES},
    }
