"""Labels: 0 and 1, or the values that `positive` lists as clicks."""

from typing import Any

import polars as pl
import pytest

from model.data.prepare.columns import BadValueError, label_column


@pytest.mark.parametrize(
    "labels",
    [
        pl.Series(["1", " 0", "1.0", "0"]),
        pl.Series(["true", "False", "TRUE", "0"]),
        pl.Series(["1", "0", "1", "0"], dtype=pl.Categorical()),
        pl.Series([True, False, True, False]),
        pl.Series([1, 0, 1, 0], dtype=pl.UInt8),
        pl.Series([1.0, 0.0, 1.0, 0.0]),
    ],
)
def test_zero_and_one_are_labels_in_any_notation(labels: pl.Series) -> None:
    assert label_column(labels).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        (["yes", "no", " YES ", "maybe"], ("yes",), [1, 0, 1, 0]),
        (["buy", "view", "click", "view"], ("click", "buy"), [1, 0, 1, 0]),
        (["1", "0", "1.0", "2"], ("1",), [1, 0, 1, 0]),
        ([1.0, 0.0, 1.0, -1.0], ("1",), [1, 0, 1, 0]),
        ([1, 0, 2, 3], ("1", "2.0"), [1, 0, 1, 0]),
        ([True, False, True, False], ("True",), [1, 0, 1, 0]),
        (["nan", "inf", "nan", "0"], ("NaN",), [1, 0, 1, 0]),
    ],
)
def test_labels_in_positive_are_clicks_and_all_others_are_not(
    values: list[Any], positive: tuple[str, ...], expected: list[int]
) -> None:
    assert label_column(pl.Series(values), positive).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "positive", "message"),
    [
        (pl.Series(["1", "yes"]), (), r'holds "yes"; expected 0 or 1\. Name the labels that are clicks with positive'),
        (pl.Series(["1", None]), (), r"is empty; expected 0 or 1\. Add a label to every row"),
        (pl.Series(["1", ""]), ("1",), r'holds ""; expected a label\. Add a label to every row'),
        (pl.Series([1, None]), ("1",), r"is empty; expected a label"),
        (pl.Series([1.0, float("nan")]), ("1",), r"holds nan; expected a label"),
        (pl.Series([1.0, float("nan")]), (), r"holds nan; expected 0 or 1"),
        (pl.Series([1, 2]), (), r"holds 2; expected 0 or 1"),
    ],
)
def test_a_label_that_is_missing_or_unknown_is_an_error(
    labels: pl.Series, positive: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadValueError, match=message) as error:
        label_column(labels, positive)
    assert error.value.row == 1


@pytest.mark.parametrize(
    ("labels", "marker"),
    [
        (pl.Series([1.0, -1.0, 0.0]), "-1"),
        (pl.Series([1, -1, 0]), "-1.0"),
        (pl.Series(["yes", " Null ", "no"]), "NULL"),
        (pl.Series(["yes", "-1.0", "no"]), "-1"),
        (pl.Series([True, False, True]), "False"),
    ],
)
def test_a_label_in_missing_is_an_error_in_any_notation(labels: pl.Series, marker: str) -> None:
    with pytest.raises(BadValueError, match=r"holds .*, which is in missing; expected a label") as error:
        label_column(labels, ("1", "yes", "true"), (marker,))
    assert error.value.row == 1


def test_a_column_of_lists_has_no_labels() -> None:
    with pytest.raises(BadValueError, match=r"has the type List\(Int64\); expected labels such as 0 and 1"):
        label_column(pl.Series([[1]]), ("1",))
