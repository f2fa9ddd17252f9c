"""What /metrics says. A phase, a request and its outcome are each counted in one place."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from hdrh.histogram import HdrHistogram
from prometheus_client import CollectorRegistry, Gauge, Histogram, Metric, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from contract.schema import Side
from service.errors import DeadlineExceeded, Problem

PHASES = ("admit", "parse", "encode", "queue", "run", "answer")
QUANTILES = (0.5, 0.9, 0.99, 0.999)
SLICE_S = 10
SLICES = 6  # of SLICE_S seconds: a minute
LONGEST_US = 60_000_000
SIGNIFICANT_FIGURES = 3

# Each bound is less than 20% above the one before: from 0.2 ms to 1 s.
BUCKETS_S = (*(0.0002 * 1.19**step for step in range(49)), 1.0)
BUCKETS_ROWS = tuple(float(2**power) for power in range(13))

OK = "ok"


class LastMinute(Collector):
    """Quantiles of the latency over the last minute, to 0.1%: for whoever reads /metrics without a Prometheus."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slices: deque[tuple[int, HdrHistogram]] = deque(maxlen=SLICES)

    def record(self, seconds: float) -> None:
        number = int(self._clock() // SLICE_S)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append((number, _histogram()))
        self._slices[-1][1].record_value(min(LONGEST_US, max(1, round(seconds * 1e6))))

    def quantiles_s(self) -> dict[float, float]:
        """Empty when nothing was recorded in the last minute."""
        oldest = int(self._clock() // SLICE_S) - SLICES + 1
        slices = [one for number, one in self._slices if number >= oldest]
        if not slices:
            return {}
        # Over the counts as arrays: HdrHistogram itself walks them in Python, and every request would wait for that.
        up_to = np.sum([np.frombuffer(one.counts, np.int64) for one in slices], axis=0).cumsum()
        ranks = [max(1, round(quantile * int(up_to[-1]))) for quantile in QUANTILES]
        indices = np.searchsorted(up_to, ranks).tolist()
        values_us = (slices[0].get_highest_equivalent_value(slices[0].get_value_from_index(i)) for i in indices)
        return {quantile: value_us / 1e6 for quantile, value_us in zip(QUANTILES, values_us, strict=True)}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "ctr_request_latency_seconds", "Of the last minute's scored and expired requests", labels=["quantile"]
        )
        for quantile, seconds in self.quantiles_s().items():
            family.add_metric([str(quantile)], seconds)
        yield family


class Timing:
    """The phases of one request, in seconds, in the order in which they happened."""

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._histograms = histograms
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.record(name, time.perf_counter() - start)

    def record(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def header(self) -> str:
        """The value of Server-Timing, in milliseconds."""
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in self._seconds.items())

    def observe(self) -> None:
        for name, seconds in self._seconds.items():
            self._histograms[name].observe(seconds)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self, model: str, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry = CollectorRegistry()
        self.last_minute = LastMinute(clock)
        registry.register(self.last_minute)
        phases = Histogram("ctr_phase_seconds", "Phases", ["phase"], buckets=BUCKETS_S, registry=registry)
        self._phases = {name: phases.labels(name) for name in PHASES}
        self._requests = Histogram(
            "ctr_request_seconds", "Requests by outcome", ["outcome"], buckets=BUCKETS_S, registry=registry
        )
        self._requests.labels(OK)
        self._tokens = PrometheusCounter(
            "ctr_tokens", "Values that said nothing to the model", ["field", "kind"], registry=registry
        )
        self._ignored = PrometheusCounter(
            "ctr_ignored_names", "Names that the schema does not know", ["side"], registry=registry
        )
        self.candidates = PrometheusCounter("ctr_candidates", "Candidates scored in full", registry=registry)
        self.batch_rows = Histogram("ctr_batch_rows", "Rows of one run", buckets=BUCKETS_ROWS, registry=registry)
        self.queued_rows = Gauge("ctr_queued_rows", "Rows that wait for a slot", registry=registry)
        self.degraded = PrometheusCounter("ctr_degraded", "Degraded answers", ["reason"], registry=registry)
        self._explanations = PrometheusCounter(
            "ctr_explanations", "Explanations by outcome", ["outcome"], registry=registry
        )
        info = Gauge("ctr_model_info", "The model that answers", ["model", "version"], registry=registry)
        info.labels(model, version).set(1)

    async def text(self) -> bytes:
        """Prometheus's text format, a family at a time: requests in between do not wait for all of it."""
        parts = []
        for family in self.registry.collect():
            parts.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    @contextmanager
    def request(self) -> Iterator[Timing]:
        """Counts one request: its duration under its outcome, its phases, and its part in the last minute."""
        start = time.perf_counter()
        timing = Timing(self._phases)

        def count(outcome: str) -> None:
            seconds = time.perf_counter() - start
            self._requests.labels(outcome).observe(seconds)
            timing.observe()
            # What is refused at once would flatter the quantiles.
            if outcome in (OK, DeadlineExceeded.outcome):
                self.last_minute.record(seconds)

        with _outcome(count):
            yield timing

    @contextmanager
    def explanation(self) -> Iterator[None]:
        """Counts one explanation under its outcome; its latency is none of the scoring's."""
        with _outcome(lambda outcome: self._explanations.labels(outcome).inc()):
            yield

    def count_tokens(self, missing: Counter[str], unknown: Counter[str], ignored: Counter[Side]) -> None:
        for kind, counts in (("missing", missing), ("unknown", unknown)):
            for field, count in counts.items():
                self._tokens.labels(field, kind).inc(count)
        for side, count in ignored.items():
            self._ignored.labels(side).inc(count)


@contextmanager
def _outcome(count: Callable[[str], None]) -> Iterator[None]:
    """Calls `count` once, with what became of the block."""
    outcome = "failed"
    try:
        yield
        outcome = OK
    except Problem as problem:
        outcome = problem.outcome
        raise
    except asyncio.CancelledError:
        outcome = "client_gone"
        raise
    finally:
        count(outcome)


class _One(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, SIGNIFICANT_FIGURES)
