"""Statistics computed from records."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.openloop import records as read
from tests.support.examples import examples
from tests.support.records import record, records


def test_merged_records_are_ordered_by_intended_time() -> None:
    merged = read.merge([records(record(3), record(1)), records(record(2))])
    assert merged["intended_s"].tolist() == [1, 2, 3]
    assert len(read.merge([])) == 0


def test_between_selects_by_intended_time() -> None:
    found = read.between(records(record(1), record(2, late_s=5), record(3)), 2, 3)
    assert found["intended_s"].tolist() == [2]


def test_lateness_counts_in_latency_from_the_intended_time_only() -> None:
    late = records(record(late_s=0.03, took_s=0.04))
    assert read.from_sent_ms(late)[0] == pytest.approx(40)
    assert read.from_intended_ms(late)[0] == pytest.approx(70)
    assert read.lateness_ms(late)[0] == pytest.approx(30)
    assert read.in_time(late, read.from_sent_ms(late)).all()
    assert not read.in_time(late, read.from_intended_ms(late)).any()
    assert read.in_time(late, read.from_intended_ms(late), spare_ms=20.1).all()


def test_a_refusal_in_time_does_not_count_as_goodput() -> None:
    both = records(record(status=429), record(), record(took_s=0.06), record(status=0))
    assert read.in_time(both, read.from_sent_ms(both)).tolist() == [True, True, False, False]
    assert read.good(both) == 1
    assert read.unanswered(both) == 1


def test_without_values_quantiles_are_nan() -> None:
    assert np.isnan(read.quantiles_ms(np.zeros(0), (50, 99))).all()


@settings(max_examples=examples(20))
@given(st.lists(st.floats(0.01, 50_000), min_size=1, max_size=200), st.sampled_from([50, 90, 99, 100]))
def test_quantiles_are_exact_to_three_digits_and_one_request(values_ms: list[float], percent: float) -> None:
    found = read.quantiles_ms(np.array(values_ms), (percent,))[0]
    rank = int(percent / 100 * len(values_ms))
    near = sorted(values_ms)[max(0, rank - 1) : rank + 1]
    assert any(found == pytest.approx(value, rel=2e-3, abs=2e-3) for value in near)
