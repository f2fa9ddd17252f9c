"""A point in time in every notation that contract/timestamps.py accepts, and an experiment that reads timestamps."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from contract.timestamps import MAX_SECONDS, MIN_SECONDS

# An experiment whose log has raw timestamps. Lines for further [[data.fields]] and sections can be added at the end.
TOML = """
name = "timed"
[data]
reader = "table"
folder = "timed"
prepared = "prepared"
train = "train.csv"
valid = "valid.csv"
test = "test.csv"
label = "click"
[[data.fields]]
name = "hour"
side = "context"
from = "shown_at"
transform = "hour"
timezone = "Europe/Istanbul"
[[data.fields]]
name = "weekday"
side = "context"
from = "shown_at"
transform = "weekday"
timezone = "Europe/Istanbul"
missing = ["never"]
[[data.fields]]
name = "ad"
side = "candidate"
[[data.fields]]
name = "price"
side = "candidate"
kind = "numeric"
transform = "log1p"
"""
MOMENTS = st.integers(MIN_SECONDS, MAX_SECONDS - 1)
ZONES = ("UTC", "Europe/Istanbul", "America/New_York", "Asia/Kolkata", "America/St_Johns", "Pacific/Apia")


def notations(seconds: int, millisecond: int = 0, offset_minutes: int = 0) -> list[Any]:
    """Return a point in time as text and numbers.

    Args:
        seconds: Unix seconds.
        millisecond: Milliseconds to add, 0 to 999.
        offset_minutes: The offset from UTC in minutes, in the strings that contain an offset.
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    there = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    fraction = f".{millisecond:03}"
    texts = [
        there.isoformat(),
        there.isoformat(sep=" ") + " ",
        f"{there:%Y-%m-%dT%H:%M:%S}{fraction}{there:%z}",
        f"{moment:%Y-%m-%dT%H:%M:%S}Z",
        f"{moment:%Y-%m-%d %H:%M:%S}{fraction} UTC",
        f"{moment:%Y-%m-%d %H:%M:%S},{millisecond:03}000",
        f"{moment:%Y-%m-%d %H:%M:%S}",
        f"{moment:%Y-%m-%d %H:%M:%S} +00",
        str(seconds),
        str(seconds * 1000 + millisecond),
        f"{seconds}{fraction}",
        f"{seconds}.0",
    ]
    numbers = [
        seconds,
        float(seconds),
        seconds + 0.5,
        seconds * 1000 + millisecond,
        float(seconds * 1000 + millisecond),
    ]
    return [*texts, *numbers]


def all_notations() -> st.SearchStrategy[tuple[int, list[Any]]]:
    """Generate a point in time in Unix seconds, and the same time in every format."""
    return st.tuples(MOMENTS, st.integers(0, 999), st.integers(-23 * 60, 23 * 60)).map(
        lambda drawn: (drawn[0], notations(*drawn))
    )
