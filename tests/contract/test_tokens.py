"""Tokens: a value has the same canonical string in training and in serving."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.schema import Field
from contract.tokens import (
    MAX_NORMALIZED,
    Numbers,
    log_square,
    number,
    number_in_bucket,
    number_reader,
    token,
    tokenizer,
)


@given(st.text())
def test_string_is_stripped(value: str) -> None:
    assert token(value) == (value.strip() or None)
    assert token(f" {value}\t\n") == token(value)


@given(st.integers(-(2**53), 2**53))
def test_integer_and_equal_float_have_the_same_token(value: int) -> None:
    assert token(value) == token(float(value)) == str(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float_keeps_every_digit(value: float) -> None:
    text = token(value)
    assert text is not None
    assert float(text) == value


def test_negative_zero_is_zero() -> None:
    assert token(-0.0) == token(0.0) == token(0) == "0"


@pytest.mark.parametrize("value", ["68928e17", "03349703", "1.0", "1e5", "nan", "inf", "true", "0x1f"])
def test_string_that_looks_like_a_number_is_unchanged(value: str) -> None:
    assert token(value) == value


def test_booleans_become_strings() -> None:
    assert (token(True), token(False)) == ("true", "false")


@pytest.mark.parametrize("value", [None, "", "  ", "\t\n"])
def test_null_and_blank_strings_are_missing(value: str | None) -> None:
    assert token(value) is None


def test_huge_integer_keeps_every_digit() -> None:
    assert token(2**200 + 1) == str(2**200 + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_are_refused_with_a_fix(value: float) -> None:
    with pytest.raises(ValueError, match="send null for a missing value"):
        token(value)
    with pytest.raises(ValueError, match="send null for a missing value"):
        number(value)


@pytest.mark.parametrize(("value", "kind"), [({}, "an object"), ([1], "a list"), ((1,), "a list"), (b"x", "a bytes")])
def test_value_of_another_type_is_refused_and_the_type_is_named(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=f"got {kind}"):
        token(value)
    with pytest.raises(ValueError, match=f"must be a number or null, got {kind}"):
        number(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))
def test_number_becomes_a_float(value: float) -> None:
    assert number(value) == float(value)


def test_missing_number_is_nan() -> None:
    assert math.isnan(number(None))


@pytest.mark.parametrize(("value", "message"), [(True, "a boolean"), ("5", "a string"), (10**400, "finite number")])
def test_value_that_is_not_a_number_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        number(value)


def test_numbers_are_normalized_by_column() -> None:
    fields = [Field("a", "context", "numeric", 3.0, 2.0), Field("b", "context", "numeric", 20.0, 5.0)]
    scaled = Numbers(fields).normalize(np.array([[1.0, 10.0], [math.nan, 30.0]]))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [[-1.0, -2.0], [0.0, 2.0]]


def test_a_missing_number_stays_nan_if_its_field_has_a_missing_vector() -> None:
    fields = [
        Field("a", "context", "numeric", 3.0, 2.0, seen=(1.0, 5.0), missing_vector=True),
        Field("b", "context", "numeric", 20.0, 5.0),
    ]
    scaled = Numbers(fields).normalize(np.array([[math.nan, math.nan], [1.0, 30.0], [-1e300, 1e300]]))
    np.testing.assert_array_equal(scaled, np.array([[math.nan, 0.0], [-1.0, 2.0], [-1.0, MAX_NORMALIZED]], np.float32))
    assert not Numbers(fields).outside(np.array([[math.nan, math.nan]])).any()


def test_outlier_is_clipped() -> None:
    scaled = Numbers([Field("a", "context", "numeric")]).normalize(np.array([[1e300], [-1e300]]))
    assert scaled.tolist() == [[MAX_NORMALIZED], [-MAX_NORMALIZED]]


def test_number_outside_the_training_range_is_clipped_to_it() -> None:
    bids = Numbers([Field("bid", "candidate", "numeric", mean=2.0, std=0.5, seen=(1.0, 4.0))])
    values = np.array([[1.0], [4.0], [0.999], [1.2e6], [math.nan]])
    assert bids.outside(values)[:, 0].tolist() == [False, False, True, True, False]
    assert bids.normalize(values)[:, 0].tolist() == [-2.0, 4.0, -2.0, 4.0, 0.0]


def test_without_numeric_fields_there_are_no_columns() -> None:
    assert Numbers([]).normalize(np.empty((3, 0))).shape == (3, 0)


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0, "SP0"), (-3, "SP-3"), (1.9, "SP1"), (2, "SP2"), (2.5, "0"), (3, "1"), (100, "21"), (None, None)],
)
def test_number_falls_into_the_bucket_of_its_squared_logarithm(value: float | None, bucket: str | None) -> None:
    assert log_square(value) == bucket


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_in_bucket_returns_a_number_of_that_bucket(value: float) -> None:
    bucket = log_square(value)
    assert bucket is not None
    assert log_square(number_in_bucket(bucket)) == bucket


@pytest.mark.parametrize("value", ["3", True, [], float("nan")])
def test_bucket_accepts_only_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="must be a"):
        log_square(value)


def test_field_defines_its_missing_values() -> None:
    read = tokenizer(Field("pos", "context", missing=("-1", "n/a")))
    assert [read(value) for value in (-1, -1.0, "-1", " n/a ", None, 1)] == [None, None, None, None, None, "1"]
    bucket = tokenizer(Field("count", "context", missing=("-1",), transform="log_square"))
    assert [bucket(value) for value in (-1, -2, 3)] == [None, "SP-2", "1"]
    for written in ("-1.0", "-1e0", " -1 "):
        bucket = tokenizer(Field("count", "context", missing=(written, "nan"), transform="log_square"))
        assert [bucket(value) for value in (-1, -1.0, None, -2, 3)] == [None, None, None, "SP-2", "1"]
    reader = number_reader(Field("bid", "context", "numeric", missing=("-1", "n/a")))
    assert np.isnan([reader(-1), reader(-1.0), reader(None), reader(1)]).tolist() == [True, True, True, False]


def test_declared_text_is_missing_for_a_number_and_other_text_is_refused() -> None:
    reader = number_reader(Field("bid", "context", "numeric", missing=("-1", " n/a ")))
    assert np.isnan([reader("n/a"), reader(" n/a "), reader("-1")]).all()
    for text in ("5", "none", ""):
        with pytest.raises(ValueError, match="must be a number or null, got a string"):
            reader(text)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_log1p_applies_between_clipping_and_normalizing(values: list[float]) -> None:
    plain = Field("a", "context", "numeric", mean=1.0, std=2.0, seen=(-1e6, 1e9))
    fields = [plain, Field("b", "context", "numeric", mean=1.0, std=2.0, seen=(-1e6, 1e9), transform="log1p")]
    rows = np.repeat(np.array(values)[:, None], 2, axis=1)
    scaled = Numbers(fields).normalize(rows)
    logs = [math.copysign(math.log1p(abs(x)), x) for x in (min(max(value, -1e6), 1e9) for value in values)]
    np.testing.assert_allclose(scaled[:, 1], (np.array(logs) - 1.0) / 2.0, rtol=1e-6, atol=1e-6)
    assert scaled[:, 0].tolist() == Numbers([plain]).normalize(rows[:, :1])[:, 0].tolist()
    assert Numbers(fields).outside(rows)[:, 0].tolist() == Numbers(fields).outside(rows)[:, 1].tolist()


def test_log1p_of_a_missing_number_is_missing() -> None:
    logarithmic = Numbers([Field("b", "context", "numeric", mean=1.0, std=2.0, transform="log1p")])
    assert logarithmic.normalize(np.array([[math.nan], [math.e - 1]])).tolist() == [[0.0], [0.0]]
