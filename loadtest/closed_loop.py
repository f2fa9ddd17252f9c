"""What the users of a closed loop saw: how long answers took, by tag, and how many requests failed; and whether an SLO
was kept."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hdrh.histogram import HdrHistogram

LONGEST_US = 60_000_000
PERCENTS = (50, 90, 99, 99.9)


@dataclass(frozen=True)
class Slo:
    """p99_ms: of what was answered. failures: the share of all requests that may fail. None: not asked for."""

    p99_ms: float | None = None
    failures: float | None = None

    def __bool__(self) -> bool:
        return self.p99_ms is not None or self.failures is not None


class Latencies:
    """Histograms of three digits: right to a microsecond up to 2 ms, and to a thousandth above."""

    def __init__(self) -> None:
        self.failed = 0
        self._by_tag: defaultdict[str, HdrHistogram] = defaultdict(_histogram)

    @property
    def answered(self) -> int:
        return sum(histogram.get_total_count() for histogram in self._by_tag.values())

    def record(self, tag: str, ms: float) -> None:
        """Of a request that was answered as it should be."""
        self._by_tag[tag].record_value(max(1, min(LONGEST_US, round(ms * 1000))))

    def record_failure(self) -> None:
        self.failed += 1

    def take(self) -> dict[str, Any]:
        """What is there, for `add` in another process; here it starts again from nothing."""
        taken = {tag: histogram.encode().decode() for tag, histogram in self._by_tag.items()}
        failed, self.failed = self.failed, 0
        self._by_tag.clear()
        return {"failed": failed, "by_tag": taken}

    def add(self, taken: Mapping[str, Any]) -> None:
        self.failed += taken["failed"]
        for tag, encoded in taken["by_tag"].items():
            self._by_tag[tag].decode_and_add(encoded.encode())

    def lines(self) -> list[str]:
        """A line for all, and one for each tag."""
        by_size = sorted(self._by_tag.items(), key=lambda item: (len(item[0]), item[0]))
        return [_line("all", self._all()), *(_line(tag, histogram) for tag, histogram in by_size)]

    def missed(self, slo: Slo) -> list[str]:
        """A sentence for each promise that was not kept, by how much. No requests keep none."""
        if slo and not self.answered + self.failed:
            return ["SLO missed: there were no requests at all"]
        return [sentence for sentence in (self._missed_p99(slo), self._missed_failures(slo)) if sentence]

    def _missed_p99(self, slo: Slo) -> str | None:
        if slo.p99_ms is None:
            return None
        if not self.answered:
            return f"SLO missed: there is no p99, as all {self.failed} requests failed"
        p99_ms = self._all().get_value_at_percentile(99) / 1000
        if p99_ms <= slo.p99_ms:
            return None
        over_ms = p99_ms - slo.p99_ms
        return f"SLO missed: p99 was {p99_ms:.2f} ms, {over_ms:.2f} ms above the {slo.p99_ms:g} ms promised"

    def _missed_failures(self, slo: Slo) -> str | None:
        if slo.failures is None:
            return None
        sent = self.answered + self.failed
        share = self.failed / sent
        if share <= slo.failures:
            return None
        over = f"{share - slo.failures:.3%} of all above the {slo.failures:.3%} promised"
        return f"SLO missed: {self.failed} of {sent} requests failed, {share:.3%}: {over}"

    def _all(self) -> HdrHistogram:
        total = _histogram()
        for histogram in self._by_tag.values():
            total.add(histogram)
        return total


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, 3)


def _line(tag: str, histogram: HdrHistogram) -> str:
    count = histogram.get_total_count()
    if not count:
        return f"{tag}: answered 0 requests"
    quantiles = ", ".join(
        f"p{percent:g} {histogram.get_value_at_percentile(percent) / 1000:.2f} ms" for percent in PERCENTS
    )
    return f"{tag}: answered {count} requests: {quantiles}"
