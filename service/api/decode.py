"""Decode request bodies. An invalid body raises a Problem that states where the error is and what to send."""

from collections.abc import Container, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from contract.reader import BadFeature, shorten
from contract.tokens import token
from service.api.lexical_faults import confine_faults, describe_fault, is_confined
from service.api.msgspec_errors import InvalidValue, Path, json_path, parse_validation_error
from service.api.schemas import (
    MAX_PAIRS,
    RESERVED_FIELDS,
    Candidate,
    CandidateId,
    ExplainRequest,
    ScoreRequest,
)
from service.errors import BadRequest, NotJson, Problem
from service.settings import MAX_TIMEOUT_MS

AnyRequest = TypeVar("AnyRequest", ScoreRequest, ExplainRequest)

SCORE_REQUEST = msgspec.json.Decoder(ScoreRequest)
EXPLAIN_REQUEST = msgspec.json.Decoder(ExplainRequest)
FEATURES = msgspec.json.Decoder(dict[str, Any])
# A Raw value is not checked for UTF-8, so an invalid string does not affect the values around it.
RAW_OBJECT = msgspec.json.Decoder(dict[str, Raw])
RAW_LIST = msgspec.json.Decoder(list[Raw])
ANY_JSON = msgspec.json.Decoder(Raw)
ANY_VALUE = msgspec.json.Decoder()

UNREADABLE = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MAX_EXACT_FLOAT = 2**53 - 1  # Larger integers are rounded when they are read as floats.

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
    ("unit",): "a string or an integer",
    ("timeout_ms",): f"a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}",
    ("on_bad_candidate",): '"refuse" or "skip"',
    ("top_k",): "a whole number of at least 1",
    ("cascade",): "true or false",
    ("pairs",): f"a whole number from 0 to {MAX_PAIRS}",
    ("attention",): "true or false",
}
REQUIRED_FIELDS = ("context", "candidates")


def decode_score_request(
    body: bytes, max_candidates: int, names: Container[str] | None = None
) -> tuple[ScoreRequest, dict[int, BadFeature]]:
    """Decode the body of POST /v1/score.

    Args:
        body: The body.
        max_candidates: Maximum number of candidates in a request.
        names: The fields that the model reads. Other fields may have any name and value. None: the model reads every
            field.

    Returns:
        The request, and the errors of candidates that cannot be decoded, by position. Only a request with
        on_bad_candidate = "skip" may have such candidates. Their features are returned empty, and an invalid id as
        None.

    Raises:
        NotJson: The body is not JSON.
        BadRequest: The body is JSON, but not a valid request, or it has more than `max_candidates` candidates.
    """
    try:
        request = decode_strictly(SCORE_REQUEST, body)
    except UNREADABLE:
        return decode_leniently(ScoreRequest, body, max_candidates, names)
    check_candidate_count(len(request.candidates), max_candidates)
    return request, {}


def decode_explain_request(body: bytes, max_candidates: int, names: Container[str] | None = None) -> ExplainRequest:
    """Decode the body of POST /v1/explain. For the arguments and exceptions, see decode_score_request()."""
    try:
        return decode_strictly(EXPLAIN_REQUEST, body)
    except UNREADABLE:
        return decode_leniently(ExplainRequest, body, max_candidates, names)[0]


def unit_token(unit: str | int | None, max_chars: int) -> str | None:
    """Return the canonical token of a request's unit, or None if the request has no unit.

    Raises:
        BadRequest: The token has more than `max_chars` characters.
    """
    if unit is None:
        return None
    try:
        text = token(unit)
    except ValueError as error:
        raise BadRequest(f"unit {error}", "$.unit") from None
    if text is not None and len(text) > max_chars:
        raise BadRequest(f"unit has {len(text)} characters, but the limit is {max_chars}: send a shorter id", "$.unit")
    return text


def decode_strictly(decoder: msgspec.json.Decoder[AnyRequest], body: bytes) -> AnyRequest:
    """Decode a body with msgspec. This is the fast path, which almost all requests take."""
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        if not body.startswith(BYTE_ORDER_MARK):
            raise
        return decoder.decode(body[len(BYTE_ORDER_MARK) :])


