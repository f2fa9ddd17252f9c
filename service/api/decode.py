"""Decode request bodies. An invalid body raises a Problem that states where the error is and what to send."""

from typing import Any

import msgspec
from msgspec import Raw

from contract.reader import BadFeature, shorten
from service.api.msgspec_errors import InvalidValue, Path, json_path, parse_validation_error
from service.api.schemas import (
    MAX_PAIRS,
    RESERVED_FIELDS,
    Candidate,
    CandidateId,
    Cascade,
    ExplainRequest,
    Features,
    OnBadCandidate,
    ScoreRequest,
    TimeoutMs,
    TopK,
)
from service.errors import BadRequest, NotJson, Problem
from service.settings import MAX_TIMEOUT_MS


class CandidateWithRawFeatures(msgspec.Struct):
    id: CandidateId
    features: Raw


class RequestWithRawFeatures(msgspec.Struct, forbid_unknown_fields=True):
    """A ScoreRequest in which the features of a candidate may be any JSON value."""

    context: Features
    candidates: list[CandidateWithRawFeatures]
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: OnBadCandidate = "refuse"
    top_k: TopK | None = None
    cascade: Cascade = False


class RawFeatures(msgspec.Struct):
    features: Raw = Raw(b"{}")


class RawRequest(msgspec.Struct):
    """The parts of any request that contain features."""

    context: Raw = Raw(b"{}")
    candidates: list[RawFeatures] = []


SCORE_REQUEST = msgspec.json.Decoder(ScoreRequest)
EXPLAIN_REQUEST = msgspec.json.Decoder(ExplainRequest)
REQUEST_WITH_RAW_FEATURES = msgspec.json.Decoder(RequestWithRawFeatures)
RAW_REQUEST = msgspec.json.Decoder(RawRequest)
FEATURES = msgspec.json.Decoder(dict[str, Any])
RAW_VALUES = msgspec.json.Decoder(dict[str, Raw])
ANY_JSON = msgspec.json.Decoder(Raw)

UNREADABLE = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)

EXPECTED_FEATURES = "an object that maps field names to strings, numbers, booleans or null"
EXPECTED_VALUE = "a string, a finite number, a boolean or null"
# What the value at each path must be. Position 0 stands for every position in a list.
EXPECTED: dict[Path, str] = {
    (): "an object with context and candidates",
    ("context",): EXPECTED_FEATURES,
    ("candidates",): "a list with at least one object {id, features}",
    ("candidates", 0): "an object {id, features}",
    ("candidates", 0, "id"): "a string or an integer",
    ("candidates", 0, "features"): EXPECTED_FEATURES,
    ("timeout_ms",): f"a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}",
    ("on_bad_candidate",): '"refuse" or "skip"',
    ("top_k",): "a whole number of at least 1",
    ("cascade",): "true or false",
    ("pairs",): f"a whole number from 0 to {MAX_PAIRS}",
    ("attention",): "true or false",
}
REQUIRED_FIELDS = ("context", "candidates")


def decode_score_request(body: bytes, max_candidates: int) -> tuple[ScoreRequest, dict[int, BadFeature]]:
    """Decode the body of POST /v1/score.

    Returns:
        The request, and an error for each candidate whose features are not an object of JSON values, by the candidate's
        position. Only a request with on_bad_candidate = "skip" may have such candidates. Their features are returned
        empty.

    Raises:
        NotJson: The body is not JSON.
        BadRequest: The body is JSON, but not a valid request, or it has more than `max_candidates` candidates.
    """
    try:
        request = SCORE_REQUEST.decode(body)
    except msgspec.ValidationError as error:
        # msgspec stops at the first invalid value. What follows it may not even be JSON.
        check_json(body)
        return skip_bad_features(bad_request(error, body, ScoreRequest), body, max_candidates)
    except UNREADABLE as error:
        raise unreadable(error, body) from None
    check_candidate_count(len(request.candidates), max_candidates)
    return request, {}


def decode_explain_request(body: bytes) -> ExplainRequest:
    """Decode the body of POST /v1/explain.

    Raises:
        NotJson: The body is not JSON.
        BadRequest: The body is JSON, but not a valid request.
    """
    try:
        return EXPLAIN_REQUEST.decode(body)
    except msgspec.ValidationError as error:
        check_json(body)
        raise bad_request(error, body, ExplainRequest) from None
    except UNREADABLE as error:
        raise unreadable(error, body) from None


