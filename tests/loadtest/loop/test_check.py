"""The comparison of a joined log with the simulation reports every kind of difference."""

import polars as pl

from loadtest.loop.check import MAX_DIFFERENCES, balance_differences, row_differences

ROWS = pl.DataFrame({"score_id": ["a", "a", "b"], "candidate": [0, 1, 0], "click": [0, None, 1]})


def test_equal_rows_do_not_differ() -> None:
    assert row_differences(ROWS, ROWS.clone()) == []


def test_missing_unexpected_and_changed_rows_are_reported() -> None:
    found = pl.DataFrame({"score_id": ["a", "b", "c"], "candidate": [1, 0, 0], "click": [0, 1, 1]})
    assert row_differences(ROWS, found) == [
        "the joined log has 3 rows, and the simulation 3",
        "missing: {'score_id': 'a', 'candidate': 0, 'click': 0}",
        "unexpected: {'score_id': 'c', 'candidate': 0, 'click': 1}",
        "score_id a, candidate 1: click is 0, expected None",
    ]


def test_a_row_that_occurs_twice_is_reported() -> None:
    assert row_differences(ROWS, pl.concat([ROWS, ROWS[:1]])) != []


def test_another_column_is_reported() -> None:
    (line,) = row_differences(ROWS, ROWS.with_columns(pl.col("click").cast(pl.String)))
    assert line.startswith("the columns are")


def test_only_the_first_differences_are_reported() -> None:
    many = pl.DataFrame({"score_id": ["a"] * 50, "candidate": range(50), "click": [0] * 50})
    assert len(row_differences(many, many.with_columns(click=1))) <= 4 * MAX_DIFFERENCES
    assert len(row_differences(many, many[:0])) == 1 + MAX_DIFFERENCES


def test_other_numbers_in_a_balance_are_reported() -> None:
    expected = {"clicks": {"joined": 5, "late": 1}}
    assert balance_differences(expected, expected) == []
    assert balance_differences(expected, {"clicks": {"joined": 4}, "impressions": {"invalid": 2}}) == [
        "clicks, joined: 4 in join.json, expected 5",
        "clicks, late: 0 in join.json, expected 1",
        "impressions, invalid: 2 in join.json, expected 0",
    ]