def decode_leniently(
    request_type: type[AnyRequest], body: bytes, max_candidates: int, names: Container[str] | None
) -> tuple[AnyRequest, dict[int, BadFeature]]:
    """Decode a body that msgspec refuses as a whole, part by part.

    A part may be valid although msgspec refuses it: 3.0 is an integer, and a field that the model does not read may
    have any name and value. With on_bad_candidate = "skip", a part may also be an invalid candidate. Two kinds of
    bodies are refused as a whole: those whose brackets, commas, colons or quotation marks are wrong, and those that are
    nested about 1,000 levels deep, because msgspec cannot skip such a value.

    Args:
        request_type: The type of the request.
        body: The body. See decode_score_request() for the other arguments, the returned values and the exceptions.
    """
    if not body:
        raise NotJson("The body is empty. Send a JSON object.")
    parts = split_request(body.removeprefix(BYTE_ORDER_MARK))
    context = read_features(parts["context"], ("context",), names) if "context" in parts else {}
    raw_candidates = decoded(RAW_LIST, parts["candidates"], ("candidates",)) if "candidates" in parts else []
    request = read_options(request_type, parts, is_empty=not raw_candidates)
    # Check this before decoding the candidates one by one, because a body may contain a hundred thousand.
    check_candidate_count(len(raw_candidates), max_candidates)
    candidates: list[Candidate] = []
    errors: dict[int, BadFeature] = {}
    for row, raw in enumerate(raw_candidates):
        candidate, problem = read_candidate(raw, ("candidates", row), names)
        candidates.append(candidate)
        if problem is None:
            continue
        if not (isinstance(request, ScoreRequest) and request.on_bad_candidate == "skip"):
            raise problem
        errors[row] = BadFeature(problem.path or "$", problem.detail)
    request.context, request.candidates = context, candidates
    return request, errors


def split_request(body: bytes) -> dict[str, Raw]:
    """Return the request's fields. Raises Problem if this is not a JSON object, whatever else is wrong with it."""
    refused: Problem | None = None
    try:
        decoded(ANY_JSON, body, ())
        body.decode()
    except NotJson as problem:
        refused = problem
        body = confine_faults(body)
    except UnicodeDecodeError:
        body = confine_faults(body)
    try:
        parts: dict[str, Raw] = decoded(RAW_OBJECT, body, ())
        return parts
    except Problem as problem:
        raise refused or problem from None


def read_options(request_type: type[AnyRequest], parts: Mapping[str, Raw], is_empty: bool) -> AnyRequest:
    """Return a request with placeholders for the context and the candidates.

    Args:
        request_type: The type of the request.
        parts: The request's fields.
        is_empty: Whether there are no candidates.

    Raises:
        Problem: A field is missing, unknown or invalid.
    """
    options: dict[str, Any] = {}
    for name, raw in parts.items():
        is_option = name in request_type.__struct_fields__ and name not in REQUIRED_FIELDS
        options[name] = exact_integer(decoded(ANY_VALUE, raw, (name,)), (name,)) if is_option else {}
    if "candidates" in parts:
        options["candidates"] = [] if is_empty else [{"id": 0, "features": {}}]
    try:
        return msgspec.convert(options, request_type)
    except msgspec.ValidationError as error:
        raise bad_request(error, request_type) from None


def read_candidate(raw: Raw, path: Path, names: Container[str] | None) -> tuple[Candidate, Problem | None]:
    """Decode a candidate. If it is invalid, return a candidate without features, and what is wrong."""
    candidate_id: Any = None
    try:
        parts = decoded(RAW_OBJECT, raw, path)
        if "id" not in parts:
            raise missing((*path, "id"))
        candidate_id = read_id(parts["id"], (*path, "id"))
        if "features" not in parts:
            raise missing((*path, "features"))
        return Candidate(candidate_id, read_features(parts["features"], (*path, "features"), names)), None
    except Problem as problem:
        return Candidate(candidate_id, {}), problem


def read_id(raw: Raw, path: Path) -> str | int:
    """Decode a candidate's id. Raises Problem if it is invalid."""
    value = exact_integer(decoded(ANY_VALUE, raw, path), path)
    try:
        candidate_id: str | int = msgspec.convert(value, CandidateId)
        return candidate_id
    except msgspec.ValidationError as error:
        raise problem_at(error, path) from None


