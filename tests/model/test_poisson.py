"""The interval of a Poisson distribution is that of Garwood (1936)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import poisson  # type: ignore[import-untyped]

from model.poisson import poisson_interval


@given(st.integers(0, 500), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_ends_of_the_interval_are_the_means_for_which_the_count_is_just_plausible(
    count: int, confidence: float
) -> None:
    low, high = poisson_interval(count, confidence)
    tail = (1 - confidence) / 2
    assert poisson.cdf(count, high) == pytest.approx(tail)
    assert low == 0 if count == 0 else poisson.sf(count - 1, low) == pytest.approx(tail)


def test_the_intervals_of_several_counts_are_those_of_the_table() -> None:
    low, high = poisson_interval([0, 1, 10, 100], 0.95)
    assert low == pytest.approx([0, 0.0253, 4.795, 81.36], rel=1e-3)
    assert high == pytest.approx([3.689, 5.572, 18.39, 121.63], rel=1e-3)


def test_a_count_that_is_not_an_integer_lies_between_its_neighbors() -> None:
    bounds = np.array(poisson_interval([2, 2.5, 3], 0.99))
    assert (np.diff(bounds) > 0).all()
