"""What comes in of a request, before anybody reads it: its type, its body, when it was there, until when it waits."""

import asyncio
import time
from collections.abc import Callable

from starlette.requests import Request

from service.errors import BadRequest, DeadlineExceeded, TooLarge, WrongType
from service.settings import MAX_TIMEOUT_MS

JSON = "application/json"


def check_type(request: Request) -> None:
    """Raises WrongType for anything but plain JSON."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != JSON:
        raise WrongType(f"The content type is {given[:100]!r}: send 'Content-Type: {JSON}'")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WrongType(f"The content encoding is {encoding[:100]!r}: send the body as it is, without Content-Encoding")


async def read_body(request: Request, limit: int, longest_s: float, hold: Callable[[int], None]) -> bytes:
    """Never holds more than the limit and one chunk in memory. hold: is told of each chunk's bytes.

    Raises:
        TooLarge: above the limit. DeadlineExceeded: when it comes too slowly.
    """
    too_large = TooLarge(f"This server reads at most {limit} bytes: split the request, or raise CTR_MAX_BODY_BYTES")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(longest_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                hold(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(f"The body did not arrive within {longest_s:g} s: send it faster") from None
    return b"".join(chunks)


def arrival_s(request: Request) -> float:
    """When the request's head was there, on time.perf_counter's clock."""
    known: float = getattr(request.state, "arrived_s", None) or time.perf_counter()
    return known


def deadline(request: Request, arrived_s: float, asked_ms: int | None, otherwise_ms: int) -> float:
    """Until when to answer, on the same clock: by the body (asked_ms), else by the header. Raises BadRequest."""
    return arrived_s + (asked_ms or _timeout_ms(request, otherwise_ms)) / 1e3


def _timeout_ms(request: Request, otherwise: int) -> int:
    given = request.headers.get("x-timeout-ms")
    if given is None:
        return otherwise
    given = given.strip()
    if not (given.isascii() and given.isdigit() and len(given) < 8 and 1 <= int(given) <= MAX_TIMEOUT_MS):
        raise BadRequest(f"header X-Timeout-Ms: send whole milliseconds from 1 to {MAX_TIMEOUT_MS}")
    return int(given)
