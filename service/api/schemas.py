"""Request and response. The service decodes with these types, and the OpenAPI page is made from them."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from contract.bundle import CascadeRule
from contract.reader import BadFeature, shorten
from service.errors import BadRequest, NotJson, Problem
from service.settings import MAX_TIMEOUT_MS

SCORE_PATH = "/v1/score"
RESERVED = ("debug",)
MAX_PAIRS = 10_000  # of an explanation
DEFAULT_PAIRS = 20

CandidateId = Annotated[str | int, Meta(description="echoed; need not be unique")]
Features = Annotated[dict[str, Any], Meta(description="field name -> string, number, boolean or null")]
TimeoutMs = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS, description="the budget for the answer, in ms")]
OnBadCandidate = Literal["refuse", "skip"]
TopK = Annotated[int, Meta(ge=1, description="answer with the best k only, sorted")]
Cascade = Annotated[bool, Meta(description="with top_k: let the first level rule out candidates; see /v1/model")]
UNREADABLE = (RecursionError, UnicodeDecodeError, msgspec.DecodeError)


class Candidate(msgspec.Struct):
    id: CandidateId
    features: Features


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: Features
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: OnBadCandidate = "refuse"
    top_k: TopK | None = None
    cascade: Cascade = False


class Score(msgspec.Struct):
    """`ctr` is null, and `error` says why, for a bad candidate of a request with on_bad_candidate = skip."""

    id: str | int
    ctr: float | None
    error: str | UnsetType = UNSET


class ScoreResponse(msgspec.Struct):
    """`scores` are in the order of the candidates, with top_k the best ones in descending order.

    `degraded` names the parts that the answer had to do without; `scored_in_full`, with cascade, says how many
    candidates the whole model saw.
    """

    request_id: str
    model: str
    version: str
    scores: list[Score]
    degraded: list[str]
    scored_in_full: int | UnsetType = UNSET


class ModelField(msgspec.Struct):
    name: str
    side: str
    kind: str


class ModelResponse(msgspec.Struct):
    """type: of model; "stec" unless another was trained. attention: STEC's. graph, device: the bundle's file that
    scores, and on what; kernel.onnx is the fast one on a CPU."""

    name: str
    type: str
    version: str
    created: str
    metrics: dict[str, float]
    fields: list[ModelField]
    attention: str
    graph: str
    device: str
    cascade: tuple[CascadeRule, ...]


class ExplainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """pairs: how many, the largest first. attention: whether to send its matrices."""

    context: Features
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    pairs: Annotated[int, Meta(ge=0, le=MAX_PAIRS, description="how many, the largest first")] = DEFAULT_PAIRS
    attention: Annotated[bool, Meta(description="send the matrices: [block][head][field][attends to field]")] = False
    timeout_ms: TimeoutMs | None = None


class Pair(msgspec.Struct):
    """Two fields' contribution to the logit, both orders added, over all levels and by level."""

    fields: tuple[str, str]
    contribution: float
    levels: list[float]


class Explanation(msgspec.Struct):
    """logit = bias + the pairs' contributions + others; ctr is that logit's, calibrated.

    bias: the average training row's logit. levels: the sum of each level's contributions. Level 0 is about two fields
    alone; from level 1 on a field has mixed in others, through attention.
    Of a model that is not STEC a field's contribution is its share of the logit (export/graphs/share.py), as the pair
    of the field with itself, in one level without attention; bias: the logit where every field is missing.
    """

    id: str | int
    ctr: float
    logit: float
    bias: float
    levels: list[float]
    pairs: list[Pair]
    others: float
    attention: list[list[list[list[float]]]] | UnsetType = UNSET


class ExplainResponse(msgspec.Struct):
    """fields: the order of the attention matrices' rows and columns."""

    request_id: str
    model: str
    version: str
    fields: list[str]
    explanations: list[Explanation]
    degraded: list[str]


class _LooseCandidate(msgspec.Struct):
    id: CandidateId
    features: Raw


class _LooseRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: Features
    candidates: list[_LooseCandidate]
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: OnBadCandidate = "refuse"
    top_k: TopK | None = None
    cascade: Cascade = False


