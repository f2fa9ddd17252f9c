"""The Prometheus metrics of a worker.

Phases, requests and outcomes are each counted in one place: the context managers of this module.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram, Metric, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.registry import Collector

from contract.schema import Side
from service.errors import DeadlineExceeded, Overloaded, Problem
from service.telemetry.drift import Drift
from service.telemetry.metrics_folder import metrics_folder, process_file
from service.telemetry.rolling_latency import SUFFIX, RollingLatency

TIERS = ("cache", "redis", "bundle", "nowhere")
WORK = ("parse", "encode", "run", "answer")  # the phases in which the server works on the request itself
PHASES = ("admit", "parse", "encode", "queue", "run", "answer")

# From 0.2 ms to 1 s. Each bound is less than 20% above the previous one.
BUCKETS_S = (*(0.0002 * 1.19**step for step in range(49)), 1.0)
BUCKETS_ROWS = tuple(float(2**power) for power in range(13))

OK = "ok"
LOST_LINES = ("queue", "encode", "write", "close")  # why a line of the request log may be lost


class Timing:
    """The phases of one request and their durations, in the order in which they happened."""

    def __init__(self, histograms: Mapping[str, Histogram], arrived_s: float) -> None:
        self._histograms = histograms
        self._seconds: dict[str, float] = {}
        self._arrived_s = arrived_s
        self._begun_s = time.perf_counter()
        self.read_s: float | None = None

    @property
    def before_s(self) -> float:
        """Seconds from the request's arrival to the start of its processing: the wait for the event loop."""
        return max(0.0, self._begun_s - self._arrived_s)

    def has_read(self) -> None:
        """Record that the body has been read. From now on the request waits only for the server."""
        self.read_s = time.perf_counter()

    def waited_s(self) -> float:
        """Return how long a request whose body has been read waited: its time on the server minus its own work."""
        assert self.read_s is not None
        work_s = sum(seconds for name, seconds in self._seconds.items() if name in WORK)
        return self._begun_s - self._arrived_s + time.perf_counter() - self.read_s - work_s

    def phase(self, name: str) -> "PhaseTimer":
        """Return a context manager that adds the duration of its block to a phase."""
        return PhaseTimer(self, name)

    def record(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def header(self) -> str:
        """Return the value of the Server-Timing header, in milliseconds."""
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in self._seconds.items())

    def observe(self) -> None:
        """Add the phases to the phase histogram."""
        for name, seconds in self._seconds.items():
            self._histograms[name].observe(seconds)


class PhaseTimer:
    """Adds the duration of a block to a phase.

    Every request enters several of them. A class takes a third of the time of contextlib.contextmanager.
    """

    __slots__ = ("_name", "_start_s", "_timing")

    def __init__(self, timing: Timing, name: str) -> None:
        self._timing = timing
        self._name = name
        self._start_s = 0.0

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._timing.record(self._name, time.perf_counter() - self._start_s)


