"""Building the response of POST /v1/score."""

import math

import pytest
from msgspec import UNSET

from contract.bundle import Calibration, Manifest
from contract.reader import BadFeature
from service.api.schemas import Candidate, Score, ScoreRequest
from service.scoring.response import build_response, rows_to_return

MANIFEST = Manifest(
    format_version=2,
    name="small",
    version="v1",
    created="",
    schema_fingerprint="",
    fields=1,
    parameters=1,
    metrics={},
    calibration=Calibration(),
    files={},
)
ERROR = BadFeature("$.candidates[1].features.ad", "too long")
CTR = {0: 0.2, 2: math.nan, 3: 0.4, 4: 0.2}  # Candidate 1 was skipped, and a cascade ruled out candidate 2.


@pytest.mark.parametrize(
    ("top_k", "rows"), [(1, [3]), (2, [3, 0]), (3, [3, 0, 4]), (4, [3, 0, 4, 1]), (9, [3, 0, 4, 1])]
)
def test_top_k_orders_by_ctr_then_position_and_puts_skipped_candidates_last(top_k: int, rows: list[int]) -> None:
    assert rows_to_return(5, CTR, top_k) == rows


def test_without_top_k_all_candidates_keep_their_order() -> None:
    assert list(rows_to_return(3, {0: 0.1, 2: 0.9}, None)) == [0, 1, 2]


def test_a_response_has_a_score_or_an_error_for_each_candidate() -> None:
    request = ScoreRequest({}, [Candidate("a", {}), Candidate(7, {})])
    response = build_response("r", MANIFEST, request, {0: 0.2}, {1: ERROR}, ["redis"])
    assert response.scores == [Score("a", 0.2), Score(7, None, "$.candidates[1].features.ad: too long")]
    assert (response.request_id, response.model, response.version) == ("r", "small", "v1")
    assert response.degraded == ["redis"]
    assert response.scored_in_full is UNSET


def test_a_cascade_reports_how_many_candidates_were_scored_in_full() -> None:
    request = ScoreRequest({}, [Candidate(i, {}) for i in range(5)], top_k=2, cascade=True)
    response = build_response("r", MANIFEST, request, CTR, {1: ERROR}, [])
    assert response.scored_in_full == 3
    assert [score.id for score in response.scores] == [3, 0]
