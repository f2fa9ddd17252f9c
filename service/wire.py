"""Request and response. The service decodes with these types, and the OpenAPI page is made from them."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from service.errors import BadRequest, NotJson

LONGEST_TIMEOUT_MS = 10_000
RESERVED = ("top_k", "cascade", "debug")

CandidateId = Annotated[str | int, Meta(description="echoed; need not be unique")]
Features = Annotated[dict[str, Any], Meta(description="field name -> string, number, boolean or null")]
TimeoutMs = Annotated[int, Meta(ge=1, le=LONGEST_TIMEOUT_MS, description="the budget for the answer, in ms")]
OnBadCandidate = Literal["refuse", "skip"]


class Candidate(msgspec.Struct):
    id: CandidateId
    features: Features


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: Features
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: OnBadCandidate = "refuse"


class Score(msgspec.Struct):
    """`ctr` is null, and `error` says why, for a bad candidate of a request with on_bad_candidate = skip."""

    id: str | int
    ctr: float | None
    error: str | UnsetType = UNSET


class ScoreResponse(msgspec.Struct):
    """`scores` are in the order of the candidates; `degraded` names the parts that the answer had to do without."""

    request_id: str
    model: str
    version: str
    scores: list[Score]
    degraded: list[str]


class ModelField(msgspec.Struct):
    name: str
    side: str
    kind: str


class ModelResponse(msgspec.Struct):
    name: str
    version: str
    created: str
    metrics: dict[str, float]
    fields: list[ModelField]


class _LooseCandidate(msgspec.Struct):
    id: CandidateId
    features: Raw


class _LooseRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: dict[str, Raw]
    candidates: list[_LooseCandidate]
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: OnBadCandidate = "refuse"


class _RawCandidate(msgspec.Struct):
    features: Raw = Raw(b"{}")


class _RawRequest(msgspec.Struct):
    context: Raw = Raw(b"{}")
    candidates: list[_RawCandidate] = []


_REQUEST = msgspec.json.Decoder(ScoreRequest)
_LOOSE = msgspec.json.Decoder(_LooseRequest)
_FEATURES = msgspec.json.Decoder(dict[str, Any])

_FEATURES_HINT = "send an object: field name -> string, number, boolean or null"
_HINTS = {
    "$": "send an object with `context` and `candidates`",
    "$.context": _FEATURES_HINT,
    "$.candidates": "send a list of at least one {id, features}",
    "$.candidates[]": "send {id, features}",
    "$.candidates[].id": "send a string or an integer",
    "$.candidates[].features": _FEATURES_HINT,
    "$.timeout_ms": f"send whole milliseconds from 1 to {LONGEST_TIMEOUT_MS}, or leave it out",
    "$.on_bad_candidate": 'send "refuse" or "skip", or leave it out',
}
_VALUE_HINT = "send a string, a finite number within 64 bits, a boolean or null"
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_REQUIRED = re.compile(r"Object missing required field `(.*)`")


def decode(body: bytes) -> tuple[ScoreRequest, dict[int, BadRequest]]:
    """The request, and by position the candidates whose features are not even an object of JSON values.

    There are such only with on_bad_candidate = skip; their features are empty.

    Raises:
        NotJson: for what is no JSON.
        BadRequest: for JSON of another form, with its path.
    """
    try:
        return _REQUEST.decode(body), {}
    except msgspec.ValidationError as error:
        problem = _explain(error, body)
        return _without_bad_features(problem, body)
    except RecursionError:
        raise BadRequest("is nested too deep: a value is a string, a number, a boolean or null", "$") from None
    except UnicodeDecodeError as error:
        raise NotJson(f"The body is not UTF-8: {error.reason}. Send UTF-8") from None
    except msgspec.DecodeError as error:
        hint = "JSON has no NaN, infinity or lone surrogate" if body else "Send a JSON object"
        raise NotJson(f"{error}. {hint}") from None


def _without_bad_features(problem: BadRequest, body: bytes) -> tuple[ScoreRequest, dict[int, BadRequest]]:
    """Decodes once more, taking features as they are; raises the problem where that is not what was wrong."""
    if not (problem.path or "").startswith("$.candidates["):
        raise problem
    try:
        loose = _LOOSE.decode(body)
        context = {name: msgspec.json.decode(value) for name, value in loose.context.items()}
    except (msgspec.DecodeError, RecursionError):
        raise problem from None
    if loose.on_bad_candidate != "skip":
        raise problem
    bad: dict[int, BadRequest] = {}
    candidates = [Candidate(c.id, _features(c.features, index, bad)) for index, c in enumerate(loose.candidates)]
    return ScoreRequest(context, candidates, loose.timeout_ms, "skip"), bad


def _features(raw: Raw, index: int, bad: dict[int, BadRequest]) -> dict[str, Any]:
    path = f"$.candidates[{index}].features"
    try:
        return _FEATURES.decode(raw)
    except msgspec.ValidationError as error:
        what, _, _ = str(error).partition(" - at ")
        bad[index] = _unreadable_value(what, path, raw) if "`$[...]`" in str(error) else _bad(what, path)
    except RecursionError:
        bad[index] = BadRequest(f"is nested too deep: {_FEATURES_HINT}", path)
    return {}


def _explain(error: msgspec.ValidationError, body: bytes) -> BadRequest:
    """Msgspec's words -> the path, and what to send there."""
    what, _, at = str(error).rpartition(" - at `")
    what, path = (what, at.removesuffix("`")) if what else (str(error), "$")
    if path.endswith("[...]"):
        path = path.removesuffix("[...]")
        return _unreadable_value(what, path, _raw_features(path, body))
    return _bad(what, path)


def _bad(what: str, path: str) -> BadRequest:
    if unknown := _UNKNOWN.fullmatch(what):
        name = unknown[1]
        allowed = ", ".join(ScoreRequest.__struct_fields__)
        reason = "is reserved for a later version" if name in RESERVED else "is not a part of a request"
        return BadRequest(f"{name!r} {reason}: leave it out; a request has {allowed}", f"{path}.{name}")
    if required := _REQUIRED.fullmatch(what):
        path = f"{path}.{required[1]}"
        return BadRequest(f"{required[1]!r} is missing: {_hint(path)}", path)
    what = what.replace("`", "").replace("array", "list")
    return BadRequest(f"{what}: {_hint(path)}", path)


def _hint(path: str) -> str:
    return _HINTS.get(re.sub(r"\[\d+\]", "[]", path), _VALUE_HINT)


def _raw_features(path: str, body: bytes) -> Raw:
    """Msgspec does not say which key of an object was bad: the object, to look for it."""
    raw = msgspec.json.decode(body, type=_RawRequest)
    index = re.search(r"\[(\d+)\]", path)
    return raw.candidates[int(index[1])].features if index else raw.context


def _unreadable_value(what: str, path: str, features: Raw) -> BadRequest:
    for name, value in msgspec.json.decode(features, type=dict[str, Raw]).items():
        try:
            msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return BadRequest(f"{what}: {_VALUE_HINT}", f"{path}.{name}")
    return BadRequest(f"{what}: {_VALUE_HINT}", path)