class Metrics:
    """The metrics of one application, in their own registry. They are kept when the model is reloaded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry = CollectorRegistry()

        def summed_gauge(name: str, text: str) -> Gauge:
            """A gauge whose value is the sum over all running processes."""
            return Gauge(name, text, registry=registry, multiprocess_mode="livesum")

        self.rolling_latency = RollingLatency(process_file(SUFFIX), clock)
        registry.register(self.rolling_latency)
        self.drift = Drift(metrics_folder(), str(os.getpid()))
        registry.register(self.drift)
        phases = Histogram(
            "ctr_phase_seconds", "Duration of each phase of a request", ["phase"], buckets=BUCKETS_S, registry=registry
        )
        self._phases = {name: phases.labels(name) for name in PHASES}
        self._requests = Histogram(
            "ctr_request_seconds", "Request duration by outcome", ["outcome"], buckets=BUCKETS_S, registry=registry
        )
        self._requests.labels(OK)
        self._rejected = self._requests.labels(Overloaded.outcome)
        self._by_key = PrometheusCounter(
            "ctr_requests_by_key", "Requests by the name of their API key", ["key", "outcome"], registry=registry
        )
        self.logged = PrometheusCounter("ctr_request_log_lines", "Lines written to the request log", registry=registry)
        self.not_logged = PrometheusCounter(
            "ctr_request_log_dropped", "Lines lost before they reached the request log", ["reason"], registry=registry
        )
        for reason in LOST_LINES:  # A counter that starts with its first loss would hide it from rate().
            self.not_logged.labels(reason)
        self.unshipped_deleted = PrometheusCounter(
            "ctr_request_log_unshipped_files_deleted",
            "Files of the request log that were deleted before they were shipped",
            registry=registry,
        )
        self.candidates = PrometheusCounter("ctr_candidates", "Candidates scored by the whole model", registry=registry)
        self.batch_rows = Histogram(
            "ctr_batch_rows", "Candidates in one run of the model", buckets=BUCKETS_ROWS, registry=registry
        )
        self.queued_rows = summed_gauge("ctr_queued_rows", "Candidates waiting for a run of the model")
        self.in_flight = summed_gauge("ctr_in_flight_requests", "Requests in flight")
        self.connections = summed_gauge("ctr_connections", "Open client connections")
        self.limit = summed_gauge("ctr_in_flight_limit", "Current limit on requests in flight, adapted to queueing")
        self.degraded = PrometheusCounter(
            "ctr_degraded", "Degraded responses by the dependency that was unavailable", ["reason"], registry=registry
        )
        self._tokens = PrometheusCounter(
            "ctr_tokens",
            "Missing values, unknown tokens and out-of-range numbers in requests",
            ["field", "kind"],
            registry=registry,
        )
        self._ignored = PrometheusCounter(
            "ctr_ignored_names", "Fields in requests that are not in the model's schema", ["side"], registry=registry
        )
        lookups = PrometheusCounter(
            "ctr_vocabulary_tokens", "Token lookups by the tier that answered", ["tier"], registry=registry
        )
        self._by_tier = {tier: lookups.labels(tier) for tier in TIERS}
        self._cache_tokens = summed_gauge("ctr_vocabulary_cache_tokens", "Tokens in the vocabulary caches")
        self._cache_bytes = summed_gauge("ctr_vocabulary_cache_bytes", "Estimated size of the vocabulary caches")
        self.redis_up = Gauge(
            "ctr_redis_up",
            "1 if all workers use Redis, 0 if a worker has temporarily stopped using it",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.redis_up.set(1)
        self.redis_round_trip = Histogram(
            "ctr_redis_round_trip_seconds", "Duration of Redis round trips", buckets=BUCKETS_S, registry=registry
        )
        self._explanations = PrometheusCounter(
            "ctr_explanations", "Explanations by outcome", ["outcome"], registry=registry
        )
        self._model = Gauge(
            "ctr_model_info",
            "1 for a model version that is being served, 0 for earlier ones",
            ["model", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def set_model(self, model: str, version: str, is_served: bool = True) -> None:
        """Record whether a model version is being served."""
        self._model.labels(model, version).set(int(is_served))

    def count_early_rejection(self) -> None:
        """Count a request that was rejected with 429 before any work was done for it."""
        self._rejected.observe(0.0)

    async def text(self) -> bytes:
        """Return all metrics in Prometheus's text format.

        One metric family is formatted at a time, so that requests can be handled in between.
        """
        parts = []
        for family in self.registry.collect():
            parts.append(generate_latest(SingleFamily(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    @contextmanager
    def request(self, arrived_s: float | None = None, key: Callable[[], str] | None = None) -> Iterator[Timing]:
        """Count one request: its outcome, its duration, its phases, and its share of the rolling latency.

        Args:
            arrived_s: When the request arrived, on the clock of time.perf_counter. None means now.
            key: A function that returns the name of the request's API key, or "" if it had none. It is called at the
                end. None if the server requires no API key.
        """
        start_s = time.perf_counter() if arrived_s is None else arrived_s
        timing = Timing(self._phases, start_s)

        def count(outcome: str) -> None:
            seconds = time.perf_counter() - start_s
            self._requests.labels(outcome).observe(seconds)
            if key is not None:
                self._by_key.labels(key(), outcome).inc()
            timing.observe()
            # Requests that are rejected immediately would make the quantiles look better than the latency of scoring.
            if outcome in (OK, DeadlineExceeded.outcome):
                self.rolling_latency.record(seconds)

        with count_outcome(count):
            yield timing

    @contextmanager
    def explanation(self) -> Iterator[None]:
        """Count one explanation by its outcome. Its latency is not part of the request latency."""
        with count_outcome(lambda outcome: self._explanations.labels(outcome).inc()):
            yield

    def count_lookups(self, tiers: Counter[str], cache_tokens: int, cache_bytes: int) -> None:
        """Count a request's tokens by the tier that answered, and record the size of the token cache."""
        for tier, count in tiers.items():
            if count:
                self._by_tier[tier].inc(count)
        if len(tiers) > 1:  # The cache can only have changed if another tier answered as well.
            self._cache_tokens.set(cache_tokens)
            self._cache_bytes.set(cache_bytes)

    def count_tokens(self, kinds: Mapping[str, Counter[str]], ignored: Counter[Side]) -> None:
        """Count a request's values that carry no information for the model.

        Args:
            kinds: Kind ("missing", "unknown" or "outside") -> field -> number of values.
            ignored: Side -> number of fields that are not in the schema.
        """
        for kind, counts in kinds.items():
            for field, count in counts.items():
                self._tokens.labels(field, kind).inc(count)
        for side, count in ignored.items():
            if count:
                self._ignored.labels(side).inc(count)


@contextmanager
def count_outcome(count: Callable[[str], None]) -> Iterator[None]:
    """Call `count` once with the outcome of the block."""
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


class SingleFamily(Collector):
    """A collector of one metric family, so that it can be formatted on its own."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]
