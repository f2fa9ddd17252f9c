"""Decode the events of a request, and check each of them on its own.

A body is a JSON object, a JSON list, or NDJSON: one object per line. An invalid event does not affect the others.
"""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, Raw

from contract.events import MAX_CLOCK_SKEW_S, MAX_ID_CHARS, MAX_POSITION, Event, StoredEvent
from contract.reader import shorten
from contract.score_ids import is_score_id, score_time_s
from service.api.lexical_faults import MARK, MESSAGES, confine_faults, describe_fault
from service.api.msgspec_errors import InvalidValue, parse_validation_error
from service.errors import NotJson, TooLarge

MAX_REASON_CHARS = 300
MAX_NAMED_BYTES = 16 * 1024  # In a larger event, only the first unknown member is named.

EVENT = msgspec.json.Decoder(Event)
EVENT_LIST = msgspec.json.Decoder(list[Event])
# A Raw value is not checked for UTF-8, so an invalid string does not affect the values around it.
ANY_JSON = msgspec.json.Decoder(Raw)
RAW_LIST = msgspec.json.Decoder(list[Raw])
RAW_OBJECT = msgspec.json.Decoder(dict[str, Raw])
ENCODER = msgspec.json.Encoder()
UNREADABLE = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITE_SPACE = b" \t\r\n"
CONFINED = re.compile(b'"' + MARK.encode("utf-8", "surrogateescape") + b'([a-z])"')  # what confine_faults() writes
MEMBERS = Event.__struct_fields__
EXPECTED = {
    "event_id": f"a string of 1 to {MAX_ID_CHARS} characters",
    "type": '"impression", "click" or "conversion"',
    "score_id": "the score_id of a response, as a string",
    "candidate": f"a whole number from 0 to {MAX_POSITION}",
    "time": "an ISO 8601 time with a time zone, such as 2026-11-30T20:00:00.123Z",
    "position": f"a whole number from 0 to {MAX_POSITION}",
    "propensity": "a number above 0, and at most 1",
    "value": "a finite number",
}


class InvalidEvent(msgspec.Struct):
    """An event that was not stored.

    Attributes:
        position: Its position in the list, or its line without counting empty lines. The first one has position 0.
        reason: What is wrong with it.
    """

    position: int
    reason: str


class WrongEvent(ValueError):
    """An event is invalid. The message says why."""


@dataclass(frozen=True)
class Limits:
    """What a body may contain.

    Attributes:
        max_events: Maximum number of events.
        max_skew_s: How long before the answer, or in the future, an event may have happened by the client's clock.
    """

    max_events: int
    max_skew_s: float


@dataclass
class CheckedEvents:
    """The events of a body.

    Attributes:
        lines: The valid events as NDJSON.
        types: Number of valid events by type.
        invalid: The other events.
        skewed: Number of valid events whose time shows that the client's clock is wrong by more than MAX_CLOCK_SKEW_S.
    """

    lines: bytes = b""
    types: Counter[str] = field(default_factory=Counter)
    invalid: list[InvalidEvent] = field(default_factory=list)
    skewed: int = 0


def check_events(body: bytes, now_s: float, client: str | None, limits: Limits) -> CheckedEvents:
    """Return the events of a body, valid and invalid ones separately.

    Args:
        body: The body of a request, or the value of an entry of the Redis stream.
        now_s: The time in seconds since 1970.
        client: The name of the client's API key, if it has one.
        limits: What the body may contain.

    Raises:
        NotJson: The body is not JSON, or has no events.
        TooLarge: The body has too many events.
    """
    received = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
    checked, stored = CheckedEvents(), []
    for position, event in enumerate(decode_events(body, limits.max_events)):
        try:
            if isinstance(event, WrongEvent):
                raise event
            time, is_skewed = check_times(event, now_s, limits.max_skew_s)
        except WrongEvent as error:
            checked.invalid.append(InvalidEvent(position, shorten(str(error), MAX_REASON_CHARS)))
            continue
        checked.skewed += is_skewed
        checked.types[event.type] += 1
        stored.append(
            StoredEvent(
                event.event_id,
                event.type,
                event.score_id,
                event.candidate,
                time,
                event.position,
                event.propensity,
                event.value,
                received=received,
                client=UNSET if client is None else client,
            )
        )
    checked.lines = ENCODER.encode_lines(stored)
    return checked


