"""The latency report: the cores for the paper's production load, and targets that fail."""

import numpy as np
import pytest

from loadtest.openloop.load import Load, Outcome
from loadtest.openloop.records import RECORD
from loadtest.scenarios.latency import Capacity, Measured, Results, cores_needed, targets_of


def measured(latency_ms: float, late: int = 0, wrong: int = 0) -> Measured:
    """Return results of 1,000 requests, of which `late` took a second longer."""
    records = np.zeros(1000, RECORD)
    records["intended_s"] = records["sent_s"] = np.arange(1000) / 100
    records["ended_s"] = records["sent_s"] + latency_ms / 1e3
    records["ended_s"][:late] += 1.0
    records["status"] = 200
    records["checked"] = True
    records["wrong"][:wrong] = True
    return Measured(100, 0.5, Outcome(Load("http://nowhere", 100, 10), records, 0.0, 0.1, 1, []), None, 0.002, 0.0)


def test_the_cores_for_the_papers_production_follow_from_the_cost_of_a_request() -> None:
    line = cores_needed(Capacity(per_s=1000, cpu_s=0.002, refused=0.0))
    assert "= 4,630/s" in line
    assert "= 13,889 requests/s" in line
    assert "27.8 cores busy" in line
    assert "**56 cores**" in line


@pytest.mark.parametrize(("late", "passed"), [(0, True), (9, True), (20, False)])
def test_the_p99_target_fails_when_more_than_one_request_in_a_hundred_is_late(late: int, passed: bool) -> None:
    targets = targets_of(Results({}, [measured(5.0, late)], {}, [], []))
    assert targets[0].passed is passed


def test_a_wrong_score_in_any_load_fails_its_target() -> None:
    targets = targets_of(Results({}, [measured(5.0)], {}, [measured(5.0, wrong=1)], []))
    assert [target.passed for target in targets] == [True, True, False]


def test_requests_without_an_answer_fail_their_own_target() -> None:
    refusing = measured(5.0)
    refusing.outcome.records["status"][:2] = 429
    assert [target.passed for target in targets_of(Results({}, [refusing], {}, [], []))] == [True, False, True]
    assert "2 (429 x2)" in refusing.row()
