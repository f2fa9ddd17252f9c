"""Refusals that the protocol writes itself, before or without the application: whole HTTP answers, as bytes."""

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.api.problem_details import ProblemDetails, problem_type, request_id_for
from service.errors import Overloaded

NO_ROOM = Overloaded("Too many requests are in hand already: try again later")


def overloaded(cycle: RequestResponseCycle, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    given = next((value for name, value in cycle.scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    known_as = request_id_for(given)
    details = ProblemDetails(problem_type(NO_ROOM), NO_ROOM.title, NO_ROOM.status, NO_ROOM.detail, known_as)
    headers = [(name.encode(), value.encode()) for name, value in NO_ROOM.headers().items()]
    if not cycle.keep_alive:
        headers.append((b"connection", b"close"))
    return problem(details, default_headers, headers)


def problem(
    details: ProblemDetails, default_headers: list[tuple[bytes, bytes]], headers: list[tuple[bytes, bytes]]
) -> bytes:
    body = msgspec.json.encode(details)
    every = [
        *default_headers,
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", details.request_id.encode()),
        *headers,
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in every)
    return b"".join([STATUS_LINE[details.status], lines, b"\r\n", body])
