"""The types of requests and responses, which the service decodes and encodes. They define the OpenAPI document."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from contract.bundle import CascadeRule
from service.settings import MAX_TIMEOUT_MS

SCORE_PATH = "/v1/score"
RESERVED_FIELDS = ("debug",)
MAX_PAIRS = 10_000
DEFAULT_PAIRS = 20

CandidateId = Annotated[str | int, Meta(description="Returned with the score. It need not be unique.")]
Unit = Annotated[
    str | int,
    Meta(
        description="The user or household that the request belongs to. All requests of a unit are in the request log "
        'or none. The model does not read it. 17 and "17" are the same unit.'
    ),
]
Features = Annotated[
    dict[str, Any], Meta(description="Values by field name. A value is a string, a number, a boolean or null.")
]
TimeoutMs = Annotated[
    int, Meta(ge=1, le=MAX_TIMEOUT_MS, description="Deadline for the response, in ms after the request arrives.")
]
OnBadCandidate = Literal["refuse", "skip"]
TopK = Annotated[
    int,
    Meta(
        ge=1,
        description="Return only the k best candidates, in descending order of `ctr`. The order of candidates with "
        "equal `ctr` depends on the request's id.",
    ),
]
Cascade = Annotated[
    bool,
    Meta(
        description="Requires `top_k`. A smaller model rules out candidates that are unlikely to be among the k best. "
        "GET /v1/model reports how much work this saves and how many of the k best it finds."
    ),
]
RequestId = Annotated[str, Meta(description="The request's X-Request-Id, or a new id.")]
Degraded = Annotated[
    list[str],
    Meta(
        description='What was unavailable. "redis": the bundle was used instead of Redis, and the scores are the same. '
        '"vocabulary": tokens that are not in the cache were scored as unknown.'
    ),
]


class Candidate(msgspec.Struct):
    id: CandidateId
    features: Features


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: Features
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    unit: Unit | None = None
    timeout_ms: TimeoutMs | None = None
    on_bad_candidate: Annotated[
        OnBadCandidate,
        Meta(description='If a candidate has an invalid value, "refuse" the request or "skip" the candidate.'),
    ] = "refuse"
    top_k: TopK | None = None
    cascade: Cascade = False


class Score(msgspec.Struct):
    id: Annotated[str | int | None, Meta(description="Null for a candidate that was skipped due to an invalid id.")]
    candidate: Annotated[
        int,
        Meta(ge=0, description="The candidate's position in the request. With `score_id`, it identifies the score."),
    ]
    ctr: Annotated[float | None, Meta(description="Click probability. Null for a candidate that was skipped.")]
    error: Annotated[str | UnsetType, Meta(description="Why the candidate was skipped: a JSON path and a message.")] = (
        UNSET
    )


class ScoreResponse(msgspec.Struct):
    """Scores in the order of the candidates or, with `top_k`, the best ones in descending order."""

    request_id: RequestId
    score_id: Annotated[
        str, Meta(description="The id of this response, a UUIDv7. Send it with the events that the response leads to.")
    ]
    model: str
    version: str
    scores: list[Score]
    degraded: Degraded
    scored_in_full: Annotated[
        int | UnsetType, Meta(description="Only with `cascade`. Number of candidates that the whole model scored.")
    ] = UNSET


class ModelField(msgspec.Struct):
    name: str
    side: str
    kind: str
    source: Annotated[
        str | UnsetType,
        Meta(description="The name in requests that the field is read from, if it differs from `name`."),
    ] = msgspec.field(name="from", default=UNSET)
    transform: Annotated[
        str | UnsetType, Meta(description="The transform that the server applies to the raw value, such as `hour`.")
    ] = UNSET
    pseudonym: Annotated[
        str | UnsetType,
        Meta(description='"hmac" if the server replaces each value with a keyed hash before it uses the value.'),
    ] = UNSET


class ModelResponse(msgspec.Struct):
    name: str
    type: Annotated[str, Meta(description='"stec" or the type of another model.')]
    version: str
    created: str
    metrics: Annotated[
        dict[str, float],
        Meta(
            description="Measured by ctr-train on the validation and test sets. `base_logloss` is the logloss of a "
            "constant prediction of the click rate, and `normalized_entropy` is `logloss` divided by it."
        ),
    ]
    warnings: Annotated[tuple[str, ...], Meta(description="Why the model may not be worth serving.")]
    fields: list[ModelField]
    attention: Annotated[str, Meta(description="In a STEC model, which fields attend to each other.")]
    graph: Annotated[
        str, Meta(description="The bundle's graph file that is in use. kernel.onnx is the fastest on a CPU.")
    ]
    device: Annotated[str, Meta(description='"cpu" or "cuda".')]
    cascade: tuple[CascadeRule, ...]
    kernel_lanes: Annotated[
        int | UnsetType,
        Meta(
            description="With kernel.onnx, the largest number of candidates that one instruction computes: 16 with "
            "AVX-512, otherwise 8. The probabilities do not depend on it."
        ),
    ] = UNSET
    current_refused: Annotated[
        str | UnsetType,
        Meta(description="The store's current version, if the server refused it and serves this version instead."),
    ] = UNSET


class ExplainRequest(msgspec.Struct, forbid_unknown_fields=True):
    context: Features
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    pairs: Annotated[
        int, Meta(ge=0, le=MAX_PAIRS, description="How many pairs of fields to return, largest contributions first.")
    ] = DEFAULT_PAIRS
    attention: Annotated[
        bool, Meta(description="Return the attention matrices: [block][head][field][field it attends to].")
    ] = False
    timeout_ms: TimeoutMs | None = None


class Pair(msgspec.Struct):
    """What two fields contribute to the logit."""

    fields: tuple[str, str]
    contribution: Annotated[float, Meta(description="Sum over both orders of the fields and over all levels.")]
    levels: Annotated[list[float], Meta(description="The contribution of each level.")]


class Explanation(msgspec.Struct):
    """The parts of a candidate's logit: `logit` is `bias` + the contributions of all `pairs` + `others`.

    At level 0, a pair's contribution depends only on its two fields. At level 1 and above, attention has mixed other
    fields into both.

    For models other than STEC, each pair consists of one field twice. Its contribution is the field's share of the
    logit, and `bias` is the logit of a request in which every field is missing.
    """

    id: str | int
    ctr: Annotated[float, Meta(description="Click probability: 1 / (1 + exp(-`calibrated_logit`)).")]
    logit: Annotated[float, Meta(description="The model's logit, before calibration.")]
    calibrated_logit: Annotated[
        float,
        Meta(
            description="The logit after calibration, which is an increasing function of `logit`. The function may "
            "depend on the context."
        ),
    ]
    bias: Annotated[float, Meta(description="The logit of the average row of the training data.")]
    levels: Annotated[list[float], Meta(description="The sum of all contributions at each level.")]
    pairs: list[Pair]
    others: Annotated[float, Meta(description="The sum of the contributions of pairs that are not in `pairs`.")]
    attention: list[list[list[list[float]]]] | UnsetType = UNSET


class ExplainResponse(msgspec.Struct):
    request_id: RequestId
    model: str
    version: str
    fields: Annotated[list[str], Meta(description="The fields in the order of the attention matrices.")]
    explanations: list[Explanation]
    degraded: Degraded
