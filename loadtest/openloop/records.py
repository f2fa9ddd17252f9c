"""One record per request of a load, and the statistics computed from the records.

Storing records instead of histograms makes it possible to evaluate any part of a run afterwards.
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
        ("status", "i2"),  # the HTTP status, or a constant of loadtest/openloop/connection.py
        ("timeout_ms", "u2"),
        ("hostile", "?"),
        ("checked", "?"),
        ("wrong", "?"),  # wrong scores, or the wrong status for a hostile request
        ("degraded", "?"),
    ]
)
Records = NDArray[np.void]
MAX_US = 60_000_000


def merge(parts: Sequence[Records]) -> Records:
    """Merge the records of several processes, ordered by intended time."""
    merged: Records = np.concatenate(parts) if parts else np.zeros(0, RECORD)
    return merged.take(np.argsort(merged["intended_s"], kind="stable"))


def scores(records: Records) -> Records:
    """Return the records of scoring requests, that is, without the hostile requests."""
    return records.compress(~records["hostile"])


def between(records: Records, begin_s: float, end_s: float) -> Records:
    """Return the records with an intended time in [begin_s, end_s)."""
    return records.compress((records["intended_s"] >= begin_s) & (records["intended_s"] < end_s))


def answered(records: Records) -> Records:
    """Return the records of requests answered with 200."""
    return records.compress(records["status"] == 200)


def count(records: Records, status: int) -> int:
    return int(np.count_nonzero(records["status"] == status))


def unanswered(records: Records) -> int:
    """Count the requests that were lost, could not connect, or hung."""
    return int(np.isin(records["status"], (LOST, REFUSED, HUNG)).sum())


def not_answered(records: Records) -> Counter[int]:
    """Count the requests not answered with 200, by status."""
    return Counter(records["status"][records["status"] != 200].tolist())


def described(statuses: Counter[int]) -> str:
    """Format counts by status, such as "3 (429 x2, lost x1)"."""
    names = ", ".join(f"{NAMES.get(status, status)} x{count}" for status, count in statuses.most_common())
    return f"{statuses.total()} ({names})" if names else "0"


def from_sent_ms(records: Records) -> NDArray[np.float64]:
    """Return the latencies, measured from the time at which each request was sent."""
    return np.asarray((records["ended_s"] - records["sent_s"]) * 1e3)


def from_intended_ms(records: Records) -> NDArray[np.float64]:
    """Return the latencies, measured from the intended send time.

    This is how long a user waits, including any delay before the client sent the request.
    """
    return np.asarray((records["ended_s"] - records["intended_s"]) * 1e3)


def lateness_ms(records: Records) -> NDArray[np.float64]:
    """Return how late each request was sent. High values mean that the client, not the server, was slow."""
    sent = records[records["status"] != REFUSED]
    return np.asarray((sent["sent_s"] - sent["intended_s"]) * 1e3)


def in_time(records: Records, since_ms: NDArray[np.float64], spare_ms: float = 0.0) -> NDArray[np.bool_]:
    """Return which requests were answered, with any status, within their deadline.

    Args:
        since_ms: Latency of each request, from the sent or the intended time.
        spare_ms: Tolerance added to each deadline.
    """
    return np.asarray((records["status"] > 0) & (since_ms <= records["timeout_ms"] + spare_ms))


def good(records: Records) -> int:
    """Count the requests answered with 200 within their deadline."""
    return int(np.count_nonzero(in_time(records, from_sent_ms(records)) & (records["status"] == 200)))


def quantiles_ms(values_ms: NDArray[np.float64], percents: Sequence[float]) -> list[float]:
    """Return the values' quantiles to three significant digits, or NaN if there are no values."""
    if not len(values_ms):
        return [float("nan")] * len(percents)
    histogram = HdrHistogram(1, MAX_US, 3)
    whole_us = np.clip(np.rint(values_ms * 1e3), 1, MAX_US).astype(np.int64)
    values_us, counts = np.unique(whole_us, return_counts=True)
    for value, times in zip(values_us.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, times)
    return [histogram.get_value_at_percentile(percent) / 1e3 for percent in percents]
