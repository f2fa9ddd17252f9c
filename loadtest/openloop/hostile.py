"""Requests that no honest client sends, and what is right to answer each with."""

import msgspec

from loadtest.openloop.message import message

OVERLOADED = 429  # right for all that ask for scores: it is said before anything is read
DEEP = 100_000


class Hostile(msgspec.Struct, frozen=True):
    """statuses: those that are right. hangs_up: sends no more than this, waits a little and is gone."""

    name: str
    message: bytes
    statuses: list[int] = []
    hangs_up: bool = False


def hostile_requests() -> list[Hostile]:
    one = b'{"context":{},"candidates":[{"id":1,"features":{}}]}'
    return [
        Hostile("bad JSON", message(b'{"context": {'), [400, OVERLOADED]),
        Hostile("no UTF-8", message(b'{"context": {"user": "\xff"}}'), [400, OVERLOADED]),
        Hostile("NaN", message(b'{"context":{"hour":NaN},"candidates":[]}'), [400, OVERLOADED]),
        Hostile("too deep", message(b'{"context":{"user":' + b"[" * DEEP + b"]" * DEEP + b"}}"), [422, OVERLOADED]),
        Hostile("candidates that are none", message(b'{"context":{},"candidates":"all"}'), [422, OVERLOADED]),
        Hostile("no candidate", message(b'{"context":{},"candidates":[]}'), [422, OVERLOADED]),
        Hostile("a huge body announced", _head("Content-Length: 10000000000") + b"{", [413, OVERLOADED]),
        Hostile("text", message(one, content_type="text/plain"), [415, OVERLOADED]),
        Hostile("a bad X-Timeout-Ms", _with_header("X-Timeout-Ms: soon", one), [422, OVERLOADED]),
        Hostile("a header that is none", _head("no header"), [400]),
        Hostile("an endless header", _head("X-Endless: " + "x" * 200_000), [431]),
        Hostile("an unknown route", message(b"", path="/v2/nothing"), [404]),
        Hostile("another method", message(b"", method="PUT"), [405, OVERLOADED]),
        Hostile("half a request", _head(f"Content-Length: {len(one)}") + one[:10], [OVERLOADED], hangs_up=True),
    ]


def _head(header: str) -> bytes:
    return f"POST /v1/score HTTP/1.1\r\nHost: ctr\r\nContent-Type: application/json\r\n{header}\r\n\r\n".encode()


def _with_header(header: str, body: bytes) -> bytes:
    return _head(f"Content-Length: {len(body)}\r\n{header}") + body
