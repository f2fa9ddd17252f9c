"""The latency report's own arithmetic: cores for the paper's production, and a bar that can be missed."""

import numpy as np
import pytest

from loadtest.openloop.load import Load, Outcome
from loadtest.openloop.records import RECORD
from loadtest.scenarios.latency import Measured, Most, Results, _bars, _cores


def measured(latency_ms: float, late: int = 0, wrong: int = 0) -> Measured:
    """1,000 requests; `late` of them took a second."""
    records = np.zeros(1000, RECORD)
    records["intended_s"] = records["sent_s"] = np.arange(1000) / 100
    records["ended_s"] = records["sent_s"] + latency_ms / 1e3
    records["ended_s"][:late] += 1.0
    records["status"] = 200
    records["checked"] = True
    records["wrong"][:wrong] = True
    return Measured(100, 0.5, Outcome(Load("http://nowhere", 100, 10), records, 0.0, 0.1, 1, []), None, 0.002, 0.0)


def test_the_papers_production_is_worked_out_from_what_a_request_costs() -> None:
    line = _cores(Most(per_s=1000, cpu_s=0.002, refused=0.0))
    assert "= 4,630/s" in line
    assert "= 13,889 requests/s" in line
    assert "27.8 cores busy" in line
    assert "**56 cores**" in line


@pytest.mark.parametrize(("late", "kept"), [(0, True), (9, True), (20, False)])
def test_the_promise_is_about_one_request_in_a_hundred(late: int, kept: bool) -> None:
    bars = _bars(Results({}, [measured(5.0, late)], {}, [], []))
    assert bars[0].kept is kept


def test_a_wrong_score_anywhere_is_a_missed_bar() -> None:
    assert [bar.kept for bar in _bars(Results({}, [measured(5.0)], {}, [measured(5.0, wrong=1)], []))] == [
        True,
        True,
        False,
    ]


def test_what_is_not_answered_is_not_hidden_by_the_latency_of_the_rest() -> None:
    refusing = measured(5.0)
    refusing.outcome.records["status"][:2] = 429
    assert [bar.kept for bar in _bars(Results({}, [refusing], {}, [], []))] == [True, False, True]
    assert "2 (429 x2)" in refusing.row()
