"""Latencies and failures of a closed-loop load test, by tag, and the check against an SLO."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hdrh.histogram import HdrHistogram

MAX_US = 60_000_000
PERCENTS = (50, 90, 99, 99.9)


@dataclass(frozen=True)
class Slo:
    """A service level objective. A limit that is `None` is not checked.

    Args:
        p99_ms: Maximum p99 of the answered requests.
        failures: Maximum share of failed requests, from 0 to 1.
    """

    p99_ms: float | None = None
    failures: float | None = None


class Latencies:
    """Latency histograms by tag, and the number of failed requests.

    Histograms keep three significant digits: values up to 2 ms are exact to a microsecond.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._by_tag: defaultdict[str, HdrHistogram] = defaultdict(new_histogram)

    @property
    def answered(self) -> int:
        return sum(histogram.get_total_count() for histogram in self._by_tag.values())

    def record(self, tag: str, ms: float) -> None:
        """Record the latency of a request that was answered correctly."""
        self._by_tag[tag].record_value(max(1, min(MAX_US, round(ms * 1000))))

    def record_failure(self) -> None:
        self.failed += 1

    def take(self) -> dict[str, Any]:
        """Return everything recorded so far, for `add` in another process, and reset this object."""
        taken = {tag: histogram.encode().decode() for tag, histogram in self._by_tag.items()}
        failed, self.failed = self.failed, 0
        self._by_tag.clear()
        return {"failed": failed, "by_tag": taken}

    def add(self, taken: Mapping[str, Any]) -> None:
        """Add what `take` returned in another process."""
        self.failed += taken["failed"]
        for tag, encoded in taken["by_tag"].items():
            self._by_tag[tag].decode_and_add(encoded.encode())

    def total(self) -> HdrHistogram:
        """Return one histogram that covers all tags."""
        total = new_histogram()
        for histogram in self._by_tag.values():
            total.add(histogram)
        return total

    def lines(self) -> list[str]:
        """Return a line of quantiles for all requests, then one for each tag, shortest tag first."""
        by_size = sorted(self._by_tag.items(), key=lambda item: (len(item[0]), item[0]))
        return [quantile_line("all", self.total()), *(quantile_line(tag, histogram) for tag, histogram in by_size)]

    def violations(self, slo: Slo) -> list[str]:
        """Return a message for each limit of the SLO that was exceeded. If no request was sent, any SLO is violated."""
        sent = self.answered + self.failed
        if slo.p99_ms is None and slo.failures is None:
            return []
        if not sent:
            return ["SLO failed: no request was sent"]
        found = []
        if slo.p99_ms is not None and not self.answered:
            found.append(f"SLO failed: there is no p99, because all {self.failed} requests failed")
        elif slo.p99_ms is not None and (p99_ms := self.total().get_value_at_percentile(99) / 1000) > slo.p99_ms:
            over_ms = p99_ms - slo.p99_ms
            found.append(f"SLO failed: p99 is {p99_ms:.2f} ms, {over_ms:.2f} ms above the target of {slo.p99_ms:g} ms")
        if slo.failures is not None and (share := self.failed / sent) > slo.failures:
            over = f"{share - slo.failures:.3%} of all requests above the target of {slo.failures:.3%}"
            found.append(f"SLO failed: {self.failed} of {sent} requests failed ({share:.3%}), {over}")
        return found


def new_histogram() -> HdrHistogram:
    return HdrHistogram(1, MAX_US, 3)


def quantile_line(tag: str, histogram: HdrHistogram) -> str:
    """Return a line such as "all: answered 100 requests: p50 0.11 ms, ...", from a histogram in microseconds."""
    count = histogram.get_total_count()
    if not count:
        return f"{tag}: answered 0 requests"
    quantiles = ", ".join(
        f"p{percent:g} {histogram.get_value_at_percentile(percent) / 1000:.2f} ms" for percent in PERCENTS
    )
    return f"{tag}: answered {count} requests: {quantiles}"
