"""Reading one line of the request log or of the event log."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from msgspec import UNSET

from contract.events import MAX_CLOCK_SKEW_S, EventType, StoredEvent
from contract.request_log import FORMAT, LogLine
from contract.request_log_reader import NewerFormat, decode_line
from contract.score_ids import is_score_id, score_time_s

MAX_SKEW_MS = MAX_CLOCK_SKEW_S * 1000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
)

Problem = Literal["unreadable", "old format", "newer format", "invalid"]


class BadLineError(ValueError):
    """A line that cannot be joined.

    Attributes:
        problem: The kind of problem.
        type: The type of the event, if the line is an invalid event.
    """

    def __init__(self, problem: Problem, reason: str, event_type: EventType | None = None) -> None:
        super().__init__(reason)
        self.problem: Problem = problem
        self.type = event_type


@dataclass(frozen=True, slots=True)
class Event:
    """A valid event. Times are in milliseconds since 1970.

    Attributes:
        stored: The event as it was stored.
        answered_ms: When the server answered the request. The score id contains this time.
        sent_ms: When the event happened, by the client's clock.
        time_ms: `sent_ms`, or `received_ms` if the client's clock is ahead by more than MAX_SKEW_MS.
        received_ms: When ctr-collect received the event.
    """

    stored: StoredEvent
    answered_ms: int
    sent_ms: int
    time_ms: int
    received_ms: int

    @property
    def order(self) -> tuple[int, str, int]:
        """The key by which events are sorted to find the first one."""
        return self.time_ms, self.stored.event_id, self.received_ms


class _Typed(msgspec.Struct):
    type: EventType


_read_event = msgspec.json.Decoder(StoredEvent).decode
_read_type = msgspec.json.Decoder(_Typed).decode


def parse_request(line: bytes) -> LogLine:
    """Return a line of the request log.

    Raises:
        BadLineError: The line is damaged, or has another format. The message states the reason.
    """
    try:
        request = decode_line(line)
    except NewerFormat as error:
        raise BadLineError("newer format", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadLineError("unreadable", str(error)) from error
    if request.format < FORMAT:
        raise BadLineError("old format", "the line has format 1, which has no score_id. Upgrade the server.")
    try:
        _check_request(request)
    except ValueError as error:
        raise BadLineError("unreadable", str(error)) from error
    return request


def parse_event(line: bytes) -> Event:
    """Return an event of ctr-collect.

    Raises:
        BadLineError: The line is damaged, or the event is invalid. The message states the reason.
    """
    try:
        stored = _read_event(line)
    except (ValueError, RecursionError) as error:
        event_type = _type_of(line)
        raise BadLineError("invalid" if event_type else "unreadable", str(error), event_type) from error
    try:
        if not is_score_id(stored.score_id):
            raise ValueError(f"score_id {stored.score_id[:40]!r} is not a score id")
        sent_ms, received_ms = milliseconds(stored.time), milliseconds(stored.received)
        if stored.value is not UNSET and not math.isfinite(stored.value):
            raise ValueError("value must be a finite number")
        time_ms = received_ms if sent_ms > received_ms + MAX_SKEW_MS else sent_ms
        answered_ms = answer_ms(stored.score_id)
        if time_ms < answered_ms - MAX_SKEW_MS:
            raise ValueError(f"the event is from {(answered_ms - time_ms) / 1000:,.0f} s before the answer")
    except ValueError as error:
        raise BadLineError("invalid", str(error), stored.type) from error
    return Event(stored, answered_ms, sent_ms, time_ms, received_ms)


def answer_ms(score_id: str) -> int:
    """Return when the request of a score id was answered, in milliseconds since 1970."""
    return round(score_time_s(score_id) * 1000)


def milliseconds(text: str) -> int:
    """Return an ISO 8601 time with a time zone in milliseconds since 1970, rounded down.

    Raises:
        ValueError: The text is not such a time.
    """
    expected = "must be an ISO 8601 time with a time zone, such as 2026-01-31T21:00:00.250Z"
    if TIME.fullmatch(text) is None:
        raise ValueError(f"time {text[:40]!r} {expected}")
    try:
        return (datetime.fromisoformat(text) - EPOCH) // MILLISECOND
    except (ValueError, OverflowError) as error:
        raise ValueError(f"time {text[:40]!r} {expected}: {error}") from error


def _check_request(request: LogLine) -> None:
    if not is_score_id(request.score_id):
        raise ValueError(f"score_id {request.score_id[:40]!r} is not a score id")
    milliseconds(request.time)
    candidates = request.candidates or []
    if len({candidate.candidate for candidate in candidates}) < len(candidates):
        raise ValueError("two candidates have the same position")
    for candidate in candidates:
        if not 0 < candidate.inclusion <= 1:
            raise ValueError(f"inclusion = {candidate.inclusion} must be above 0 and at most 1")


def _type_of(line: bytes) -> EventType | None:
    try:
        return _read_type(line).type
    except (ValueError, RecursionError):
        return None
