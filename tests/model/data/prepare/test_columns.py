"""The mean, deviation and range of a column are robust, and NaN can be declared missing."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.schema import Field
from contract.tokens import signed_log1p
from model.data.prepare.columns import measure, number_column, seen_range, text_column

BID = Field("bid", "candidate", "numeric")


def test_one_extreme_number_does_not_change_mean_deviation_and_range() -> None:
    numbers = np.random.default_rng(0).normal(10, 2, 20_000)
    plain = measure(BID, numbers, 0.001)
    spoiled = measure(BID, np.append(numbers, [9223372036854775807.0, -999999.0, math.nan]), 0.001)
    assert spoiled.mean == pytest.approx(plain.mean, abs=1e-3) == pytest.approx(10, abs=0.1)
    assert spoiled.std == pytest.approx(plain.std, rel=1e-3) == pytest.approx(2, rel=0.05)
    assert isinstance(spoiled.seen, tuple)
    assert 2 < spoiled.seen[0] < 5
    assert 15 < spoiled.seen[1] < 18


def test_without_clipping_the_whole_range_counts() -> None:
    measured = measure(BID, np.array([1.0, 2.0, 3.0, 1e6]), 0.0)
    assert measured.seen == (1.0, 1e6)
    assert measured.mean == 250_001.5


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60), st.floats(0, 0.49))
def test_the_range_consists_of_two_numbers_of_the_column_and_is_wide_if_the_column_is(
    values: list[float], share: float
) -> None:
    numbers = np.array(values)
    low, high = seen_range(numbers, share)
    assert {low, high} <= set(values)
    assert (low < high) == (min(values) < max(values))
    inside = np.mean((numbers >= low) & (numbers <= high))
    assert inside >= 1 - 2 * share - 2 / len(values) - 1e-9
    if share == 0:
        assert (low, high) == (min(values), max(values))


@pytest.mark.parametrize("extreme", [9223372036854775807.0, -999999.0])
def test_one_extreme_number_has_no_effect_in_a_small_log(extreme: float) -> None:
    numbers = np.append(np.arange(1, 300) / 10, extreme)
    measured = measure(BID, numbers, 0.001)
    assert measured.mean == pytest.approx(15, abs=0.2)
    assert measured.std == pytest.approx(8.6, abs=0.2)


def test_a_rare_flag_keeps_its_range() -> None:
    flag = np.zeros(100_000)
    flag[:20] = 1.0
    assert measure(BID, flag, 0.001).seen == (0.0, 1.0)


def test_mean_and_deviation_follow_the_transform_and_the_range_does_not() -> None:
    numbers = np.exp(np.random.default_rng(0).normal(3, 1, 10_000)) - 1
    measured = measure(Field("bid", "candidate", "numeric", transform="log1p"), numbers, 0.0)
    assert measured.mean == pytest.approx(signed_log1p(numbers).mean())
    assert measured.std == pytest.approx(signed_log1p(numbers).std())
    assert measured.seen == (numbers.min(), numbers.max())


@pytest.mark.parametrize("marker", ["nan", "NaN", " nan "])
def test_nan_in_parquet_can_be_declared_missing(marker: str) -> None:
    bid = Field("bid", "candidate", "numeric", missing=(marker,))
    assert np.isnan(number_column(pl.Series([1.0, math.nan, None]), bid)).tolist() == [False, True, True]
    assert text_column(pl.Series([1.0, math.nan, None]), [math.nan]).to_list() == ["1", None, None]
    assert np.isnan(number_column(pl.Series(["1", "NaN", "nan", ""]), bid)).tolist() == [False, True, True, True]


def test_infinity_can_be_declared_missing() -> None:
    bid = Field("bid", "candidate", "numeric", missing=("-inf",))
    assert np.isnan(number_column(pl.Series([1.0, -math.inf]), bid)).tolist() == [False, True]
    with pytest.raises(ValueError, match="holds inf; expected a finite number"):
        number_column(pl.Series([1.0, math.inf]), bid)
