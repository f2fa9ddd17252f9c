"""Complete HTTP responses, as bytes, for requests that the protocol refuses without calling the application."""

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.api.problem_details import ProblemDetails, problem_type, request_id_for
from service.errors import Overloaded

NO_ROOM = Overloaded("Too many requests are in flight. Try again later.")


def overloaded_response(cycle: RequestResponseCycle, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a 429 with `Retry-After` and the client's `X-Request-Id`."""
    client_id = next((value for name, value in cycle.scope["headers"] if name == b"x-request-id"), b"")
    request_id = request_id_for(client_id.decode("latin-1"))
    details = ProblemDetails(problem_type(NO_ROOM), NO_ROOM.title, NO_ROOM.status, NO_ROOM.detail, request_id)
    headers = [(name.encode(), value.encode()) for name, value in NO_ROOM.headers().items()]
    if not cycle.keep_alive:
        headers.append((b"connection", b"close"))
    return problem_response(details, default_headers, headers)


def problem_response(
    details: ProblemDetails, default_headers: list[tuple[bytes, bytes]], headers: list[tuple[bytes, bytes]]
) -> bytes:
    """Return an `application/problem+json` response with the given headers after the server's default ones."""
    body = msgspec.json.encode(details)
    all_headers = [
        *default_headers,
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", details.request_id.encode()),
        *headers,
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in all_headers)
    return b"".join([STATUS_LINE[details.status], lines, b"\r\n", body])
