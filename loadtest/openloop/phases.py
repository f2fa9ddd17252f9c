"""Where the server spent its time during a load, by itself: what /metrics says after it, less what it said before."""

import math
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import OK, PHASES

PHASE, REQUEST = "ctr_phase_seconds", "ctr_request_seconds"
SCRAPE_S = 5.0
Key = TypeVar("Key")


@dataclass(frozen=True)
class Counts:
    """Of a server's whole life. by_bound: requests with scores that took no longer than so many seconds."""

    phase_s: dict[str, float] = field(default_factory=dict)
    phase_count: dict[str, float] = field(default_factory=dict)
    by_bound: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Of one load. mean_ms: of each phase, over the requests that came so far. The quantiles are those of the requests
    with scores, and right to the width of a bucket, a fifth; NaN where there were none."""

    mean_ms: dict[str, float]
    scored: int
    p50_ms: float
    p99_ms: float

    def rows(self) -> list[tuple[str, str]]:
        """Names and figures, as in the summary of a load."""
        phases = ", ".join(f"{name} {ms:.2f}" for name, ms in self.mean_ms.items())
        return [
            ("server: phases, mean ms", phases),
            ("server: scored, ms", f"{self.scored}, p50 {self.p50_ms:.2f}, p99 {self.p99_ms:.2f}"),
        ]


def scrape(metrics_url: str) -> Counts | None:
    """None: there is nothing to be had, or it is another server's."""
    try:
        with urllib.request.urlopen(metrics_url, timeout=SCRAPE_S) as answer:  # noqa: S310  # the operator's own
            return counts(answer.read().decode())
    except (OSError, HTTPException, ValueError):
        return None


def counts(text: str) -> Counts | None:
    """Of a page in Prometheus's text format. None: without this server's metrics.

    Raises:
        ValueError: when it is no such page.
    """
    found = Counts()
    for family in text_string_to_metric_families(text):
        if family.name == PHASE:
            found.phase_s.update(_by_label(family, f"{PHASE}_sum", "phase"))
            found.phase_count.update(_by_label(family, f"{PHASE}_count", "phase"))
        elif family.name == REQUEST:
            by_bound = _by_label(family, f"{REQUEST}_bucket", "le", {"outcome": OK})
            found.by_bound.update({float(bound): value for bound, value in by_bound})
    return found if found.phase_count and found.by_bound else None


def split(before: Counts | None, after: Counts | None) -> Split | None:
    """None: without both, or when the server began to count again in between."""
    if before is None or after is None:
        return None
    phase_s, phase_count = _since(before.phase_s, after.phase_s), _since(before.phase_count, after.phase_count)
    by_bound = _since(before.by_bound, after.by_bound)
    if min(*phase_count.values(), *by_bound.values()) < 0:
        return None
    reached = [name for name in PHASES if phase_count.get(name)]
    mean_ms = {name: 1e3 * phase_s[name] / phase_count[name] for name in reached}
    p50_ms, p99_ms = (1e3 * quantile(by_bound, share) for share in (0.5, 0.99))
    return Split(mean_ms, round(by_bound[math.inf]), p50_ms, p99_ms)


def quantile(by_bound: Mapping[float, float], share: float) -> float:
    """Of a histogram's cumulative counts, as if the values in a bucket were spread evenly. Above the highest bound that
    is finite: that bound. NaN where there is nothing."""
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


def _by_label(
    family: Metric, name: str, label: str, where: Mapping[str, str] | None = None
) -> Iterator[tuple[str, float]]:
    for sample in family.samples:
        if sample.name == name and (where or {}).items() <= sample.labels.items():
            yield sample.labels[label], sample.value


def _since(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    return {key: value - before.get(key, 0.0) for key, value in after.items()}