def skip_bad_features(
    problem: BadRequest, body: bytes, max_candidates: int
) -> tuple[ScoreRequest, dict[int, BadFeature]]:
    """Decode a request with on_bad_candidate = "skip" again, decoding the features of each candidate separately.

    Args:
        problem: Why the request could not be decoded as a whole. It is raised if invalid features are not the reason,
            or if the request does not have on_bad_candidate = "skip".
        body: The request, which is known to be JSON.
        max_candidates: Maximum number of candidates in a request.

    Returns:
        See decode_score_request().
    """
    try:
        raw_request = REQUEST_WITH_RAW_FEATURES.decode(body)
    except UNREADABLE:
        raise problem from None
    if raw_request.on_bad_candidate != "skip" or not raw_request.candidates:
        raise problem
    # Check this before decoding the candidates one by one, because a body may contain a hundred thousand.
    check_candidate_count(len(raw_request.candidates), max_candidates)
    candidates: list[Candidate] = []
    errors: dict[int, BadFeature] = {}
    for row, candidate in enumerate(raw_request.candidates):
        path: Path = ("candidates", row, "features")
        features: dict[str, Any] = {}
        try:
            features = FEATURES.decode(candidate.features)
        except msgspec.ValidationError as error:
            invalid = parse_validation_error(error)
            errors[row] = BadFeature(*describe(invalid, path, candidate.features))
        except RecursionError:
            errors[row] = BadFeature(json_path(path), f"The value is nested too deeply. Expected {EXPECTED_FEATURES}.")
        except (UnicodeDecodeError, msgspec.DecodeError) as error:
            raise unreadable(error, candidate.features) from None
        candidates.append(Candidate(candidate.id, features))
    request = ScoreRequest(
        raw_request.context, candidates, raw_request.timeout_ms, "skip", raw_request.top_k, raw_request.cascade
    )
    return request, errors


def check_candidate_count(candidates: int, max_candidates: int) -> None:
    """Raise BadRequest if a request has too many candidates."""
    if candidates > max_candidates:
        raise BadRequest(
            f"{candidates} candidates exceed this server's limit of {max_candidates}. "
            "Split the request, or raise CTR_MAX_CANDIDATES.",
            "$.candidates",
        )


def check_json(body: bytes) -> None:
    """Raise NotJson if a body is not JSON, or BadRequest if it is nested too deeply."""
    try:
        body.decode()  # msgspec does not check whether the strings in a Raw value are valid UTF-8
        ANY_JSON.decode(body)
    except UNREADABLE as error:
        raise unreadable(error, body) from None


def unreadable(error: Exception, body: bytes | Raw) -> Problem:
    """Return the Problem for an exception in UNREADABLE."""
    if isinstance(error, UnicodeDecodeError):
        return NotJson(f"The body is not UTF-8 ({error.reason}). Encode it as UTF-8.")
    if isinstance(error, msgspec.DecodeError):
        if not body:
            return NotJson("The body is empty. Send a JSON object.")
        return NotJson(f"{error}. Send valid JSON, which has no NaN, no Infinity and no lone surrogates.")
    return BadRequest(f"The body is nested too deeply. A feature's value must be {EXPECTED_VALUE}.", "$")


def bad_request(error: msgspec.ValidationError, body: bytes, request_type: type[msgspec.Struct]) -> BadRequest:
    """Return the Problem for a body that is JSON, but not a `request_type`."""
    invalid = parse_validation_error(error)
    if invalid.unknown_field is not None:
        name = shorten(invalid.unknown_field)
        why = "is reserved for a later version" if name in RESERVED_FIELDS else "is not a field of this request"
        fields = ", ".join(request_type.__struct_fields__)
        return BadRequest(f"{name!r} {why}. Remove it. The fields of this request are {fields}.", f"$.{name}")
    if invalid.missing_field is not None:
        path = (*invalid.path, invalid.missing_field)
        return BadRequest(f"{invalid.missing_field!r} is missing. Expected {expected(path)}.", json_path(path))
    path_text, detail = describe(invalid, invalid.path, raw_features(invalid.path, body) if invalid.in_dict else None)
    return BadRequest(detail, path_text)


def describe(invalid: InvalidValue, path: Path, features: Raw | None) -> tuple[str, str]:
    """Return the JSON path of an invalid value, and a message that says what to send instead.

    Args:
        invalid: What msgspec reported.
        path: The path of the value in the request.
        features: The object that contains the value, if `invalid.in_dict` and the object is known.
    """
    where, what = json_path(path), expected(path)
    if invalid.in_dict:
        name = None if features is None else bad_value_name(features)
        where, what = where if name is None else f"{where}.{shorten(name)}", EXPECTED_VALUE
    optional = " This field is optional." if len(path) == 1 and path[0] not in REQUIRED_FIELDS else ""
    if invalid.message is not None:
        return where, f"{invalid.message}. Expected {what}.{optional}"
    got = "" if invalid.got is None else f", got {invalid.got}"
    return where, f"Expected {what}{got}.{optional}"


def expected(path: Path) -> str:
    """Return what the value at a path must be."""
    return EXPECTED.get(tuple(0 if isinstance(part, int) else part for part in path), EXPECTED_VALUE)


def raw_features(path: Path, body: bytes) -> Raw | None:
    """Return the features at a path, undecoded.

    Return None if they cannot be found. If an object has a name twice, only the last value can be found.
    """
    try:
        request = RAW_REQUEST.decode(body)
        return request.context if path == ("context",) else request.candidates[int(path[1])].features
    except (*UNREADABLE, IndexError):
        return None


def bad_value_name(features: Raw) -> str | None:
    """Return the name of the first value that cannot be decoded. msgspec does not report the name."""
    try:
        values = RAW_VALUES.decode(features)
    except UNREADABLE:
        return None
    for name, value in values.items():
        try:
            msgspec.json.decode(value)
        except UNREADABLE:
            return name
    return None
