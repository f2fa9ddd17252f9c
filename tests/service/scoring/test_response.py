"""Building the response of POST /v1/score."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from contract.bundle import Manifest
from contract.calibration import Calibration
from contract.reader import BadFeature
from service.api.schemas import Candidate, Score, ScoreRequest
from service.scoring.response import build_response, rows_to_return, tie_breaker
from tests.support.examples import examples

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
def test_top_k_orders_by_ctr_and_puts_skipped_candidates_last(top_k: int, rows: list[int]) -> None:
    assert rows_to_return(5, {**CTR, 4: 0.1}, top_k, "r") == rows


def test_each_of_several_equal_candidates_is_the_best_in_its_share_of_requests() -> None:
    ctr = dict.fromkeys(range(1, 5), 0.5) | {0: 0.1, 5: 0.9}
    for top_k, place in ((2, 1), (6, 1)):
        second = Counter(rows_to_return(6, ctr, top_k, f"request {n}")[place] for n in range(4000))
        assert second.keys() == {1, 2, 3, 4}
        assert all(880 < count < 1120 for count in second.values())  # 1,000 ± more than four standard deviations.
    whole = rows_to_return(6, ctr, 6, "r")
    assert (whole[0], whole[-1], sorted(whole)) == (5, 0, list(range(6)))


def test_the_order_of_equal_candidates_is_the_same_for_the_same_request_and_every_k() -> None:
    ctr = dict.fromkeys(range(50), 0.5)
    whole = rows_to_return(50, ctr, 50, "r")
    assert whole != list(range(50))
    assert all(rows_to_return(50, ctr, k, "r") == whole[:k] for k in range(1, 51))


@settings(max_examples=examples(200))
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]), max_size=12), st.integers(1, 14))
def test_only_equal_candidates_down_to_the_kth_are_hashed(values: list[float], top_k: int) -> None:
    ctr = dict(enumerate(values))
    ranked = sorted(
        (row for row in ctr if not math.isnan(ctr[row])), key=lambda row: (-ctr[row], tie_breaker("r", row))
    )
    hashed: list[int] = []

    def count(request_id: str, row: int) -> bytes:
        hashed.append(row)
        return tie_breaker(request_id, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.scoring.response.tie_breaker", count)
        assert rows_to_return(len(values), ctr, top_k, "r") == ranked[:top_k]
    best = [ctr[row] for row in ranked[:top_k]]
    assert sorted(hashed) == sorted(row for row in ranked if ctr[row] in best and values.count(ctr[row]) > 1)


def test_without_top_k_all_candidates_keep_their_order() -> None:
    assert list(rows_to_return(4, {0: 0.1, 2: 0.9, 3: 0.1}, None, "r")) == [0, 1, 2, 3]


def test_a_response_has_a_score_or_an_error_for_each_candidate() -> None:
    request = ScoreRequest({}, [Candidate("a", {}), Candidate(7, {})])
    response = build_response("r", "s", MANIFEST, request, {0: 0.2}, {1: ERROR}, ["redis"])
    assert response.scores == [Score("a", 0, 0.2), Score(7, 1, None, "$.candidates[1].features.ad: too long")]
    assert (response.request_id, response.score_id, response.model, response.version) == ("r", "s", "small", "v1")
    assert response.degraded == ["redis"]
    assert response.scored_in_full is UNSET


def test_a_cascade_reports_how_many_candidates_were_scored_in_full() -> None:
    request = ScoreRequest({}, [Candidate(i, {}) for i in range(5)], top_k=2, cascade=True)
    response = build_response("r", "s", MANIFEST, request, {**CTR, 4: 0.1}, {1: ERROR}, [])
    assert response.scored_in_full == 3
    assert [(score.id, score.candidate) for score in response.scores] == [(3, 3), (0, 0)]
