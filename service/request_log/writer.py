"""Log a sample of requests and their scores, to inspect or to replay. Off by default, and never in a request's way.

The log is NDJSON, one request a line: what the model read and answered. Fields that the model does not know are left
out, and fields may be hashed.
"""

import hashlib
import hmac
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from contract.schema import FeatureSchema
from contract.tokens import token
from service.api.schemas import ScoreRequest, ScoreResponse
from service.request_log.segments import Segments, finished_files
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

MAX_QUEUED_LINES = 1000
MAX_QUEUED_CANDIDATES = 100_000  # in these lines
CLOSE_TIMEOUT_S = 10.0
MIN_SALT_BYTES = 16
POLL_S = 1.0


class LoggedCandidate(msgspec.Struct):
    id: str | int
    features: dict[str, Any]


class Line(msgspec.Struct):
    """A line of the log.

    Attributes:
        time: When the request was answered, in UTC.
        request_id: As in the response, like model, version and degraded.
        context: The values that the model read.
        candidates: In the order of the request.
        ctr: Probabilities in the order of the candidates. None for one that was not scored.
        hashed: Names of the fields whose values are hashes.
    """

    time: str
    request_id: str
    model: str
    version: str
    context: dict[str, Any]
    candidates: list[LoggedCandidate]
    ctr: list[float | None]
    degraded: list[str]
    hashed: list[str]


@dataclass(frozen=True)
class QueuedLine:
    """What a line is made of. The writer's thread makes it, so that a request does not wait for that."""

    answered_s: float
    request: ScoreRequest
    ctr: Mapping[int, float]
    response: ScoreResponse
    fields: frozenset[str]


class RequestLog:
    """The log of one process. It is kept when the model is reloaded. offer() never waits."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """Start the thread that writes.

        Raises:
            SettingsError: The folder or the salt cannot be used.
        """
        assert settings.request_log is not None
        self._sample = settings.request_log_sample
        self._metrics = metrics
        self._clock = clock
        self._hasher = ValueHasher(settings)
        self._queue: queue.Queue[QueuedLine | None] = queue.Queue()  # offer() limits its size
        self._queued_candidates = 0
        self._lock = threading.Lock()
        self._segments = Segments(settings.request_log, settings.request_log_max_bytes, clock)
        self._can_write = True
        self._thread = threading.Thread(target=self._write_lines, name="request-log", daemon=True)
        self._thread.start()

    def check(self, schema: FeatureSchema) -> None:
        """Check that the model has the fields that are to be hashed: values of a misspelled one would be logged as is.

        Raises:
            SettingsError: The model does not have one of them.
        """
        names = {field.name for field in schema.fields}
        for name in self._hasher.fields:
            if name not in names:
                raise SettingsError(
                    f"CTR_REQUEST_LOG_HASH: the model has no field {name!r}. Its fields are {', '.join(sorted(names))}."
                )

    def offer(
        self, request: ScoreRequest, ctr: Mapping[int, float], response: ScoreResponse, fields: frozenset[str]
    ) -> None:
        """Queue a request for the log, if it is sampled. When the queue is full, the request is dropped and counted.

        Args:
            request: The request.
            ctr: The probability of each scored candidate, by position.
            response: The response.
            fields: The names that the model knows.
        """
        if random.random() >= self._sample:  # noqa: S311  # sampling needs no secure random numbers
            return
        candidates = len(request.candidates)
        if self._queued_candidates + candidates > MAX_QUEUED_CANDIDATES or self._queue.qsize() >= MAX_QUEUED_LINES:
            self._metrics.not_logged.labels("queue").inc()
            return
        with self._lock:
            self._queued_candidates += candidates
        self._queue.put_nowait(QueuedLine(self._clock(), request, ctr, response, fields))

    def close(self) -> None:
        """Write what is queued, and wait for that for a limited time."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def encode(self, queued: QueuedLine) -> bytes:
        """Return a line of the log."""
        request, response, known = queued.request, queued.response, queued.fields
        ctr = [queued.ctr.get(row) for row in range(len(request.candidates))]
        line = Line(
            time=datetime.fromtimestamp(queued.answered_s, UTC).isoformat(timespec="milliseconds"),
            request_id=response.request_id,
            model=response.model,
            version=response.version,
            context=self._hasher.hashed(request.context, known),
            candidates=[
                LoggedCandidate(candidate.id, self._hasher.hashed(candidate.features, known))
                for candidate in request.candidates
            ],
            # NaN is the value of a candidate that a cascade ruled out, and not JSON.
            ctr=[value if value == value else None for value in ctr],
            degraded=response.degraded,
            hashed=list(self._hasher.fields),
        )
        return msgspec.json.encode(line) + b"\n"

    def _write_lines(self) -> None:
        """Write lines until the log is closed. Runs in its own thread."""
        while True:
            try:
                queued = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                self._attempt(self._segments.close_if_old)
                continue
            if queued is None:
                self._attempt(self._segments.close)
                return
            with self._lock:
                self._queued_candidates -= len(queued.request.candidates)
            if self._attempt(lambda queued=queued: self._segments.write(self.encode(queued))):  # type: ignore[misc]
                self._metrics.logged.inc()
            else:
                self._metrics.not_logged.labels("write").inc()

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Return whether the step succeeded: a full disk, or a line that cannot be encoded, must not end the thread."""
        try:
            step()
        except Exception as error:
            if self._can_write:
                reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                log.error("the request log cannot be written, and lines are lost: %s", reason)
            self._can_write = False
            return False
        if not self._can_write:
            log.info("the request log can be written again")
        self._can_write = True
        return True


class ValueHasher:
    """Replaces the values of some fields by HMAC-SHA256 of their token.

    Equal values have equal hashes. Without the salt, a value cannot be found by hashing guesses.
    """

    def __init__(self, settings: Settings) -> None:
        self.fields = tuple(name.strip() for name in settings.request_log_hash.split(",") if name.strip())
        self._salt = b"" if settings.request_log_salt_file is None else read_salt(settings.request_log_salt_file)

    def hashed(self, features: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
        """Return the features that are known, those of `fields` hashed."""
        return {
            name: self.digest(value) if name in self.fields else value
            for name, value in features.items()
            if name in known
        }

    def digest(self, value: Any) -> str | None:
        """Return the hash of a value, or None when it is missing."""
        try:
            text = token(value)
        except ValueError:  # the value is why its candidate was skipped
            text = repr(value)
        if text is None:
            return None
        return "h:" + hmac.digest(self._salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]


def read_salt(path: Path) -> bytes:
    """Return the salt in a file. Raises SettingsError."""
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"CTR_REQUEST_LOG_SALT_FILE: {path} cannot be read ({error.strerror}).") from error
    if len(salt) < MIN_SALT_BYTES:
        raise SettingsError(
            f"CTR_REQUEST_LOG_SALT_FILE: {path} holds {len(salt)} bytes. Write at least {MIN_SALT_BYTES} random bytes."
        )
    return salt


def read_lines(paths: Sequence[Path]) -> tuple[list[Line], int]:
    """Return the lines of log files, and how many lines could not be read.

    Args:
        paths: Files, and folders whose complete files are read.
    """
    decoder, lines, unreadable = msgspec.json.Decoder(Line), [], 0
    for path in paths:
        for file in finished_files(path) if path.is_dir() else [path]:
            for raw in file.read_bytes().splitlines():
                try:
                    lines.append(decoder.decode(raw))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    unreadable += 1
    return lines, unreadable
