"""Columns of timestamps are read exactly like the values of a request, whether polars or Python parses them."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.timestamps import timestamp
from model.data.timestamps import future_warning, unix_seconds
from tests.support.examples import examples
from tests.support.timestamps import all_notations

# Parts of timestamps, so that many of the strings are almost valid.
DIGITS = st.sampled_from(
    ["0000", "0001", "1969", "1970", "2026", "9999", "02", "12", "13", "24", "28", "29", "31", "59", "60"]
)
PIECES = st.lists(DIGITS | st.sampled_from(["-", ":", "T", " ", "Z", ".5", "+03:00", "٣", "e5", ""]), max_size=14)
ALMOST = st.builds(
    "{}-{}-{}{}{}:{}:{}{}".format,
    *[DIGITS] * 3,
    st.sampled_from("T tx"),
    *[DIGITS] * 3,
    st.sampled_from(["", "Z", ".5"]),
)
NUMBERS = (
    st.integers(-(2**63), 2**63 - 1) | st.integers(10**7, 10**15) | st.sampled_from([10**8, 10**11, 253402300800000])
)


def expected(values: list[object]) -> list[int | None]:
    """Return the Unix seconds that the contract's code returns, or None for a missing or unreadable value."""
    seconds: list[int | None] = []
    for value in values:
        try:
            seconds.append(timestamp(value))
        except ValueError:
            seconds.append(None)
    return seconds


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.none() | st.text(max_size=30) | PIECES.map("".join) | ALMOST | NUMBERS.map(str), max_size=8))
def test_text_is_read_like_the_text_of_a_request(values: list[str | None]) -> None:
    assert unix_seconds(pl.Series(values, dtype=pl.String)).to_list() == expected(list(values))


@given(all_notations())
def test_every_notation_is_read(drawn: tuple[int, list[object]]) -> None:
    seconds, values = drawn
    assert unix_seconds(pl.Series([value for value in values if isinstance(value, str)])).unique().to_list() == [
        seconds
    ]


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.none() | NUMBERS, max_size=8), st.lists(st.none() | st.floats() | NUMBERS.map(float), max_size=8))
def test_numbers_are_read_like_the_numbers_of_a_request(integers: list[int | None], floats: list[float | None]) -> None:
    assert unix_seconds(pl.Series(integers, dtype=pl.Int64)).to_list() == expected(list(integers))
    assert unix_seconds(pl.Series(floats, dtype=pl.Float64)).to_list() == expected(list(floats))


@given(st.lists(st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), max_size=8))
def test_timestamp_columns_are_utc_unless_they_have_a_zone(moments: list[datetime | None]) -> None:
    column = pl.Series(moments, dtype=pl.Datetime("us"))
    seconds = [
        None if moment is None else int(moment.replace(microsecond=0, tzinfo=UTC).timestamp()) for moment in moments
    ]
    assert unix_seconds(column).to_list() == seconds
    there = column.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Kolkata")
    assert unix_seconds(there).to_list() == seconds


def test_a_date_is_its_midnight_in_utc() -> None:
    assert unix_seconds(pl.Series([date(1970, 1, 2), None])).to_list() == [86_400, None]


@pytest.mark.parametrize("dtype", [pl.Float32(), pl.Boolean(), pl.List(pl.Int64)])
def test_a_column_of_another_type_is_refused(dtype: pl.DataType) -> None:
    values = [[1]] if isinstance(dtype, pl.List) else [1]
    with pytest.raises(ValueError, match=r"has the type .*; expected text, timestamps, integers or 64-bit floats"):
        unix_seconds(pl.Series(values, dtype=dtype, strict=False))


NOW_S = datetime(2026, 3, 1, tzinfo=UTC).timestamp()


def test_a_column_of_dates_with_hours_is_named_with_the_way_out() -> None:
    warning = future_warning("hour", 2026013100, 2026013121, NOW_S)
    assert warning is not None
    assert "the newest time is 2034-03-15" in warning
    assert "look like YYYYMMDDHH" in warning
    assert "Write 2026013121 as 2026-01-31T21:00 in the file" in warning
    assert 'pd.to_datetime(log["hour"].astype(str), format="%Y%m%d%H")' in warning


@pytest.mark.parametrize("last", [2026013124, 2026013221, 1990010099, 4102444799])
def test_another_time_in_the_future_is_named_too(last: int) -> None:
    warning = future_warning("hour", int(NOW_S), last, NOW_S)
    assert warning is not None
    assert "Check the clock and the unit" in warning
    assert "YYYYMMDDHH" not in warning


def test_a_log_that_ends_today_is_not_in_the_future() -> None:
    assert future_warning("time", 2026013100, int(NOW_S), NOW_S) is None
    assert future_warning("time", 0, int(NOW_S) + 86_400, NOW_S) is None
