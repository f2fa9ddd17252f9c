"""Turn a request and its scores into a line of the request log (contract/request_log.py)."""

import hashlib
import hmac
import random
import sys
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.encode import Encoder
from contract.pseudonyms import Pseudonymizer
from contract.request_log import SCORED, LoggedCandidate, LogLine
from contract.system_errors import explain_denied
from contract.tokens import token
from service.api.decode import decode_score_request
from service.api.schemas import Candidate
from service.settings import Settings, SettingsError

MIN_SALT_BYTES = 16
# The memory of a queued line without its body and its scores, including its entry in the queue.
LINE_BYTES = 2048
SCORE_BYTES = 16  # a float64 for the ctr and one for the logit
BEST_BYTES = 40  # an entry of `best` and its integer

Values = NDArray[np.float64]


class Identity(msgspec.Struct, frozen=True):
    """Identifies an answer.

    Attributes:
        score_id: The id of the answer (contract/score_ids.py).
        unit: The token of the request's unit, or None.
        logged: Whether the request was sampled for the log.
    """

    score_id: str
    unit: str | None
    logged: bool


class QueuedLine(msgspec.Struct, frozen=True, kw_only=True):
    """The data for a line. The writer's thread encodes the line, so that the request does not wait for the encoding.

    It holds the request's body rather than the decoded request, which needs many times the memory.

    Attributes:
        identity: Identifies the answer.
        answered_s: When the request was answered, in seconds since 1970.
        request_id: The request's id. Like model, version and degraded, it is the same as in the response.
        outcome: SCORED, or why the request was not scored.
        candidates: Number of candidates in the request (N).
        body: The request's body. Empty if the request was not scored.
        encoder: The model's encoder, which knows the names of the fields and which of them have pseudonyms. None if the
            request was not scored.
        ctr: The probability of each candidate, and NaN for one that was not scored. Shape: float64 (N).
        logit: The logit of each candidate before calibration, or NaN. Shape: float64 (N).
        best: The positions of the best candidates, or None to log all candidates.
        degraded: What was unavailable.
    """

    identity: Identity
    answered_s: float
    request_id: str
    model: str
    version: str
    outcome: str
    candidates: int
    body: bytes = b""
    encoder: Encoder | None = None
    ctr: Values | None = None
    logit: Values | None = None
    best: list[int] | None = None
    degraded: Sequence[str] = ()

    def size(self) -> int:
        """Return an upper bound for the memory that the queue needs for this line, in bytes."""
        scores = 0 if self.ctr is None else SCORE_BYTES * len(self.ctr)
        unit = 4 * len(self.identity.unit or "")  # a character of a str needs at most 4 bytes
        return LINE_BYTES + len(self.body) + scores + BEST_BYTES * len(self.best or ()) + unit


class LineEncoder:
    """Encodes lines with the fields, candidates and hashes that the settings choose."""

    def __init__(self, settings: Settings, pseudonyms: Pseudonymizer | None) -> None:
        """Read the salt. Raises SettingsError if the file cannot be used.

        Args:
            settings: The operator's settings.
            pseudonyms: The key for pseudonyms of units, or None to log units unchanged.
        """
        self.hasher = ValueHasher(settings)
        self._pseudonyms = pseudonyms
        self._all_fields = settings.request_log_fields == "all"

    def encode(self, queued: QueuedLine) -> bytes:
        """Return a line of the log, including the newline."""
        line = LogLine(
            time=datetime.fromtimestamp(queued.answered_s, UTC).isoformat(timespec="milliseconds"),
            score_id=queued.identity.score_id,
            request_id=queued.request_id,
            outcome=queued.outcome,
            model=queued.model,
            version=queued.version,
            unit=self._unit(queued.identity.unit),
            candidate_count=queued.candidates,
        )
        if queued.outcome == SCORED:
            assert queued.encoder is not None
            request, _ = decode_score_request(queued.body, sys.maxsize, queued.encoder.names)
            line.context = self._features(request.context, queued.encoder)
            line.candidates = self._candidates(request.candidates, queued, queued.encoder)
            line.degraded = list(queued.degraded)
            # Pseudonyms do not count as hashed, because a replay can read them.
            line.hashed = [name for name in self.hasher.fields if name not in queued.encoder.pseudonym_names]
        return msgspec.json.encode(line) + b"\n"

    def _unit(self, unit: str | None) -> str | None:
        """Return what the log contains for a unit. This is the only place where a unit enters the log."""
        return unit if unit is None or self._pseudonyms is None else self._pseudonyms.pseudonym(unit)

    def _features(self, features: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
        """Return the features to log, with pseudonyms and hashes instead of raw values."""
        names = None if self._all_fields else encoder.names
        return self.hasher.logged(encoder.without_raw_values(features), names, encoder.pseudonym_names)

    def _candidates(
        self, candidates: Sequence[Candidate], queued: QueuedLine, encoder: Encoder
    ) -> list[LoggedCandidate]:
        assert queued.ctr is not None
        assert queued.logit is not None
        ctr, logit = queued.ctr.tolist(), queued.logit.tolist()
        if queued.best is None:
            inclusion = dict.fromkeys(range(len(candidates)), 1.0)
        else:
            inclusion = chosen(queued.best, np.flatnonzero(~np.isnan(queued.ctr)).tolist())
        return [
            LoggedCandidate(
                row,
                candidates[row].id,
                self._features(candidates[row].features, encoder),
                number_or_none(ctr[row]),
                number_or_none(logit[row]),
                probability,
            )
            for row, probability in inclusion.items()
        ]


def number_or_none(value: float) -> float | None:
    """Return None for NaN, which is not valid JSON and stands for a candidate without a score."""
    return None if value != value else value


def chosen(best: Sequence[int], scored: Sequence[int]) -> dict[int, float]:
    """Return the candidates to log: the best ones, and one of the other scored candidates at random.

    Args:
        best: Positions of the best candidates.
        scored: Positions of all candidates that have a score.

    Returns:
        Position -> the probability with which the candidate was chosen, in the order of the request.
    """
    inclusion = dict.fromkeys(best, 1.0)
    others = [row for row in scored if row not in inclusion]
    if others:
        inclusion[random.choice(others)] = 1 / len(others)  # noqa: S311  # sampling needs no secure random numbers
    return dict(sorted(inclusion.items()))


class ValueHasher:
    """Replaces the values of some fields with the HMAC-SHA256 of their tokens.

    Equal values have equal hashes. Without the salt, nobody can find a value by hashing guesses.
    """

    def __init__(self, settings: Settings) -> None:
        self.fields = tuple(name.strip() for name in settings.request_log_hash.split(",") if name.strip())
        self._salt = b"" if settings.request_log_salt_file is None else read_salt(settings.request_log_salt_file)

    def logged(
        self, features: Mapping[str, Any], names: frozenset[str] | None, pseudonyms: Set[str] = frozenset()
    ) -> dict[str, Any]:
        """Return the features to log, with the values of `fields` hashed.

        Args:
            features: Values by field name.
            names: The names to log. None stands for all names.
            pseudonyms: Names whose values are pseudonyms, which are not hashed again.
        """
        return {
            name: self.digest(value) if name in self.fields and name not in pseudonyms else value
            for name, value in features.items()
            if names is None or name in names
        }

    def digest(self, value: Any) -> str | None:
        """Return the hash of a value, or None if it is missing."""
        try:
            text = token(value)
        except ValueError:  # the candidate was skipped because of this value, or no field of the model reads it
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
