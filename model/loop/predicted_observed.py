"""Predicted and observed clicks by model version, in the newest hours of a joined log.

Only candidates that were shown have an observed click, at the position where they were shown. The ratio says whether
the probabilities of these impressions are right on average, and nothing about candidates that were never shown.
"""

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from contract.segments import sync
from model.poisson import poisson_interval

HOURS = 24  # One day, so that every hour of the day counts.
CONFIDENCE = 0.99  # The alert looks at the interval every hour, so it must rarely be wrong.


@dataclass
class Clicks:
    """The impressions with a probability, their clicks, and the sum of their probabilities."""

    impressions: int = 0
    clicks: int = 0
    predicted: float = 0.0

    def ratio(self) -> float:
        """Return predicted / observed clicks. Infinite without clicks."""
        return self.predicted / self.clicks if self.clicks else math.inf

    def interval(self) -> tuple[float, float]:
        """Return the exact confidence interval of the ratio, if the number of clicks has a Poisson distribution."""
        low, high = map(float, poisson_interval(self.clicks, CONFIDENCE))
        return self.predicted / high, self.predicted / low if low else math.inf


@dataclass
class PredictedObserved:
    """Counts by hour and model version."""

    _hours: dict[int, dict[str, Clicks]] = field(default_factory=dict)

    def add(self, hour_ms: int, version: str, ctr: float | None, click: int) -> None:
        """Count an impression. It has no probability if a cascade ruled its candidate out, and then does not count."""
        if ctr is None:
            return
        clicks = self._hours.setdefault(hour_ms, {}).setdefault(version, Clicks())
        clicks.impressions += 1
        clicks.clicks += click
        clicks.predicted += ctr

    def newest(self) -> dict[str, Clicks]:
        """Return the sums of the newest HOURS hours that have impressions, by version."""
        sums: dict[str, Clicks] = {}
        for hour_ms in sorted(self._hours)[-HOURS:]:
            for version, clicks in self._hours[hour_ms].items():
                total = sums.setdefault(version, Clicks())
                total.impressions += clicks.impressions
                total.clicks += clicks.clicks
                total.predicted += clicks.predicted
        return dict(sorted(sums.items()))

    def as_json(self) -> dict[str, Any]:
        """Return newest() for join.json. JSON has no infinite numbers, so they become null."""
        return {
            version: {
                "impressions": clicks.impressions,
                "clicks": clicks.clicks,
                "predicted": round(clicks.predicted, 6),
                "ratio": _rounded(clicks.ratio()),
                "interval": list(map(_rounded, clicks.interval())),
            }
            for version, clicks in self.newest().items()
        }


class _Metrics(Collector):
    def __init__(self, versions: Mapping[str, Clicks], now_s: float) -> None:
        self._versions = versions
        self._now_s = now_s

    def collect(self) -> list[GaugeMetricFamily]:
        recent = f"in the newest {HOURS} hours of the joined log"
        texts = {
            "ctr_joined_impressions": f"Impressions with a probability {recent}",
            "ctr_joined_clicks": f"Their clicks {recent}",
            "ctr_joined_predicted_clicks": f"The sum of their probabilities {recent}",
            "ctr_joined_predicted_observed_ratio": f"Predicted / observed clicks {recent}",
            "ctr_joined_predicted_observed_lower": f"Lower end of the ratio's {CONFIDENCE:.0%} confidence interval",
            "ctr_joined_predicted_observed_upper": f"Upper end of the ratio's {CONFIDENCE:.0%} confidence interval",
        }
        families = {name: GaugeMetricFamily(name, text, labels=["version"]) for name, text in texts.items()}
        for version, clicks in self._versions.items():
            values = (clicks.impressions, clicks.clicks, clicks.predicted, clicks.ratio(), *clicks.interval())
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([version], value)
        finished = GaugeMetricFamily("ctr_joined_timestamp_seconds", "When ctr-join finished", value=self._now_s)
        return [*families.values(), finished]


def write_metrics(path: Path, versions: Mapping[str, Clicks], now_s: float) -> None:
    """Write the metrics for the textfile collector of Prometheus's node_exporter. The file appears whole.

    Args:
        path: The file. The collector reads only files whose names end in ".prom".
        versions: The sums by model version.
        now_s: The present time, in seconds since 1970.

    Raises:
        OSError: The file cannot be written.
    """
    registry = CollectorRegistry()
    registry.register(_Metrics(versions, now_s))
    # The collector ignores the temporary file, because its name does not end in ".prom".
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(generate_latest(registry))
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # The collector runs as another user.
            sync(new)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
