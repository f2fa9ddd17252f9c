"""A sample of requests and their scores, to look at or to replay: opt-in, off the hot path.

NDJSON files; a line says what the model read and answered, so names that it does not know are not in it. Fields may be
hashed.
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
from service.request_log.segments import Segments, whole_files
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

MOST_WAITING = 1000  # lines for the writer
MOST_CANDIDATES = 100_000  # in them
CLOSE_S = 10.0
SHORTEST_SALT = 16
TURN_S = 1.0


class LoggedCandidate(msgspec.Struct):
    id: str | int
    features: dict[str, Any]


class Line(msgspec.Struct):
    """ctr: in the order of the candidates; null for one that was not scored. hashed: fields whose values are hashes."""

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
class _Offer:
    at_s: float
    request: ScoreRequest
    ctr: Mapping[int, float]
    response: ScoreResponse
    fields: frozenset[str]


class RequestLog:
    """Of one process. Lives as long as it, over reloads. `offer` never waits."""

    def __init__(self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """Raises SettingsError when the folder or the salt cannot be used."""
        assert settings.request_log is not None
        self._folder = settings.request_log
        self._sample = settings.request_log_sample
        self._metrics = metrics
        self._clock = clock
        self._hash = _Hash(settings)
        self._queue: queue.Queue[_Offer | None] = queue.Queue()  # bounded in `offer`
        self._waiting = 0  # candidates in it
        self._lock = threading.Lock()
        self._segments = Segments(self._folder, settings.request_log_max_bytes, clock)
        self._can_write = True
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def check(self, schema: FeatureSchema) -> None:
        """Raises SettingsError for a field to be hashed that the model does not have: it would be logged as it is."""
        names = {field.name for field in schema.fields}
        for name in self._hash.fields:
            if name not in names:
                raise SettingsError(
                    f"CTR_REQUEST_LOG_HASH: the model has no field {name!r}, it has {', '.join(sorted(names))}"
                )

    def offer(
        self, request: ScoreRequest, ctr: Mapping[int, float], response: ScoreResponse, fields: frozenset[str]
    ) -> None:
        if random.random() >= self._sample:  # noqa: S311  # a sample, no secret
            return
        candidates = len(request.candidates)
        if self._waiting + candidates > MOST_CANDIDATES or self._queue.qsize() >= MOST_WAITING:
            self._metrics.not_logged.labels("queue").inc()
            return
        with self._lock:
            self._waiting += candidates
        self._queue.put_nowait(_Offer(self._clock(), request, ctr, response, fields))

    def close(self) -> None:
        """Waits a while for what is to be written."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _write_all(self) -> None:
        while True:
            try:
                offer = self._queue.get(timeout=TURN_S)
            except queue.Empty:
                self._try(self._segments.turn_if_old)
                continue
            if offer is None:
                self._try(self._segments.close)
                return
            with self._lock:
                self._waiting -= len(offer.request.candidates)
            if self._try(lambda offer=offer: self._segments.write(self._line(offer))):  # type: ignore[misc]
                self._metrics.logged.inc()
            else:
                self._metrics.not_logged.labels("write").inc()

    def _try(self, step: Callable[[], None]) -> bool:
        """A full disk, or a line that cannot be made, costs lines and no requests."""
        try:
            step()
        except Exception as error:
            if self._can_write:
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                log.error("the request log cannot be written, its lines are lost: %s", why)
            self._can_write = False
            return False
        if not self._can_write:
            log.info("the request log is written again")
        self._can_write = True
        return True

    def _line(self, offer: _Offer) -> bytes:
        request, response = offer.request, offer.response
        line = Line(
            time=datetime.fromtimestamp(offer.at_s, UTC).isoformat(timespec="milliseconds"),
            request_id=response.request_id,
            model=response.model,
            version=response.version,
            context=self._hash.of(request.context, offer.fields),
            candidates=[
                LoggedCandidate(one.id, self._hash.of(one.features, offer.fields)) for one in request.candidates
            ],
            ctr=[_or_none(offer.ctr.get(row)) for row in range(len(request.candidates))],
            degraded=response.degraded,
            hashed=list(self._hash.fields),
        )
        return msgspec.json.encode(line) + b"\n"


class _Hash:
    """HMAC-SHA256 of a value's token, with the salt: equal values stay equal, and nobody can try them out."""

    def __init__(self, settings: Settings) -> None:
        self.fields = tuple(name.strip() for name in settings.request_log_hash.split(",") if name.strip())
        self._salt = b"" if settings.request_log_salt_file is None else _salt(settings.request_log_salt_file)

    def of(self, features: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
        return {
            name: self._hashed(value) if name in self.fields else value
            for name, value in features.items()
            if name in known
        }

    def _hashed(self, value: Any) -> str | None:
        try:
            text = token(value)
        except ValueError:  # of a candidate that was left out for it
            text = repr(value)
        if text is None:
            return None
        return "h:" + hmac.digest(self._salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:32]


def _salt(path: Path) -> bytes:
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"CTR_REQUEST_LOG_SALT_FILE: {path}: {error.strerror}") from error
    if len(salt) < SHORTEST_SALT:
        raise SettingsError(
            f"CTR_REQUEST_LOG_SALT_FILE: {path} has {len(salt)} bytes: put {SHORTEST_SALT} or more there"
        )
    return salt


def _or_none(value: float | None) -> float | None:
    return value if value is not None and value == value else None


def read_lines(paths: Sequence[Path]) -> tuple[list[Line], int]:
    """The lines of files, or of all whole files in folders; and how many could not be read."""
    decoder, lines, garbled = msgspec.json.Decoder(Line), [], 0
    for path in paths:
        for file in whole_files(path) if path.is_dir() else [path]:
            for raw in file.read_bytes().splitlines():
                try:
                    lines.append(decoder.decode(raw))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    garbled += 1
    return lines, garbled
