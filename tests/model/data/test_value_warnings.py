"""Warnings about the values of a column: each fault is reported with an example, and ordinary columns are not."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from model.data.field_auc import count_values, counted_auc
from model.data.value_warnings import leak_warning, text_warnings, unique_warning


def said(*values: str | None) -> list[str]:
    return text_warnings("x", count_values(pl.Series(values, dtype=pl.String)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((r"\N", "a", "b", r"\N"), r'has values that look missing: "\\N" in 2 rows. Add them to missing = ["\\N"]'),
        (("#N/A", "nan", "a"), '"#N/A" in 1 row, "nan" in 1 row. Add them to missing = ["#N/A", "nan"]'),
        (("1011.0", "1012.0", None), 'ids that were written as decimals: "1011.0" in 1 row. A client that sends 1011'),
        (("True", "False", "True"), 'has capitalized booleans: "True" in 2 rows. A client that sends true would'),
        (('"a"', '"b"', '"a"'), r'has values in quotes: "\"a\"" in 2 rows. Set quote = "\"" in [data]'),
        (('"sofa ""Malmo"""', "lamp", "rug", "bed"), "has values in quotes"),
        (("'a'", "'b'"), """has values in quotes: "'a'" in 1 row. Set quote = "'" in [data]"""),
        (("2026-01-31", "2026-02-01"), 'has times: "2026-01-31" in 1 row. They do not occur again. Use transform'),
        (("2026-01-31 10:00:00", "2026-02-01T11:30:00Z"), "has times"),
    ],
)
def test_a_fault_is_reported_with_an_example_and_the_way_out(values: tuple[str, ...], message: str) -> None:
    (warning,) = said(*values)
    assert warning.startswith('column "x" ')
    assert message in warning


@pytest.mark.parametrize(
    "values",
    [
        ("a", "b", None),
        ("NA", "EU", "AS", "SA"),  # continents
        ("unknown", "-", "none", "phone"),  # ordinary categories
        ("1.0", "1.5", "2.25"),
        ("1011", "0017"),
        ("true", "false"),
        ('"damn dirty apes"', "comedy", "drama", 'the "best"'),  # quotes that are part of the values
        ("2026-01-31",),  # a day, not a time that changes
        ("monday", "2026-edition"),
        (),
        (None, None),
    ],
)
def test_ordinary_values_are_not_reported(values: tuple[str | None, ...]) -> None:
    assert said(*values) == []


def test_an_id_of_the_row_is_reported() -> None:
    assert unique_warning("id", 95, 100) == (
        'column "id" has 95 distinct values in 100 rows, so the model cannot learn from it. Remove the field.'
    )
    assert unique_warning("id", 89, 100) is None
    assert unique_warning("id", 20, 20) is None  # a share of so few rows means nothing


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=40, max_size=200))
def test_the_auc_of_groups_is_the_auc_of_their_rows(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([score for score, _ in rows]), np.array([label for _, label in rows])
    counts = count_values(pl.Series(scores), labels)
    found = counted_auc(counts["value"].to_numpy(), counts["rows"].to_numpy(), counts["clicks"].to_numpy())
    if min(labels.sum(), (~labels).sum()) < 20:
        assert found == 0.5
    else:
        assert found == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def a_log(rows: int = 4000) -> tuple[np.random.Generator, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    random = np.random.default_rng(1)
    return random, (random.random(rows) < 0.1).astype(np.int64)


def test_a_column_that_predicts_the_label_is_a_leak() -> None:
    random, labels = a_log()
    copies = {
        "the label": pl.Series(np.where(labels, "converted", "shown")),
        "a number": pl.Series(np.where(labels, random.uniform(1, 9, len(labels)), 0.0)),
        "a number with the opposite sign": pl.Series(-labels * 3.0),
        "missing without a click": pl.Series([7.5 if label else None for label in labels], dtype=pl.Float64),
        "text that is missing without a click": pl.Series(["x" if label else None for label in labels]),
    }
    for name, values in copies.items():
        numeric = values.dtype.is_numeric()
        warning = leak_warning("x", count_values(values, labels), '"click"', numeric)
        assert warning is not None, name
        assert warning.startswith('column "x" alone predicts "click" almost perfectly, with an AUC of 1.00000'), name
        assert "remove the field: the model would copy" in warning


def test_a_value_with_only_clicks_is_a_leak() -> None:
    random, labels = a_log()
    half = np.where(labels & (random.random(len(labels)) < 0.5), "paid", random.choice(["a", "b"], len(labels)))
    warning = leak_warning("state", count_values(pl.Series(half), labels), '"click"')
    assert warning is not None
    assert warning.startswith('column "state" gives "click" away: "paid" has 100.00% clicks in ')


def test_columns_that_only_help_are_not_leaks() -> None:
    random, labels = a_log()
    strong = pl.Series(np.where(random.random(len(labels)) < 0.9, labels, 1 - labels))
    unique = pl.Series([f"r{n}" for n in range(len(labels))])
    number = pl.Series(labels + random.normal(size=len(labels)))
    assert leak_warning("x", count_values(strong.cast(pl.String), labels), '"click"') is None
    assert leak_warning("x", count_values(unique, labels), '"click"') is None
    assert leak_warning("x", count_values(number, labels), '"click"', numeric=True) is None
