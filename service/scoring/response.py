"""Build the response of POST /v1/score from the scores of its candidates."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from contract.bundle import Manifest
from contract.reader import BadFeature
from service.api.schemas import Score, ScoreRequest, ScoreResponse


def build_response(
    request_id: str,
    score_id: str,
    manifest: Manifest,
    request: ScoreRequest,
    ctr: Mapping[int, float],
    errors: Mapping[int, BadFeature],
    degraded: list[str],
) -> ScoreResponse:
    """Return the response to a request.

    Args:
        request_id: The request's id.
        score_id: The response's id.
        manifest: The model's manifest.
        request: The request.
        ctr: The probability of each scored candidate, by position. NaN if a cascade ruled the candidate out.
        errors: Why each of the other candidates was skipped, by position.
        degraded: What was unavailable.
    """
    candidates = request.candidates
    scores = [
        Score(candidates[row].id, row, ctr[row])
        if row in ctr
        else Score(candidates[row].id, row, None, f"{errors[row].path}: {errors[row].reason}")
        for row in rows_to_return(len(candidates), ctr, request.top_k, request_id)
    ]
    response = ScoreResponse(request_id, score_id, manifest.name, manifest.version, scores, degraded)
    if request.cascade:
        response.scored_in_full = sum(map(math.isfinite, ctr.values()))
    return response


def rows_to_return(candidates: int, ctr: Mapping[int, float], top_k: int | None, request_id: str) -> Sequence[int]:
    """Return the positions of the candidates to return, in the order of the response.

    These are all candidates or, with `top_k`, the k best ones, with skipped candidates last. Candidates that a cascade
    ruled out are left out. Candidates with equal probabilities, such as new ads with the same features, are in an order
    that differs between requests. Otherwise, the first one in the client's list would always win.
    """
    if top_k is None:
        return range(candidates)
    best = best_rows(ctr, top_k, request_id)
    return [*best, *(row for row in range(candidates) if row not in ctr)][:top_k]


def best_rows(ctr: Mapping[int, float], count: int, request_id: str) -> list[int]:
    """Return the positions of the `count` best candidates in descending order, or of all that have a probability.

    The order of equal candidates is the same for every `count`.
    """
    scored = [row for row, value in ctr.items() if not math.isnan(value)]
    ranked = sorted(scored, key=lambda row: -ctr[row])
    if len({ctr[row] for row in ranked[: count + 1]}) < min(count + 1, len(ranked)):
        ranked = break_ties(ranked, ctr, count, request_id)
    return ranked[:count]


def break_ties(ranked: Sequence[int], ctr: Mapping[int, float], top_k: int, request_id: str) -> list[int]:
    """Return at least the k best rows. Rows with equal probabilities are in the order of their hashes.

    A hash takes longer than all other work per candidate, so only ties among the k best candidates are hashed.
    """
    best: list[int] = []
    for _, group in groupby(ranked, key=ctr.__getitem__):
        equal = list(group)
        best += equal if len(equal) == 1 else sorted(equal, key=lambda row: tie_breaker(request_id, row))
        if len(best) >= top_k:
            break
    return best


def tie_breaker(request_id: str, row: int) -> bytes:
    """Return a sort key for candidates with equal probabilities. It is the same in every worker and version."""
    return hashlib.blake2b(f"{request_id}/{row}".encode(), digest_size=8).digest()
