"""Read timestamps in any common format, and derive the hour, the weekday and the day of the month.

A timestamp is ISO 8601 text, or Unix time in seconds or milliseconds. Numbers may also be sent as text, because text
files have no types.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

# Numbers are Unix times of the years 1990 to 2099. Other numbers are refused: they are markers such as 0 and -1, or
# dates written as digits, such as 20260131, 202601312100 and 20260131210000. The seconds and the milliseconds of these
# years do not overlap.
MIN_SECONDS = 631_152_000
MAX_SECONDS = 4_102_444_800  # exclusive
MIN_MILLISECONDS = MIN_SECONDS * 1000
MAX_MILLISECONDS = MAX_SECONDS * 1000  # exclusive

# Python's fromisoformat() also accepts other formats, which depend on the version of Python.
ISO = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,][0-9]+)? ?(?P<offset>Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
EXPECTED = "must be an ISO 8601 time such as 2026-01-31T21:00:00Z, or Unix seconds or milliseconds"
KINDS = {dict: "an object", list: "a list", bool: "a boolean"}


def timestamp(value: Any) -> int | None:
    """Return a point in time in Unix seconds, rounded down, or None if the value is missing.

    Text without an offset is in UTC, and a date without a time is midnight UTC on that date. Numbers are seconds or
    milliseconds of the years 1990 to 2099.

    Raises:
        ValueError: The value is not a timestamp.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        return _from_iso(text) if (match := NUMBER.fullmatch(text)) is None else _from_number(_parsed(match[0]))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{EXPECTED}, or null, got {KINDS.get(type(value), f'a {type(value).__name__}')}")
    return _from_number(value)


def hour(seconds: int, zone: ZoneInfo | None) -> str:
    """Return the hour of the day, "0" to "23"."""
    return str(_local(seconds, zone).hour)


def weekday(seconds: int, zone: ZoneInfo | None) -> str:
    """Return the weekday, "1" (Monday) to "7" (Sunday), as in ISO 8601."""
    return str(_local(seconds, zone).isoweekday())


def day(seconds: int, zone: ZoneInfo | None) -> str:
    """Return the day of the month, "1" to "31"."""
    return str(_local(seconds, zone).day)


PARTS: dict[str, Callable[[int, ZoneInfo | None], str]] = {"hour": hour, "weekday": weekday, "day": day}


def time_zone(name: str) -> ZoneInfo:
    """Return the time zone with this IANA name.

    Raises:
        ValueError: There is no such time zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"timezone {name!r} is unknown: use an IANA name such as Europe/Istanbul. If the name is correct, install "
            "the package tzdata"
        ) from error


def _local(seconds: int, zone: ZoneInfo | None) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, zone or UTC)
    except (OverflowError, ValueError, OSError) as error:  # on the first or last day of the calendar
        raise ValueError(f"{EXPECTED}, got a time outside the years 1 to 9999 in the time zone") from error


def _from_iso(text: str) -> int:
    match = ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"{EXPECTED}, got {_shortened(text)}")
    offset = match["offset"] or "Z"
    try:
        moment = datetime.fromisoformat(
            f"{match['date']}T{match['time'] or '00:00'}{'Z' if offset == 'UTC' else offset}"
        )
    except ValueError as error:
        raise ValueError(f"{EXPECTED}, got {_shortened(text)}: {error}") from error
    return int(moment.timestamp())


def _from_number(value: float) -> int:
    if MIN_SECONDS <= value < MAX_SECONDS:
        return int(value)
    if MIN_MILLISECONDS <= value < MAX_MILLISECONDS:
        return int(value) // 1000
    got = repr(value) if abs(value) < 10**18 else "a larger number" if value > 0 else "a negative number"
    raise ValueError(f"{EXPECTED} from 1990 to 2099, got {got}")


def _parsed(number: str) -> float:
    return int(number) if number.isdigit() and len(number) < 20 else float(number)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
