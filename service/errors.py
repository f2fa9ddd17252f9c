"""The outcomes of a request that are no answer, and the one place that renders them.

* Problem
  x NotJson 400          what came is no JSON
  x BadRequest 422       JSON, but not a request that this model can score
  x Unauthorised 401     an API key is asked for
  x TooLarge 413
  x WrongType 415
  x Overloaded 429       try again after `Retry-After` seconds
  x NotFound 404          the server has no such thing
  x Refused 409           a new model that must not be served
  x ClientGone 499       nobody is there to read the answer
  x Failed 500           our fault; the request id is in the log
  x NotReady 503         starting, draining, or a self-test that failed
  x DeadlineExceeded 504
"""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from secrets import token_hex
from typing import ClassVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.logs import FIELDS, fields, frames

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII without the space: safe in a header and in a log


class Problem(Exception):
    """`detail` says what to change; `path` is the JSON path in the request, where there is one."""

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "failed"
    title: ClassVar[str] = "The server failed"

    def __init__(self, detail: str, path: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.path = path

    def headers(self) -> dict[str, str]:
        return {}


class Unauthorised(Problem):
    status, outcome, title = 401, "unauthorised", "This needs a key"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(Problem):
    status, outcome, title = 404, "not_found", "There is no such thing"


class Refused(Problem):
    status, outcome, title = 409, "refused", "The new model is refused"


class NotJson(Problem):
    status, outcome, title = 400, "bad_request", "The body is not JSON"


class BadRequest(Problem):
    status, outcome, title = 422, "bad_request", "The request cannot be scored"


class TooLarge(Problem):
    status, outcome, title = 413, "too_large", "The body is too large"


class WrongType(Problem):
    status, outcome, title = 415, "wrong_type", "The body has the wrong content type"


class Overloaded(Problem):
    """More is waiting than may wait. 429 and not 503: a proxy takes a 503 for a sick server and removes it."""

    status, outcome, title = 429, "overloaded", "The server is overloaded"
    retry_after_s: ClassVar[int] = 1

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class ClientGone(Problem):
    status, outcome, title = 499, "client_gone", "The client hung up"


class Failed(Problem):
    status, outcome, title = 500, "failed", "The server failed"


class NotReady(Problem):
    status, outcome, title = 503, "not_ready", "The server is not ready"


class DeadlineExceeded(Problem):
    status, outcome, title = 504, "deadline_exceeded", "The deadline has passed"


class ProblemDetails(msgspec.Struct, omit_defaults=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    path: str | None = None


def request_id(request: Request) -> str:
    """The client's X-Request-Id when it is sane, else a new one; the same for the whole life of a request."""
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        known = request_id_for(request.headers.get("x-request-id", ""))
        request.state.request_id = known
    return known


def request_id_for(given: str) -> str:
    """What the client gave when it is sane, else a new one."""
    return given if REQUEST_ID.fullmatch(given) else token_hex(16)


@contextmanager
def only_problems(request: Request, log_values: bool) -> Iterator[None]:
    """Whatever a block raises comes out as a Problem; what is our own fault is in the log.

    log_values: with the exception's message and the request's body, where feature values may be.
    """
    try:
        yield
    except (Problem, asyncio.CancelledError):
        raise
    except ClientDisconnect:
        raise ClientGone("The client hung up") from None
    except Exception as error:
        _log_failure(request, error, log_values)
        raise Failed("The server failed; its log has this request_id") from error


def _log_failure(request: Request, error: Exception, log_values: bool) -> None:
    known_as = request_id(request)
    said = fields(request_id=known_as, path=request.url.path, error=type(error).__name__)
    if log_values:
        said[FIELDS]["body"] = getattr(request.state, "body", b"").decode(errors="replace")
        log.error("request %s failed", known_as, exc_info=error, extra=said)
    else:
        said[FIELDS]["frames"] = frames(error)
        log.error("request %s failed", known_as, extra=said)


def kind_of(problem: Problem) -> str:
    return f"urn:problem-type:ctr:{problem.outcome.replace('_', '-')}"


async def render_problem(request: Request, error: Exception) -> Response:
    """The one handler: every `Problem`, Starlette's own 404 and 405, and whatever nobody foresaw."""
    if isinstance(error, Problem):
        return _response(request, kind_of(error), error.title, error.status, error.detail, error.path, error.headers())
    if isinstance(error, HTTPException):
        return _standard(request, error.status_code, error.detail, dict(error.headers or {}))
    log.error("request %s failed", request_id(request), exc_info=error)
    return _standard(request, 500, "The server failed; its log has this request_id", {})


def _standard(request: Request, status: int, detail: str, headers: dict[str, str]) -> Response:
    title = HTTPStatus(status).phrase
    if status == HTTPStatus.NOT_FOUND:
        docs = request.app.docs_url
        hint = f": {docs} lists what there is" if docs else ""
        detail = f"There is nothing at {request.url.path[:100]}{hint}"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = (
            f"{request.url.path} takes no {request.method[:100]}, it takes {headers.get('Allow', 'another method')}"
        )
    return _response(request, "about:blank", title, status, detail, None, headers)


def _response(
    request: Request, kind: str, title: str, status: int, detail: str, path: str | None, headers: dict[str, str]
) -> Response:
    details = ProblemDetails(kind, title, status, detail, request_id(request), path)
    return Response(
        msgspec.json.encode(details),
        status,
        {**headers, "x-request-id": details.request_id},
        media_type="application/problem+json",
    )
