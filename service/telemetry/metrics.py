"""What /metrics says. A phase, a request and its outcome are each counted in one place."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram, Metric, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.registry import Collector

from contract.schema import Side
from service.errors import DeadlineExceeded, Overloaded, Problem
from service.telemetry.metrics_folder import own_file
from service.telemetry.rolling_latency import SUFFIX, LastMinute

TIERS = ("cache", "redis", "bundle", "nowhere")
WORK = ("parse", "encode", "run", "answer")  # and not waiting for others
PHASES = ("admit", "parse", "encode", "queue", "run", "answer")

# Each bound is less than 20% above the one before: from 0.2 ms to 1 s.
BUCKETS_S = (*(0.0002 * 1.19**step for step in range(49)), 1.0)
BUCKETS_ROWS = tuple(float(2**power) for power in range(13))

OK = "ok"


class Timing:
    """The phases of one request, in seconds, in the order in which they happened."""

    def __init__(self, histograms: Mapping[str, Histogram], arrived_s: float) -> None:
        self._histograms = histograms
        self._seconds: dict[str, float] = {}
        self._arrived_s = arrived_s
        self._begun_s = time.perf_counter()
        self.read_s: float | None = None

    @property
    def before_s(self) -> float:
        """How long it waited for the event loop, before anything was done for it."""
        return max(0.0, self._begun_s - self._arrived_s)

    def has_read(self) -> None:
        """From now on the server is all that the request waits for."""
        self.read_s = time.perf_counter()

    def waited_s(self) -> float:
        """How long a request that has been read waited for its turns, which is all that was no work for itself."""
        assert self.read_s is not None
        work_s = sum(seconds for name, seconds in self._seconds.items() if name in WORK)
        return self._begun_s - self._arrived_s + time.perf_counter() - self.read_s - work_s

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
    """The metrics of one app, in a registry of its own; over reloads the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry = CollectorRegistry()
        self.last_minute = LastMinute(own_file(SUFFIX), clock)
        registry.register(self.last_minute)
        phases = Histogram("ctr_phase_seconds", "Phases", ["phase"], buckets=BUCKETS_S, registry=registry)
        self._phases = {name: phases.labels(name) for name in PHASES}
        self._requests = Histogram(
            "ctr_request_seconds", "Requests by outcome", ["outcome"], buckets=BUCKETS_S, registry=registry
        )
        self._requests.labels(OK)
        self._by_key = PrometheusCounter(
            "ctr_requests_by_key", "Requests by the name of their API key", ["key", "outcome"], registry=registry
        )
        self.logged = PrometheusCounter("ctr_request_log_lines", "Lines of the request log", registry=registry)
        self.not_logged = PrometheusCounter(
            "ctr_request_log_dropped", "Lines that the request log lost", ["reason"], registry=registry
        )
        self.candidates = PrometheusCounter("ctr_candidates", "Candidates scored in full", registry=registry)
        self.batch_rows = Histogram("ctr_batch_rows", "Rows of one run", buckets=BUCKETS_ROWS, registry=registry)
        self.queued_rows = self._sum("ctr_queued_rows", "Rows that wait for a slot")
        self.in_flight = self._sum("ctr_in_flight_requests", "Requests in hand")
        self.connections = self._sum("ctr_connections", "Open connections")
        self.limit = self._sum("ctr_in_flight_limit", "Requests that may be in hand, as the queueing allows")
        self.degraded = PrometheusCounter("ctr_degraded", "Degraded answers", ["reason"], registry=registry)
        self._count_the_input(registry)
        self._count_the_vocabulary(registry)
        self._explanations = PrometheusCounter(
            "ctr_explanations", "Explanations by outcome", ["outcome"], registry=registry
        )
        self._model = Gauge(
            "ctr_model_info",
            "1: a model that answers",
            ["model", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._refused = self._requests.labels(Overloaded.outcome)

    def _count_the_input(self, registry: CollectorRegistry) -> None:
        self._tokens = PrometheusCounter(
            "ctr_tokens", "Values that said nothing to the model", ["field", "kind"], registry=registry
        )
        self._ignored = PrometheusCounter(
            "ctr_ignored_names", "Names that the schema does not know", ["side"], registry=registry
        )

    def _count_the_vocabulary(self, registry: CollectorRegistry) -> None:
        self._lookups = PrometheusCounter(
            "ctr_vocabulary_tokens", "Tokens by what knew their ids", ["tier"], registry=registry
        )
        self._by_tier = {tier: self._lookups.labels(tier) for tier in TIERS}
        self._cache_tokens = self._sum("ctr_vocabulary_cache_tokens", "Tokens in the caches")
        self._cache_bytes = self._sum("ctr_vocabulary_cache_bytes", "About as many bytes as the caches take")
        self.redis_up = Gauge(
            "ctr_redis_up",
            "0: a worker leaves Redis alone for now",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.redis_round_trip = Histogram(
            "ctr_redis_round_trip_seconds", "Round trips to Redis", buckets=BUCKETS_S, registry=registry
        )
        self.redis_up.set(1)

    def serves(self, model: str, version: str, value: int = 1) -> None:
        """value: 0 when it does not any more."""
        self._model.labels(model, version).set(value)

    def refused_at_once(self) -> None:
        """A request that was answered 429 before anything else was done."""
        self._refused.observe(0.0)

    def _sum(self, name: str, text: str) -> Gauge:
        """A gauge that adds up over the processes that live."""
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    async def text(self) -> bytes:
        """Prometheus's text format, a family at a time: requests in between do not wait for all of it."""
        parts = []
        for family in self.registry.collect():
            parts.append(generate_latest(_One(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    @contextmanager
    def request(self, arrived_s: float | None = None, key: Callable[[], str] | None = None) -> Iterator[Timing]:
        """Counts one request: its duration under its outcome, its phases, and its part in the last minute.

        arrived_s: when it was there, on time.perf_counter's clock; None: now. key: says at the end whose API key it
        had, "" for nobody's; None where no keys are asked for.
        """
        start_s = time.perf_counter() if arrived_s is None else arrived_s
        timing = Timing(self._phases, start_s)

        def count(outcome: str) -> None:
            seconds = time.perf_counter() - start_s
            self._requests.labels(outcome).observe(seconds)
            if key is not None:
                self._by_key.labels(key(), outcome).inc()
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

    def count_lookups(self, tiers: Counter[str], cache_tokens: int, cache_bytes: int) -> None:
        """Count a request's tokens by the tier that knew them, and record the size of the token cache."""
        for tier, count in tiers.items():
            if count:
                self._by_tier[tier].inc(count)
        if len(tiers) > 1:  # something was new
            self._cache_tokens.set(cache_tokens)
            self._cache_bytes.set(cache_bytes)

    def count_tokens(self, kinds: Mapping[str, Counter[str]], ignored: Counter[Side]) -> None:
        """kinds: "missing", "unknown" or "outside" -> field -> count."""
        for kind, counts in kinds.items():
            for field, count in counts.items():
                self._tokens.labels(field, kind).inc(count)
        for side, count in ignored.items():
            if count:
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