class _RawCandidate(msgspec.Struct):
    features: Raw = Raw(b"{}")


class _RawRequest(msgspec.Struct):
    context: Raw = Raw(b"{}")
    candidates: list[_RawCandidate] = []


_REQUEST = msgspec.json.Decoder(ScoreRequest)
_EXPLAIN_REQUEST = msgspec.json.Decoder(ExplainRequest)
_LOOSE = msgspec.json.Decoder(_LooseRequest)
_FEATURES = msgspec.json.Decoder(dict[str, Any])
_ANY_JSON = msgspec.json.Decoder(Raw)
_RAW_REQUEST = msgspec.json.Decoder(_RawRequest)
_RAW_VALUES = msgspec.json.Decoder(dict[str, Raw])

_FEATURES_HINT = "send an object: field name -> string, number, boolean or null"
_HINTS = {
    "$": "send an object with `context` and `candidates`",
    "$.context": _FEATURES_HINT,
    "$.candidates": "send a list of at least one {id, features}",
    "$.candidates[]": "send {id, features}",
    "$.candidates[].id": "send a string or an integer",
    "$.candidates[].features": _FEATURES_HINT,
    "$.timeout_ms": f"send whole milliseconds from 1 to {MAX_TIMEOUT_MS}, or leave it out",
    "$.on_bad_candidate": 'send "refuse" or "skip", or leave it out',
    "$.top_k": "send a whole number from 1, or leave it out",
    "$.cascade": "send true or false, or leave it out",
    "$.pairs": "send a whole number from 0, or leave it out",
    "$.attention": "send true or false, or leave it out",
}
_VALUE_HINT = "send a string, a finite number, a boolean or null"
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_REQUIRED = re.compile(r"Object missing required field `(.*)`")
_LONGEST_WORDS = 200  # of msgspec's, which quote the client's


def decode(body: bytes, max_candidates: int) -> tuple[ScoreRequest, dict[int, BadFeature]]:
    """The request, and by position the candidates whose features are not even an object of JSON values.

    There are such only with on_bad_candidate = skip; their features are empty.

    Raises:
        NotJson: for what is no JSON.
        BadRequest: for JSON of another form, with its path, and for more candidates than `max_candidates`.
    """
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        # What follows the place of the complaint was not looked at yet, and may be no JSON.
        _check_json(body)
        return _without_bad_features(_explain(error, body, ScoreRequest), body, max_candidates)
    except UNREADABLE as error:
        raise _unreadable(error, body) from None
    _check_number(len(request.candidates), max_candidates)
    return request, {}


def decode_explain_request(body: bytes) -> ExplainRequest:
    """Decode the body of POST /v1/explain. Raises NotJson and BadRequest as decode() does."""
    try:
        return _EXPLAIN_REQUEST.decode(body)
    except msgspec.ValidationError as error:
        _check_json(body)
        raise _explain(error, body, ExplainRequest) from None
    except UNREADABLE as error:
        raise _unreadable(error, body) from None


def _check_json(body: bytes) -> None:
    try:
        body.decode()  # msgspec does not look at the bytes of a Raw string
        _ANY_JSON.decode(body)
    except UNREADABLE as error:
        raise _unreadable(error, body) from None


def _unreadable(error: Exception, body: bytes) -> Problem:
    """Of UNREADABLE: nesting without end is a bad request, all else no JSON."""
    if isinstance(error, UnicodeDecodeError | msgspec.DecodeError):
        return _not_json(error, body)
    return _too_deep()


def _not_json(error: UnicodeDecodeError | msgspec.DecodeError, body: bytes) -> NotJson:
    if isinstance(error, UnicodeDecodeError):
        return NotJson(f"The body is not UTF-8: {error.reason}. Send UTF-8")
    hint = "JSON has no NaN, infinity or lone surrogate" if body else "Send a JSON object"
    return NotJson(f"{error}. {hint}")


def _too_deep() -> BadRequest:
    return BadRequest("is nested too deep: a value is a string, a number, a boolean or null", "$")


def _check_number(candidates: int, most: int) -> None:
    if candidates > most:
        raise BadRequest(
            f"{candidates} candidates, this server takes {most}: split the request, or raise CTR_MAX_CANDIDATES",
            "$.candidates",
        )


