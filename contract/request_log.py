"""The lines of the request log. The service writes them, and replays and joins read them.

A log is a folder of NDJSON files with one request per line.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

FORMAT = 2
SCORED = "scored"


class LoggedCandidate(msgspec.Struct):
    """A candidate that was logged.

    Attributes:
        candidate: Its position in the request. Together with the score id, it identifies an impression.
        id: The client's id. None for a candidate that was skipped because its id is invalid.
        features: The candidate's values.
        ctr: Its probability. None if the candidate was skipped, or ruled out by a cascade.
        logit: The model's logit before calibration. None if ctr is None, and in format 1.
        inclusion: The probability with which the candidate was logged, given that its request was logged.
    """

    candidate: int
    id: str | int | None
    features: dict[str, Any]
    ctr: float | None = None
    logit: float | None = None
    inclusion: float = 1.0


class LogLine(msgspec.Struct, kw_only=True):
    """A request that was sampled for the log.

    Attributes:
        format: The version of this format.
        time: When the request was answered, in UTC (ISO 8601, milliseconds).
        score_id: The id of the answer (contract/score_ids.py). Empty in format 1.
        request_id: The request's id. Clients choose it, so it may repeat.
        outcome: "scored", or why the request was not scored, such as "deadline_exceeded" (the outcomes of the metric
            ctr_request_seconds). A request that was not scored has no context and no candidates here.
        model: The model's name.
        version: The bundle's version.
        unit: The request's unit, or None. It is a pseudonym if the server has a key for pseudonyms.
        context: The values of the request.
        candidates: The logged candidates, in the order of the request.
        candidate_count: The number of candidates in the request, including those that were not logged.
        degraded: What was unavailable, as in the response.
        hashed: Names of the fields whose values are hashed.
    """

    format: int = FORMAT
    time: str
    score_id: str
    request_id: str
    outcome: str = SCORED
    model: str
    version: str
    unit: str | None = None
    context: dict[str, Any] | UnsetType = UNSET
    candidates: list[LoggedCandidate] | UnsetType = UNSET
    candidate_count: int = 0
    degraded: list[str] | UnsetType = UNSET
    hashed: list[str] | UnsetType = UNSET
