"""Log a sample of requests and their scores, for training, inspection or replay.

The request log is off by default, and it never delays a request.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from contract.pseudonyms import Pseudonymizer
from contract.schema import FeatureSchema
from contract.score_ids import new_score_id
from contract.segments import REQUESTS
from contract.units import BUCKETS, REQUEST_LOG_SALT, bucket
from service.request_log.lines import Identity, LineEncoder, QueuedLine
from service.segments import Segments
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
SYNC_S = 1.0  # a power failure loses at most the lines of about this time


class RequestLog:
    """The request log of one process. It stays open when the model is reloaded. offer() never blocks.

    Attributes:
        candidates: How many of the best candidates to log. None: all candidates.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        pseudonyms: Pseudonymizer | None = None,
    ) -> None:
        """Start the writer's thread.

        Args:
            settings: The operator's settings.
            metrics: The process's metrics.
            clock: Returns seconds since 1970.
            pseudonyms: The key for pseudonyms of units, or None to log units unchanged.

        Raises:
            SettingsError: The folder or the salt cannot be used.
        """
        assert settings.request_log is not None
        self.candidates = settings.request_log_candidates
        self._settings = settings
        self._buckets = round(settings.request_log_sample * BUCKETS)
        self._metrics = metrics
        self._encoder = LineEncoder(settings, pseudonyms)
        self._queue: queue.SimpleQueue[QueuedLine | None] = queue.SimpleQueue()  # offer() limits its size
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._segments = Segments(
            settings.request_log,
            settings.request_log_max_bytes,
            clock,
            REQUESTS,
            "CTR_REQUEST_LOG",
            settings.request_log_segment_s,
            on_unshipped=self._count_unshipped,
        )
        self._unsynced = 0  # lines that were written since the last fsync
        self._can_write = True
        self._thread = threading.Thread(target=self._write_lines, name="request-log", daemon=True)
        self._thread.start()

    def check(self, schema: FeatureSchema) -> None:
        """Check that the model has all fields to be hashed. The values of a misspelled field would not be hashed.

        Raises:
            SettingsError: The model does not have one of these fields, and other fields are not logged.
        """
        names = {field.reads for field in schema.fields}
        for name in self._encoder.hasher.fields:
            if name in names:
                continue
            reason = (
                f"CTR_REQUEST_LOG_HASH: the model has no field {name!r}. Its fields are {', '.join(sorted(names))}."
            )
            if self._settings.request_log_fields == "known":
                raise SettingsError(reason)
            log.warning("%s The values of other fields named %r in requests are hashed.", reason, name)

    def samples(self, unit: str | None) -> bool:
        """Return whether to log a request of this unit. A request without a unit is sampled at random."""
        if self._buckets in (0, BUCKETS):
            return self._buckets > 0
        if unit is None:
            return random.random() * BUCKETS < self._buckets  # noqa: S311  # sampling needs no secure random numbers
        return bucket(REQUEST_LOG_SALT, unit) < self._buckets

    def offer(self, line: QueuedLine) -> None:
        """Queue a line for the log. If the queue is full, the line is dropped and counted.

        A line that is larger than the whole queue is accepted if the queue is empty.
        """
        size = line.size()
        with self._lock:
            fits = not self._queued_bytes or self._queued_bytes + size <= self._settings.request_log_queue_bytes
            if fits:
                self._queued_bytes += size
        if fits:
            self._queue.put(line)
        else:
            self._metrics.not_logged.labels("queue").inc()

    def close(self) -> None:
        """Write the queued lines. Wait for at most CLOSE_TIMEOUT_S."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            lost = self._queue.qsize()  # without the None above, and with the line that the thread is writing
            self._metrics.not_logged.labels("close").inc(lost)
            log.error("the disk of the request log does not respond, and the last %d lines are lost", lost)

    def _write_lines(self) -> None:
        """Write lines until the log is closed. Runs in its own thread."""
        synced_s = time.monotonic()
        while True:
            try:
                queued = self._queue.get(timeout=SYNC_S)
            except queue.Empty:
                self._attempt(self._segments.close_if_old)
            else:
                if queued is None:
                    self._attempt(self._segments.close)
                    return
                self._write(queued)
            if time.monotonic() - synced_s >= SYNC_S:
                self._sync()
                synced_s = time.monotonic()

    def _write(self, queued: QueuedLine) -> None:
        """Write a line, and count whether it was written."""
        try:
            line = self._encoder.encode(queued)
        except Exception as error:  # An invalid line must not end the thread.
            log.error("a line of the request log cannot be encoded (%s)", type(error).__name__)
            self._metrics.not_logged.labels("encode").inc()
        else:
            if self._attempt(lambda: self._segments.write(line)):
                self._metrics.logged.inc()
                self._unsynced = 0 if self._segments.is_synced else self._unsynced + 1
                # Only a written line proves that the disk works: without an open file, sync and finish do nothing.
                if not self._can_write:
                    log.info("the request log can be written again")
                self._can_write = True
            else:
                self._metrics.not_logged.labels("write").inc()
        with self._lock:
            self._queued_bytes -= queued.size()

    def _sync(self) -> None:
        """Wait until the lines are on the disk. If that fails, they are removed, and counted as lost."""
        if not self._attempt(self._segments.sync):
            self._metrics.not_logged.labels("write").inc(self._unsynced)
        self._unsynced = 0

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Run a step, and return whether it succeeded. A full disk must not end the thread."""
        try:
            step()
        except Exception as error:
            if self._can_write:
                reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                log.error("the request log cannot be written, and lines are lost: %s", reason)
            self._can_write = False
            return False
        return True

    def _count_unshipped(self, path: Path) -> None:
        """Count and report a file that was deleted although there is no copy of it."""
        self._metrics.unshipped_deleted.inc()
        log.warning(
            "the request log reached CTR_REQUEST_LOG_MAX_BYTES, so %s was deleted before it was shipped. Ship files "
            "faster, raise the limit, or lower CTR_REQUEST_LOG_SAMPLE.",
            path.name,
        )


def identify(request_log: RequestLog | None, unit: str | None) -> Identity:
    """Return a new identity for the answer to a request of this unit, and decide whether to log the request."""
    logged = request_log is not None and request_log.samples(unit)
    return Identity(new_score_id(time.time(), logged), unit, logged)