def read_features(raw: Raw, path: Path, names: Container[str] | None) -> dict[str, Any]:
    """Decode an object of features. If a value cannot be decoded, all values that the model does not read become None.

    Raises:
        Problem: The value is not an object, or a feature that the model reads cannot be decoded.
    """
    try:
        return FEATURES.decode(raw)
    except UNREADABLE:
        values = decoded(RAW_OBJECT, raw, path)
    features: dict[str, Any] = {}
    for name, value in values.items():
        if names is not None and name not in names:
            features[name] = None
            continue
        try:
            features[name] = ANY_VALUE.decode(value)
        except UNREADABLE as error:
            raise problem_at(error, (*path, shorten(name))) from None
    return features


def exact_integer(value: Any, path: Path) -> Any:
    """Convert a whole float such as 3.0 to an integer. Return any other value unchanged.

    Raises:
        BadRequest: The float is so large that it may have been rounded.
    """
    if not (isinstance(value, float) and value.is_integer()):
        return value
    if abs(value) > MAX_EXACT_FLOAT:
        raise BadRequest(
            f"The {path[-1]} is too large for a floating-point number. Send it as an integer or a string.",
            json_path(path),
        )
    return int(value)


def decoded(decoder: msgspec.json.Decoder[Any], raw: bytes | Raw, path: Path) -> Any:
    """Decode the value at a path. Raises Problem if it cannot be decoded."""
    try:
        return decoder.decode(raw)
    except UNREADABLE as error:
        # Where an object is expected, msgspec says "got a string" instead of what is wrong with a confined value.
        if isinstance(error, msgspec.ValidationError) and is_confined(bytes(raw)):
            return decoded(ANY_VALUE, raw, path)
        raise problem_at(error, path) from None


def check_candidate_count(candidates: int, max_candidates: int) -> None:
    """Raise BadRequest if a request has too many candidates."""
    if candidates > max_candidates:
        raise BadRequest(
            f"{candidates} candidates exceed this server's limit of {max_candidates}. "
            "Split the request, or raise CTR_MAX_CANDIDATES.",
            "$.candidates",
        )


def problem_at(error: Exception, path: Path) -> Problem:
    """Return the Problem for an exception in UNREADABLE that the value at a path caused."""
    if isinstance(error, msgspec.ValidationError):
        return invalid_value(parse_validation_error(error), path)
    where = json_path(path) if path else None
    if isinstance(error, UnicodeDecodeError):
        return NotJson(describe_fault(error), where)
    if isinstance(error, msgspec.DecodeError):
        return NotJson(f"{error}. Send valid JSON, which has no NaN and no Infinity.", where)
    what = f"The value is nested too deeply. Expected {expected(path)}."
    body = f"The body is nested too deeply. A feature's value must be {EXPECTED_VALUE}."
    return BadRequest(what if path else body, json_path(path))


def bad_request(error: msgspec.ValidationError, request_type: type[msgspec.Struct]) -> BadRequest:
    """Return the Problem for a request whose fields do not match `request_type`."""
    invalid = parse_validation_error(error)
    if invalid.unknown_field is not None:
        name = shorten(invalid.unknown_field)
        why = "is reserved for a later version" if name in RESERVED_FIELDS else "is not a field of this request"
        fields = ", ".join(request_type.__struct_fields__)
        return BadRequest(f"{name!r} {why}. Remove it. The fields of this request are {fields}.", f"$.{name}")
    if invalid.missing_field is not None:
        return missing((*invalid.path, invalid.missing_field))
    return invalid_value(invalid, invalid.path)


def missing(path: Path) -> BadRequest:
    """Return the Problem for a missing field."""
    return BadRequest(f"{path[-1]!r} is missing. Expected {expected(path)}.", json_path(path))


def invalid_value(invalid: InvalidValue, path: Path) -> BadRequest:
    """Return the Problem for the value at a path, which has the wrong type or is out of bounds."""
    optional = " This field is optional." if len(path) == 1 and path[0] not in REQUIRED_FIELDS else ""
    if invalid.message is not None:
        return BadRequest(f"{invalid.message}. Expected {expected(path)}.{optional}", json_path(path))
    got = "" if invalid.got is None else f", got {invalid.got}"
    return BadRequest(f"Expected {expected(path)}{got}.{optional}", json_path(path))


def expected(path: Path) -> str:
    """Return what the value at a path must be."""
    return EXPECTED.get(tuple(0 if isinstance(part, int) else part for part in path), EXPECTED_VALUE)
