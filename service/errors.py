"""Every outcome of a request except success. service/api/problem_details.py renders them as RFC 9457 problem details.

* Problem
  x NotJson           400  the body is not JSON
  x Unauthorized      401  the server requires an API key, and the request has no valid one
  x NotFound          404  the server or its model does not have what was requested
  x Refused           409  the new model cannot be served
  x TooLarge          413  the body is too large
  x WrongType         415  the body is not plain JSON
  x BadRequest        422  the body is JSON, but not a request that this model can score
  x Overloaded        429  the client may try again after `Retry-After` seconds
  x ClientGone        499  the client disconnected before the response
  x Failed            500  a bug or defect in this server; the log has the request's id
  x NotFinite         500  the model's answer is not a finite number
  x NotReady          503  the server is starting or draining, or its self-test failed
  x DeadlineExceeded  504  the request's deadline passed
"""

from typing import ClassVar


class Problem(Exception):
    """An outcome other than success.

    Attributes:
        status: HTTP status.
        outcome: Label in the metrics. The problem's type URN ends with it, with dashes instead of underscores.
        title: Short description of the class of problems.
        detail: What is wrong with this request, and what to change.
        path: JSON path of the wrong value in the request, if there is one.
    """

    status: ClassVar[int] = 500
    outcome: ClassVar[str] = "failed"
    title: ClassVar[str] = "Internal server error"

    def __init__(self, detail: str, path: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.path = path

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        return {}


class Unauthorized(Problem):
    status, outcome, title = 401, "unauthorized", "An API key is required"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(Problem):
    status, outcome, title = 404, "not_found", "Not found"


class Refused(Problem):
    status, outcome, title = 409, "refused", "The new model was refused"


class NotJson(Problem):
    status, outcome, title = 400, "bad_request", "The body is not JSON"


class BadRequest(Problem):
    status, outcome, title = 422, "bad_request", "The request is invalid"


class TooLarge(Problem):
    status, outcome, title = 413, "too_large", "The body is too large"


class WrongType(Problem):
    status, outcome, title = 415, "wrong_type", "The body has the wrong content type"


class Overloaded(Problem):
    """More requests than the server can answer in time.

    The status is 429 rather than 503, because a load balancer takes a server that returns 503 out of rotation.
    """

    status, outcome, title = 429, "overloaded", "The server is overloaded"
    retry_after_s: ClassVar[int] = 1

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class ClientGone(Problem):
    status, outcome, title = 499, "client_gone", "The client disconnected"


class Failed(Problem):
    status, outcome, title = 500, "failed", "Internal server error"


class NotFinite(Failed):
    """The model's answer is NaN or infinite, usually because the bundle's files were overwritten."""


class NotReady(Problem):
    status, outcome, title = 503, "not_ready", "The server is not ready"


class DeadlineExceeded(Problem):
    status, outcome, title = 504, "deadline_exceeded", "The deadline has passed"
