"""Log a sample of requests and their scores, for inspection or replay.

The request log is off by default, and it never delays a request.

The log is NDJSON with one request per line: the values that the model read, and its answers. Fields that are not in the
model's schema are left out, and fields may be hashed. Fields with pseudonyms hold pseudonyms.
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

from contract.encode import Encoder
from contract.schema import FeatureSchema
from contract.segments import REQUESTS, finished_files
from contract.system_errors import explain_denied
from contract.tokens import token
from service.api.schemas import ScoreRequest, ScoreResponse
from service.segments import Segments
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

MAX_QUEUED_LINES = 1000
MAX_QUEUED_CANDIDATES = 100_000  # total of all queued lines
CLOSE_TIMEOUT_S = 10.0
MIN_SALT_BYTES = 16
POLL_S = 1.0


class LoggedCandidate(msgspec.Struct):
    id: str | int | None  # None for a candidate that was skipped because its id is invalid.
    features: dict[str, Any]


class Line(msgspec.Struct):
    """A line of the log.

    Attributes:
        time: When the request was answered, in UTC.
        request_id: The request's id. Like model, version and degraded, it is the same as in the response.
        context: The values that the model read.
        candidates: In the order of the request.
        ctr: Probabilities in the order of the candidates. None for a candidate that was not scored.
        hashed: Names of the fields whose values are hashes. Pseudonyms are not, because a replay can read them.
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
    """The data for a line. The writer's thread encodes the line, so that the request does not wait for the encoding."""

    answered_s: float
    request: ScoreRequest
    ctr: Mapping[int, float]
    response: ScoreResponse
    encoder: Encoder


class RequestLog:
    """The request log of one process. It stays open when the model is reloaded. offer() never blocks."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """Start the writer's thread.

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
        self._segments = Segments(
            settings.request_log, settings.request_log_max_bytes, clock, REQUESTS, "CTR_REQUEST_LOG"
        )
        self._can_write = True
        self._thread = threading.Thread(target=self._write_lines, name="request-log", daemon=True)
        self._thread.start()

    def check(self, schema: FeatureSchema) -> None:
        """Check that the model has all fields to be hashed. The values of a misspelled field would not be hashed.

        Raises:
            SettingsError: The model does not have one of these fields.
        """
        names = {field.reads for field in schema.fields}
        for name in self._hasher.fields:
            if name not in names:
                raise SettingsError(
                    f"CTR_REQUEST_LOG_HASH: the model has no field {name!r}. Its fields are {', '.join(sorted(names))}."
                )

    def offer(self, request: ScoreRequest, ctr: Mapping[int, float], response: ScoreResponse, encoder: Encoder) -> None:
        """Queue a request for the log, if it is sampled. If the queue is full, the request is dropped and counted.

        Args:
            request: The request.
            ctr: The probability of each scored candidate, by position.
            response: The response.
            encoder: The model's encoder, which knows the names of the fields and which of them have pseudonyms.
        """
        if random.random() >= self._sample:  # noqa: S311  # sampling needs no secure random numbers
            return
        candidates = len(request.candidates)
        if self._queued_candidates + candidates > MAX_QUEUED_CANDIDATES or self._queue.qsize() >= MAX_QUEUED_LINES:
            self._metrics.not_logged.labels("queue").inc()
            return
        with self._lock:
            self._queued_candidates += candidates
        self._queue.put_nowait(QueuedLine(self._clock(), request, ctr, response, encoder))

    def close(self) -> None:
        """Write the queued lines. Wait for at most CLOSE_TIMEOUT_S."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def encode(self, queued: QueuedLine) -> bytes:
        """Return a line of the log."""
        request, response, encoder = queued.request, queued.response, queued.encoder
        ctr = [queued.ctr.get(row) for row in range(len(request.candidates))]
        line = Line(
            time=datetime.fromtimestamp(queued.answered_s, UTC).isoformat(timespec="milliseconds"),
            request_id=response.request_id,
            model=response.model,
            version=response.version,
            context=self._hasher.hashed(request.context, encoder),
            candidates=[
                LoggedCandidate(candidate.id, self._hasher.hashed(candidate.features, encoder))
                for candidate in request.candidates
            ],
            # A candidate that a cascade ruled out has NaN, which is not valid JSON.
            ctr=[value if value == value else None for value in ctr],
            degraded=response.degraded,
            hashed=[name for name in self._hasher.fields if name not in encoder.pseudonym_names],
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
        """Run a step, and return whether it succeeded. A full disk or an invalid line must not end the thread."""
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
    """Replaces the values of some fields with the HMAC-SHA256 of their tokens.

    Equal values have equal hashes. Without the salt, nobody can find a value by hashing guesses.
    """

    def __init__(self, settings: Settings) -> None:
        self.fields = tuple(name.strip() for name in settings.request_log_hash.split(",") if name.strip())
        self._salt = b"" if settings.request_log_salt_file is None else read_salt(settings.request_log_salt_file)

    def hashed(self, features: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
        """Return the model's features, with the values of `fields` hashed. Pseudonyms are not hashed again."""
        to_hash = encoder.names.intersection(self.fields) - encoder.pseudonym_names
        return {
            name: self.digest(value) if name in to_hash else value
            for name, value in encoder.without_raw_values(features).items()
            if name in encoder.names
        }

    def digest(self, value: Any) -> str | None:
        """Return the hash of a value, or None if it is missing."""
        try:
            text = token(value)
        except ValueError:  # the candidate was skipped because of this value
            text = repr(value)
        if text is None:
            return None
        return "h:" + hmac.digest(self._salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]


def read_salt(path: Path) -> bytes:
    """Return the salt in a file. Raises SettingsError."""
    try:
        salt = path.read_bytes().strip()
    except PermissionError as error:
        raise SettingsError(f"CTR_REQUEST_LOG_SALT_FILE: {explain_denied(path, secret=True)}") from error
    except OSError as error:
        raise SettingsError(f"CTR_REQUEST_LOG_SALT_FILE: {path} cannot be read ({error.strerror}).") from error
    if len(salt) < MIN_SALT_BYTES:
        raise SettingsError(
            f"CTR_REQUEST_LOG_SALT_FILE: {path} has {len(salt)} bytes. Write at least {MIN_SALT_BYTES} random bytes."
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