def check_times(event: Event, now_s: float, max_skew_s: float) -> tuple[str, bool]:
    """Return the event's time in UTC, and whether it shows that the client's clock is wrong.

    Raises:
        WrongEvent: The score id or the time is invalid, or the time is impossible.
    """
    if not is_score_id(event.score_id):
        raise WrongEvent(f"score_id: expected {EXPECTED['score_id']}")
    try:
        moment = datetime.fromisoformat(event.time)
    except ValueError:
        raise WrongEvent(f"time: expected {EXPECTED['time']}") from None
    if moment.tzinfo is None:
        raise WrongEvent(f"time: it has no time zone; expected {EXPECTED['time']}")
    answered_s, happened_s = score_time_s(event.score_id), moment.timestamp()
    if answered_s > now_s + max_skew_s:
        raise WrongEvent("score_id: it is of an answer in the future. Send the score_id of the response.")
    if happened_s < answered_s - max_skew_s:
        raise WrongEvent(f"time: more than {max_skew_s:g} s before the answer. Check the client's clock.")
    if happened_s > now_s + max_skew_s:
        raise WrongEvent(f"time: more than {max_skew_s:g} s in the future. Check the client's clock.")
    is_skewed = happened_s < answered_s - MAX_CLOCK_SKEW_S or happened_s > now_s + MAX_CLOCK_SKEW_S
    return moment.astimezone(UTC).isoformat(timespec="microseconds"), is_skewed


def decode_events(body: bytes, max_events: int) -> "list[Event] | list[Event | WrongEvent]":
    """Return the events of a body. A WrongEvent takes the place of an event that cannot be decoded.

    Raises:
        NotJson: The body is not JSON, or has no events.
        TooLarge: The body has too many events.
    """
    body = body.removeprefix(BYTE_ORDER_MARK).strip(WHITE_SPACE)
    try:
        events = EVENT_LIST.decode(body) if body.startswith(b"[") else EVENT.decode_lines(body)
    except UNREADABLE:
        parts = split_events(body)
        check_count(len(parts), max_events)
        return [decode_event(part) for part in parts]
    check_count(len(events), max_events)
    return events


def check_count(events: int, max_events: int) -> None:
    """Raise NotJson if a body has no events, or TooLarge if it has too many."""
    if not events:
        raise NotJson("The body has no events. Send an object, a list of objects, or one object per line.")
    if events > max_events:
        raise TooLarge(f"The body has {events} events; at most {max_events} are allowed. Send several requests.")


def split_events(body: bytes) -> list[Raw] | list[bytes]:
    """Return the parts of a body that should be events. Raises NotJson."""
    if body.startswith(b"["):
        try:
            return RAW_LIST.decode(body)
        except UNREADABLE:
            pass
        try:
            return RAW_LIST.decode(confine_faults(body))
        except UNREADABLE as error:
            raise NotJson(
                f"The body begins like a list, but is not JSON: {shorten(str(error), MAX_REASON_CHARS)}."
            ) from None
    try:
        return [ANY_JSON.decode(body)]  # an object, which may take several lines
    except UNREADABLE:
        return [line for line in body.split(b"\n") if line.strip(WHITE_SPACE)]


def decode_event(part: Raw | bytes) -> Event | WrongEvent:
    """Return an event, or why it cannot be decoded."""
    try:
        return EVENT.decode(part)
    except UnicodeDecodeError as error:
        return WrongEvent(describe_fault(error))
    except RecursionError:
        return WrongEvent("The value is nested too deeply.")
    except msgspec.ValidationError as error:
        if fault := CONFINED.search(bytes(part)):
            return WrongEvent(MESSAGES[fault[1].decode()])
        return WrongEvent(describe_invalid_value(parse_validation_error(error), part))
    except msgspec.DecodeError as error:
        return WrongEvent(f"This is not JSON: {error}.")


def describe_invalid_value(invalid: InvalidValue, part: Raw | bytes) -> str:
    """Return what is wrong with an event that is JSON."""
    if invalid.unknown_field is not None:
        unknown = [invalid.unknown_field]
        if len(bytes(part)) <= MAX_NAMED_BYTES:
            with suppress(*UNREADABLE):
                unknown = [name for name in RAW_OBJECT.decode(part) if name not in MEMBERS]
        names = ", ".join(repr(shorten(name)) for name in unknown)
        return f"unknown: {names}. An event has {', '.join(MEMBERS)}."
    if invalid.missing_field is not None:
        return f"{invalid.missing_field} is missing; expected {EXPECTED[invalid.missing_field]}"
    got = "" if invalid.got is None else f", got {invalid.got}"
    if not invalid.path:
        return f"expected an object{got}"
    name = str(invalid.path[0])
    return f"{name}: expected {EXPECTED.get(name, 'another value')}{got}"
