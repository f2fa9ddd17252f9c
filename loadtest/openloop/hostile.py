"""Malformed and malicious requests, and the statuses with which a server may answer each."""

import msgspec

from loadtest.openloop.message import message

OVERLOADED = 429  # allowed for all scoring requests: admission control answers before the body is read
NESTING = 100_000


class Hostile(msgspec.Struct, frozen=True):
    """A hostile request.

    Args:
        name: Shown in reports.
        message: The bytes to send.
        statuses: The HTTP statuses that count as correct.
        hangs_up: Whether the client closes the connection shortly after sending `message`.
    """

    name: str
    message: bytes
    statuses: list[int] = []
    hangs_up: bool = False


def hostile_requests() -> list[Hostile]:
    valid = b'{"context":{},"candidates":[{"id":1,"features":{}}]}'
    length = f"Content-Length: {len(valid)}"
    nested = b'{"context":{"user":' + b"[" * NESTING + b"]" * NESTING + b"}}"
    return [
        Hostile("bad JSON", message(b'{"context": {'), [400, OVERLOADED]),
        Hostile("invalid UTF-8", message(b'{"context": {"user": "\xff"}}'), [400, OVERLOADED]),
        Hostile("NaN", message(b'{"context":{"hour":NaN},"candidates":[]}'), [400, OVERLOADED]),
        Hostile("too deep", message(nested), [422, OVERLOADED]),
        Hostile("candidates that are a string", message(b'{"context":{},"candidates":"all"}'), [422, OVERLOADED]),
        Hostile("no candidate", message(b'{"context":{},"candidates":[]}'), [422, OVERLOADED]),
        Hostile("Content-Length of 10 GB", with_headers("Content-Length: 10000000000") + b"{", [413, OVERLOADED]),
        Hostile("text/plain", message(valid, content_type="text/plain"), [415, OVERLOADED]),
        Hostile(
            "bad X-Timeout-Ms",
            with_headers(length, "X-Timeout-Ms: soon") + valid,
            [422, OVERLOADED],
        ),
        Hostile("header without a colon", with_headers("no header"), [400]),
        Hostile("endless header", with_headers("X-Endless: " + "x" * 200_000), [431]),
        Hostile("unknown route", message(b"", path="/v2/nothing"), [404]),
        Hostile("wrong method", message(b"", method="PUT"), [405, OVERLOADED]),
        Hostile("half a request", with_headers(length) + valid[:10], [OVERLOADED], hangs_up=True),
    ]


def with_headers(*headers: str) -> bytes:
    """Return the head of a POST to /v1/score with these headers."""
    lines = ("POST /v1/score HTTP/1.1", "Host: ctr", "Content-Type: application/json", *headers, "", "")
    return "\r\n".join(lines).encode()
