"""The Prometheus metrics of ctr-collect."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from contract.events import EVENT_TYPES
from service.collect.events import CheckedEvents
from service.errors import Overloaded
from service.telemetry.metrics import count_outcome

STORED, INVALID, NOT_STORED = "stored", "invalid", "not_stored"
UNKNOWN_TYPE = "unknown"  # The type of an invalid event is not read.
BUCKETS_S = tuple(0.0001 * 2**step for step in range(15))  # 0.1 ms to 1.6 s
BUCKETS_EVENTS = tuple(float(4**power) for power in range(9))


class CollectMetrics:
    """All metrics. Each is updated in one place."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "ctr_collect_request_seconds",
            "Request duration by outcome",
            ["outcome"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._rejected = self._requests.labels(Overloaded.outcome)
        self._events = Counter(
            "ctr_collect_events", "Events by type and outcome", ["type", "outcome"], registry=registry
        )
        for kind in EVENT_TYPES:
            self._events.labels(kind, STORED)
        self._events.labels(UNKNOWN_TYPE, INVALID)
        self._skewed = Counter(
            "ctr_collect_skewed_events",
            "Stored events of clients whose clocks are wrong by more than 5 minutes",
            registry=registry,
        )
        self.bytes = Counter("ctr_collect_bytes", "Bytes of stored events", registry=registry)
        self.fsync = Histogram(
            "ctr_collect_fsync_seconds", "Duration of an fsync", buckets=BUCKETS_S, registry=registry
        )
        self.group_requests = Histogram(
            "ctr_collect_group_requests", "Requests that share an fsync", buckets=BUCKETS_EVENTS, registry=registry
        )
        self.failures = Counter("ctr_collect_write_failures", "Failed writes to the disk", registry=registry)
        self.writable = Gauge("ctr_collect_writable", "1 if events can be stored, otherwise 0", registry=registry)
        self.folder_bytes = Gauge("ctr_collect_folder_bytes", "Size of the folder's files", registry=registry)
        self.max_bytes = Gauge("ctr_collect_folder_limit_bytes", "Maximum size of the folder", registry=registry)
        self.free_bytes = Gauge("ctr_collect_free_bytes", "Free bytes on the folder's disk", registry=registry)
        self.in_flight = Gauge("ctr_collect_in_flight_requests", "Requests in flight", registry=registry)
        self.limit = Gauge("ctr_collect_in_flight_limit", "Limit on requests in flight", registry=registry)
        self.connections = Gauge("ctr_collect_connections", "Open client connections", registry=registry)
        self.redis_up = Gauge(
            "ctr_collect_redis_up", "1 if the Redis stream is being read; also 1 without a stream", registry=registry
        )
        self.redis_up.set(1)
        self.redis_unread = Gauge(
            "ctr_collect_redis_unread_entries", "Entries of the Redis stream that nobody has read", registry=registry
        )
        self.redis_pending = Gauge(
            "ctr_collect_redis_pending_entries",
            "Entries of the Redis stream that are read, but not acknowledged",
            registry=registry,
        )
        self.redis_entries = Counter(
            "ctr_collect_redis_entries", "Acknowledged entries of the Redis stream", registry=registry
        )

    def count_early_rejection(self) -> None:
        """Count a request that was rejected with 429 before any work was done for it."""
        self._rejected.observe(0.0)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request by its outcome, with its duration."""
        start_s = time.perf_counter()
        with count_outcome(lambda outcome: self._requests.labels(outcome).observe(time.perf_counter() - start_s)):
            yield

    def count_events(self, checked: CheckedEvents, outcome: str) -> None:
        """Count the valid events of a body, which were stored or not, and the invalid ones."""
        for kind, count in checked.types.items():
            self._events.labels(kind, outcome).inc(count)
        if checked.invalid:
            self._events.labels(UNKNOWN_TYPE, INVALID).inc(len(checked.invalid))
        if checked.skewed and outcome == STORED:
            self._skewed.inc(checked.skewed)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
