"""Problem details (RFC 9457): turn exceptions into responses, and log server failures."""

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from secrets import token_hex

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import ClientGone, Failed, NotFinite, Problem
from service.telemetry.json_logging import FIELDS, fields, frames

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII without the space: safe in a header and in a log
MAX_QUOTED_CHARS = 100  # maximum characters of a path or a method that a message quotes
NOT_FINITE = (
    "The model's answer is not a finite number. The usual cause is that the bundle's files were overwritten while the "
    "server used them. The server's log has the details under this request_id."
)
INTERNAL_ERROR = "The server failed to process this request. Its log has the details under this request_id."


class ProblemDetails(msgspec.Struct, omit_defaults=True):
    """Why a request failed (RFC 9457). Clients should rely on `type` and `status`, because the wording may change."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    path: str | None = None


def request_id(request: Request) -> str:
    """Return the id of a request: its X-Request-Id if valid, otherwise a new id. Every call returns the same id."""
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        known = request_id_for(request.headers.get("x-request-id", ""))
        request.state.request_id = known
    return known


def request_id_for(given: str) -> str:
    """Return the client's id if it is valid, otherwise a new one."""
    return given if REQUEST_ID.fullmatch(given) else token_hex(16)


def problem_type(problem: Problem) -> str:
    """Return the type URN of a problem."""
    return f"urn:problem-type:ctr:{problem.outcome.replace('_', '-')}"


@contextmanager
def only_problems(request: Request, log_values: bool) -> Iterator[None]:
    """Convert every exception to a Problem. Log those that are the server's fault.

    Args:
        request: The request being processed.
        log_values: Whether to log the exception's message and the request's body, which contain feature values.
    """
    try:
        yield
    except (Problem, asyncio.CancelledError):
        raise
    except ClientDisconnect:
        raise ClientGone("The client disconnected.") from None
    except Exception as error:
        log_failure(request, error, log_values)
        if isinstance(error, FloatingPointError):
            raise NotFinite(NOT_FINITE) from error
        raise Failed(INTERNAL_ERROR) from error


def log_failure(request: Request, error: Exception, log_values: bool) -> None:
    """Log that a request failed, with the exception's type and stack frames or, with `log_values`, in full."""
    known_as = request_id(request)
    extra = fields(request_id=known_as, path=request.url.path, error=type(error).__name__)
    if log_values:
        extra[FIELDS]["body"] = getattr(request.state, "body", b"").decode(errors="replace")
        log.error("request %s failed", known_as, exc_info=error, extra=extra)
    else:
        extra[FIELDS]["frames"] = frames(error)
        log.error("request %s failed", known_as, extra=extra)


async def render_problem(request: Request, error: Exception) -> Response:
    """Return the error response for an exception: a Problem, Starlette's HTTPException, or an unexpected one."""
    if isinstance(error, Problem):
        details = ProblemDetails(
            problem_type(error), error.title, error.status, error.detail, request_id(request), error.path
        )
        return problem_response(details, error.headers())
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        return problem_response(http_error_details(request, error.status_code, error.detail, headers), headers)
    log.error("request %s failed", request_id(request), exc_info=error)
    return problem_response(http_error_details(request, 500, INTERNAL_ERROR, {}), {})


def http_error_details(request: Request, status: int, detail: str, headers: Mapping[str, str]) -> ProblemDetails:
    """Return the details of an HTTP error that is not a Problem, such as Starlette's own 404 and 405."""
    path = request.url.path[:MAX_QUOTED_CHARS]
    if status == HTTPStatus.NOT_FOUND:
        docs = request.app.docs_url
        hint = f" See {docs} for all paths." if docs else ""
        detail = f"{path} does not exist.{hint}"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        method, allowed = request.method[:MAX_QUOTED_CHARS], headers.get("Allow", "another method")
        detail = f"{path} does not accept {method}. Use {allowed}."
    return ProblemDetails("about:blank", HTTPStatus(status).phrase, status, detail, request_id(request))


def problem_response(details: ProblemDetails, headers: Mapping[str, str]) -> Response:
    """Return the details as a response."""
    return Response(
        msgspec.json.encode(details),
        details.status,
        {**headers, "x-request-id": details.request_id},
        media_type="application/problem+json",
    )