def _without_bad_features(
    problem: BadRequest, body: bytes, max_candidates: int
) -> tuple[ScoreRequest, dict[int, BadFeature]]:
    """Decodes once more, taking features as they are; raises the problem where that is not what was wrong."""
    try:
        loose = _LOOSE.decode(body)
    except UNREADABLE:
        raise problem from None
    if loose.on_bad_candidate != "skip" or not loose.candidates:
        raise problem
    # Before each of them is looked at: there may be a hundred thousand.
    _check_number(len(loose.candidates), max_candidates)
    bad: dict[int, BadFeature] = {}
    candidates = [Candidate(c.id, _features(c.features, index, bad)) for index, c in enumerate(loose.candidates)]
    return ScoreRequest(loose.context, candidates, loose.timeout_ms, "skip", loose.top_k, loose.cascade), bad


def _features(raw: Raw, index: int, bad: dict[int, BadFeature]) -> dict[str, Any]:
    path = f"$.candidates[{index}].features"
    try:
        return _FEATURES.decode(raw)
    except msgspec.ValidationError as error:
        what, at = _place(error)
        problem = _unreadable_value(what, path, raw) if at else _bad(what, path, ScoreRequest)
        bad[index] = BadFeature(problem.path or path, problem.detail)
    except RecursionError:
        bad[index] = BadFeature(path, f"is nested too deep: {_FEATURES_HINT}")
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise _not_json(error, raw) from None
    return {}


def _explain(error: msgspec.ValidationError, body: bytes, form: type[msgspec.Struct]) -> BadRequest:
    """Msgspec's words -> the path, and what to send there."""
    what, at = _place(error)
    if "[...]" not in at:
        return _bad(what, f"${at}", form)
    path = f"${at[: at.index('[...]')]}"
    return _unreadable_value(what, path, _raw_features(path, body))


def _place(error: msgspec.ValidationError) -> tuple[str, str]:
    """Msgspec's words, and its path without the `$`."""
    what = str(error)
    # Quotes a name of the client's, which may look like a path; only the request itself forbids names.
    if _UNKNOWN.fullmatch(what):
        return what, ""
    what, found, at = what.rpartition(" - at `$")
    return (what, at.removesuffix("`")) if found else (at, "")


def _bad(what: str, path: str, form: type[msgspec.Struct]) -> BadRequest:
    if unknown := _UNKNOWN.fullmatch(what):
        name = shorten(unknown[1])
        allowed = ", ".join(form.__struct_fields__)
        reason = "is reserved for a later version" if name in RESERVED else "is not a part of a request"
        return BadRequest(f"{name!r} {reason}: leave it out; a request has {allowed}", f"{path}.{name}")
    if required := _REQUIRED.fullmatch(what):
        path = f"{path}.{required[1]}"
        return BadRequest(f"{required[1]!r} is missing: {_hint(path)}", path)
    what = shorten(what.replace("`", "").replace("array", "list"), _LONGEST_WORDS)
    return BadRequest(f"{what}: {_hint(path)}", path)


def _hint(path: str) -> str:
    return _HINTS.get(re.sub(r"\[\d+\]", "[]", path), _VALUE_HINT)


def _raw_features(path: str, body: bytes) -> Raw | None:
    """Msgspec does not say which key of an object was bad: the object, to look for it.

    None when the body does not give it away, because it has names twice, say: the last one counts.
    """
    try:
        raw = _RAW_REQUEST.decode(body)
        index = re.search(r"\[(\d+)\]", path)
        return raw.candidates[int(index[1])].features if index else raw.context
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        return None


def _unreadable_value(what: str, path: str, features: Raw | None) -> BadRequest:
    name = _unreadable_name(features) if features is not None else None
    return BadRequest(f"{what}: {_VALUE_HINT}", path if name is None else f"{path}.{shorten(name)}")


def _unreadable_name(features: Raw) -> str | None:
    try:
        values = _RAW_VALUES.decode(features)
    except UNREADABLE:
        return None
    for name, value in values.items():
        try:
            msgspec.json.decode(value)
        except UNREADABLE:
            return name
    return None
