"""Read the content type, body, arrival time and deadline of a request."""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.requests import Request

from service.errors import BadRequest, DeadlineExceeded, TooLarge, WrongType
from service.settings import MAX_TIMEOUT_MS, PREFIX

JSON = "application/json"
MAX_QUOTED_CHARS = 100  # maximum characters of a client's header that a message quotes


def check_content_type(request: Request, accepted: Sequence[str] = (JSON,)) -> None:
    """Raise WrongType unless the body is uncompressed and has one of the accepted types."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() not in accepted:
        raise WrongType(
            f"Content-Type is {content_type[:MAX_QUOTED_CHARS]!r}. Send Content-Type: {' or '.join(accepted)}."
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WrongType(
            f"Content-Encoding is {encoding[:MAX_QUOTED_CHARS]!r}. Send an uncompressed body without this header."
        )


async def read_body(
    request: Request, max_bytes: int, timeout_s: float, hold: Callable[[int], None], prefix: str = PREFIX
) -> bytes:
    """Return the body. Never holds more than `max_bytes` plus one chunk in memory.

    Args:
        request: A request whose body has not been read.
        max_bytes: Maximum size of the body.
        timeout_s: Maximum time for the body to arrive.
        hold: Called with the size of each chunk. It may raise a Problem.
        prefix: The prefix of the server's settings, for error messages.

    Raises:
        TooLarge: The body has more than `max_bytes`.
        DeadlineExceeded: The body did not arrive in time.
    """
    too_large = TooLarge(
        f"The body exceeds this server's limit of {max_bytes} bytes. "
        f"Split the request, or raise {prefix}MAX_BODY_BYTES."
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                hold(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The body did not arrive within {timeout_s:g} s. Send it faster, or raise {prefix}BODY_TIMEOUT_MS."
        ) from None
    return b"".join(chunks)


def arrival_s(request: Request) -> float:
    """Return the time at which the request's head arrived, on time.perf_counter's clock."""
    arrived_s: float = getattr(request.state, "arrived_s", None) or time.perf_counter()
    return arrived_s


def deadline(request: Request, arrived_s: float, timeout_ms: int | None, default_ms: int) -> float:
    """Return the request's deadline, on time.perf_counter's clock.

    Args:
        request: A request that may have the header X-Timeout-Ms.
        arrived_s: When the request arrived.
        timeout_ms: The timeout in the body, which overrides the header.
        default_ms: The timeout if the request sets neither.

    Raises:
        BadRequest: The header is not a valid timeout, and the body has none.
    """
    if timeout_ms is None:
        timeout_ms = default_ms
        if (header := request.headers.get("x-timeout-ms")) is not None:
            digits = header.strip()
            # Check the length first, because int() rejects strings of thousands of digits.
            valid = digits.isascii() and digits.isdigit() and len(digits) < 8 and 1 <= int(digits) <= MAX_TIMEOUT_MS
            if not valid:
                raise BadRequest(
                    f"Header X-Timeout-Ms: expected a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}."
                )
            timeout_ms = int(digits)
    return arrived_s + timeout_ms / 1e3
