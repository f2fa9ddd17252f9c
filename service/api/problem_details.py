"""Problem details (RFC 9457): turn what a request raised into a response, and log what is the server's fault."""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from secrets import token_hex

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import ClientGone, Failed, Problem
from service.telemetry.json_logging import FIELDS, fields, frames

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[!-~]{1,128}")  # printable ASCII without the space: safe in a header and in a log


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
