"""What became of every request of a load, and the figures that are read off it.

One record a request, and not one histogram a second: a phase of a run may be cut out afterwards, anywhere.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from loadtest.openloop.connection import HUNG, HUNG_UP, LOST, REFUSED

NAMES = {LOST: "lost", REFUSED: "no connection", HUNG: "hung", HUNG_UP: "hung up"}

RECORD = np.dtype(
    [
        ("intended_s", "f8"),  # time.monotonic()
        ("sent_s", "f8"),
        ("ended_s", "f8"),
        ("status", "i2"),  # HTTP's, or one of loadtest/openloop/connection.py
        ("timeout_ms", "u2"),
        ("hostile", "?"),
        ("checked", "?"),
        ("wrong", "?"),  # scores that differ, or a hostile request's status that is none of the right ones
        ("degraded", "?"),
    ]
)
Records = NDArray[np.void]
LONGEST_US = 60_000_000


def merge(parts: Sequence[Records]) -> Records:
    """In the order in which they were meant to be sent."""
    merged: Records = np.concatenate(parts) if parts else np.zeros(0, RECORD)
    return merged.take(np.argsort(merged["intended_s"], kind="stable"))


def scores(records: Records) -> Records:
    """Without the hostile ones."""
    return records.compress(~records["hostile"])


def between(records: Records, begin_s: float, end_s: float) -> Records:
    """Those that were meant to be sent then."""
    return records.compress((records["intended_s"] >= begin_s) & (records["intended_s"] < end_s))


def answered(records: Records) -> Records:
    return records.compress(records["status"] == 200)


def count(records: Records, status: int) -> int:
    return int(np.count_nonzero(records["status"] == status))


def unanswered(records: Records) -> int:
    """Lost, refused or hung."""
    return int(np.isin(records["status"], (LOST, REFUSED, HUNG)).sum())


def not_answered(records: Records) -> Counter[int]:
    """By status, those without scores."""
    return Counter(records["status"][records["status"] != 200].tolist())


def described(statuses: Counter[int]) -> str:
    """3 (429 x2, lost x1)"""
    names = ", ".join(f"{NAMES.get(status, status)} x{count}" for status, count in statuses.most_common())
    return f"{statuses.total()} ({names})" if names else "0"


def from_sent_ms(records: Records) -> NDArray[np.float64]:
    return np.asarray((records["ended_s"] - records["sent_s"]) * 1e3)


def from_intended_ms(records: Records) -> NDArray[np.float64]:
    """What a user waits: a client that sends late, or a server that lets it wait, counts."""
    return np.asarray((records["ended_s"] - records["intended_s"]) * 1e3)


def lateness_ms(records: Records) -> NDArray[np.float64]:
    """How long after its time each request was sent. Large: the client was the slow one."""
    sent = records[records["status"] != REFUSED]
    return np.asarray((sent["sent_s"] - sent["intended_s"]) * 1e3)


def in_time(records: Records, since_ms: NDArray[np.float64], spare_ms: float = 0.0) -> NDArray[np.bool_]:
    """Which were answered, with scores or with a refusal, within their deadline and `spare_ms`."""
    return np.asarray((records["status"] > 0) & (since_ms <= records["timeout_ms"] + spare_ms))


def good(records: Records) -> int:
    """Scores within the deadline."""
    return int(np.count_nonzero(in_time(records, from_sent_ms(records)) & (records["status"] == 200)))


def quantiles_ms(values_ms: NDArray[np.float64], percents: Sequence[float]) -> list[float]:
    """By an HDR histogram with three digits. NaN where there is nothing."""
    if not len(values_ms):
        return [float("nan")] * len(percents)
    histogram = HdrHistogram(1, LONGEST_US, 3)
    us, counts = np.unique(np.clip(np.rint(values_ms * 1e3), 1, LONGEST_US).astype(np.int64), return_counts=True)
    for value, times in zip(us.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, times)
    return [histogram.get_value_at_percentile(percent) / 1e3 for percent in percents]
