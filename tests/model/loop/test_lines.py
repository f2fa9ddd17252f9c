"""Which lines are refused, and why."""

import msgspec
import pytest

from contract.request_log import LoggedCandidate
from model.loop.lines import BadLineError, milliseconds, parse_event, parse_request
from tests.support.loop_logs import AD, event, request, score_id
from tests.support.request_log import FIRST_FORMAT_LINE


@pytest.mark.parametrize(
    ("line", "problem", "reason"),
    [
        (b"", "unreadable", "truncated"),
        (b"\xff", "unreadable", "invalid"),
        (b'{"context": {"user": ' + b"[" * 100_000, "unreadable", "recursion"),
        (b'{"format": "2"}', "unreadable", "format"),
        (FIRST_FORMAT_LINE, "old format", "format 1, which has no score_id"),
        (b"{}", "unreadable", "time"),
        (request(1, format=3), "newer format", "the line has format 3; this version reads formats up to 2"),
        (request(1).replace(score_id(1).encode(), b"r1"), "unreadable", "score_id 'r1' is not a score id"),
        (request(1, candidates=[AD, LoggedCandidate(0, "x", AD)]), "unreadable", "two candidates have the same"),
        (request(1, candidates=[LoggedCandidate(0, "x", AD, inclusion=0)]), "unreadable", "inclusion = 0"),
    ],
)
def test_a_bad_line_of_the_request_log(line: bytes, problem: str, reason: str) -> None:
    with pytest.raises(BadLineError) as raised:
        parse_request(line)
    assert raised.value.problem == problem
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "problem", "reason"),
    [
        ({"type": "view"}, "unreadable", "type"),
        ({"candidate": -1}, "invalid", "candidate"),
        ({"time": "2026-11-30T20:00:00"}, "invalid", "must be an ISO 8601 time with a time zone"),
        ({"time": "2026-02-30T20:00:00Z"}, "invalid", "day is out of range"),
        ({"received": "yesterday"}, "invalid", "time 'yesterday' must be"),
        ({"score_id": "s"}, "invalid", "score_id 's' is not a score id"),
        ({"unknown": 1}, "invalid", "unknown"),
    ],
)
def test_a_bad_event(changes: dict[str, object], problem: str, reason: str) -> None:
    line = msgspec.json.encode(msgspec.json.decode(event("click", score_id(1), 1)) | changes)
    with pytest.raises(BadLineError) as raised:
        parse_event(line)
    assert (raised.value.problem, raised.value.type) == (problem, "click" if problem == "invalid" else None)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01.234567Z", 1234),
        ("1970-01-01 03:00:01,5+03:00", 1500),
        ("1970-01-01T00:00-0030", 1_800_000),
        ("1969-12-31T23:59:59.9999Z", -1),
    ],
)
def test_times_are_read_in_milliseconds(text: str, expected: int) -> None:
    assert milliseconds(text) == expected
