"""The time that the server spent in each phase during a load: /metrics after the load minus /metrics before it."""

import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import OK, PHASES

PHASE, REQUEST = "ctr_phase_seconds", "ctr_request_seconds"
SCRAPE_TIMEOUT_S = 5.0
Key = TypeVar("Key")


@dataclass(frozen=True)
class Counts:
    """The server's histograms since it started.

    Args:
        phase_s, phase_count: Total seconds in each phase, and number of requests that reached it.
        by_bound: Upper bound of each bucket in seconds -> number of scored requests that took no longer.
    """

    phase_s: dict[str, float] = field(default_factory=dict)
    phase_count: dict[str, float] = field(default_factory=dict)
    by_bound: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerTimes:
    """Server-side metrics for one load.

    Args:
        mean_ms: Mean time in each phase, over the requests that reached it.
        scored: Number of scored requests.
        p50_ms, p99_ms: Latency of the scored requests, accurate to one histogram bucket (about 20%). NaN if there were
            none.
    """

    mean_ms: dict[str, float]
    scored: int
    p50_ms: float
    p99_ms: float

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values, in the format of a load's summary."""
        phases = ", ".join(f"{name} {ms:.2f}" for name, ms in self.mean_ms.items())
        return [
            ("server: phases, mean ms", phases),
            ("server: scored, ms", f"{self.scored}, p50 {self.p50_ms:.2f}, p99 {self.p99_ms:.2f}"),
        ]


def scrape(metrics_url: str) -> Counts | None:
    """Return the server's counts, or None if the server is not this project's or does not answer."""
    try:
        with urllib.request.urlopen(metrics_url, timeout=SCRAPE_TIMEOUT_S) as answer:  # noqa: S310  # the user's URL
            return counts(answer.read().decode())
    except (OSError, HTTPException, ValueError):
        return None


def counts(text: str) -> Counts | None:
    """Parse metrics in Prometheus's text format. Return None if they are not from this project's server.

    Raises:
        ValueError: The text is not in Prometheus's format.
    """
    found = Counts()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if sample.name == f"{PHASE}_sum":
                found.phase_s[labels["phase"]] = sample.value
            elif sample.name == f"{PHASE}_count":
                found.phase_count[labels["phase"]] = sample.value
            elif sample.name == f"{REQUEST}_bucket" and labels.get("outcome") == OK:
                found.by_bound[float(labels["le"])] = sample.value
    return found if found.phase_count and found.by_bound else None


def server_times(before: Counts | None, after: Counts | None) -> ServerTimes | None:
    """Return the times between two scrapes, or None if one is missing or the server restarted in between."""
    if before is None or after is None:
        return None
    phase_s = increase(before.phase_s, after.phase_s)
    phase_count = increase(before.phase_count, after.phase_count)
    by_bound = increase(before.by_bound, after.by_bound)
    if min(*phase_count.values(), *by_bound.values()) < 0:
        return None
    reached = [name for name in PHASES if phase_count.get(name)]
    mean_ms = {name: 1e3 * phase_s[name] / phase_count[name] for name in reached}
    p50_ms, p99_ms = (1e3 * quantile(by_bound, share) for share in (0.5, 0.99))
    return ServerTimes(mean_ms, round(by_bound[math.inf]), p50_ms, p99_ms)


def increase(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def quantile(by_bound: Mapping[float, float], share: float) -> float:
    """Return a quantile of a histogram, assuming that the values in each bucket are evenly spread.

    Args:
        by_bound: Upper bound of each bucket -> number of values up to it.
        share: Which quantile, from 0 to 1.

    Returns:
        The quantile, capped at the highest finite bound. NaN if the histogram is empty.
    """
    bounds = sorted(by_bound)
    rank = share * by_bound[bounds[-1]]
    if not rank:
        return math.nan
    low, below = 0.0, 0.0
    for bound in bounds:
        if by_bound[bound] >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (by_bound[bound] - below)
        low, below = bound, by_bound[bound]
    return low
