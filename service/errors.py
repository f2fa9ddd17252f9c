"""The outcomes of a request other than an answer. service/api/problem_details.py renders them.

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

from typing import ClassVar


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
