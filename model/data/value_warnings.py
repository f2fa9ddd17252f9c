"""Warnings about the values of a column, which ctr-inspect and ctr-prepare share.

Each warning names the column, an example with its number of rows, and what to do. All functions look at a sample of the
rows, as distinct values with their counts (see field_auc.count_values()).
"""

import json
import math
from collections.abc import Callable

import polars as pl

from model.data.field_auc import LEAK_AUC, field_auc

# Strings that programs write for a missing value.
NULL_MARKERS: tuple[str, ...] = (
    "\\N",
    "NULL",
    "Null",
    "null",
    "NaN",
    "nan",
    "NAN",
    "None",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "#NA",
    "<NA>",
)
NULL_MARKERS += ("NaT", "(null)", "<null>", "[null]", "nil", "undefined", "#NULL!")
# Strings that may mean "missing" but may also be ordinary categories, so there is no warning about them.
POSSIBLE_MARKERS = {
    "none",
    "na",
    "-",
    "--",
    "?",
    ".",
    "unknown",
    "unk",
    "missing",
    "not set",
    "(not set)",
    "(none)",
    "empty",
}
LEAK_SHARE = 0.01  # the share of all clicks that a value with only clicks must have
LOG_CHANCE = -30.0  # the log probability that such a value occurs by chance must be below this
UNIQUE_SHARE = 0.9
MIN_ROWS = 100  # shares of fewer rows mean nothing
TYPICAL_SHARE = 0.9  # a pattern in this share of the rows is typical of the column
ISO_TIME = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
TWO_LETTERS = r"^[A-Za-z]{2}$"
CODE_SHARE = 0.5  # a column of codes has at least this share of two-letter strings
TEXT = pl.col("value")
IS_MARKER = TEXT.str.strip_chars().is_in(NULL_MARKERS)


def text_warnings(name: str, counts: pl.DataFrame) -> list[str]:
    """Return warnings about the strings in a categorical column.

    Args:
        name: The column.
        counts: Its values (see field_auc.count_values()), as text. Values that are declared as missing are null.
    """
    values = counts.drop_nulls("value")
    # Most columns match no pattern, and one query for all patterns is faster than a query for each.
    matches = values.select(pattern.any().alias(check.__name__) for check, pattern in CHECKS.items()).row(0, named=True)
    found = {check: values.filter(pattern) for check, pattern in CHECKS.items() if matches[check.__name__]}
    return [f'column "{name}" {message}' for check, few in found.items() if (message := check(few, values))]


def null_markers(_: pl.DataFrame, values: pl.DataFrame) -> str | None:
    """Return a warning if strings look like missing values."""
    markers = find_markers(values)
    if not markers:
        return None
    found = ", ".join(f"{quoted(text)} in {rows_in(rows)}" for text, rows in list(markers.items())[:3])
    listed = ", ".join(quoted(text) for text in markers)
    return f"has values that look missing: {found}. Add them to missing = [{listed}], or to the field's missing."


def find_markers(values: pl.DataFrame) -> dict[str, int]:
    """Return the strings that look like missing values, with the number of rows that contain each."""
    markers: dict[str, int] = dict(values.filter(IS_MARKER).select("value", "rows").iter_rows())
    others = values.filter(~values["value"].is_in([*markers]))["value"]
    if len(others) and float(others.str.contains(TWO_LETTERS).mean() or 0) >= CODE_SHARE:  # type: ignore[arg-type]
        markers.pop("NA", None)  # among two-letter codes, NA is a country or a continent
    return markers


def quoted_values(found: pl.DataFrame, values: pl.DataFrame) -> str | None:
    """Return a warning if the quotes around values belong to the file's format.

    Quotes can also be part of a value. So almost all values must be quoted, or a quote inside a value must be doubled.
    """
    for quote, key in (('"', r'quote = "\""'), ("'", 'quote = "\'"')):
        inside = found.filter(TEXT.str.starts_with(quote))
        doubled = inside.filter(TEXT.str.slice(1).str.strip_suffix(quote).str.contains(quote * 2, literal=True))
        if is_typical(inside, values) or (quote == '"' and len(doubled)):
            shown = example(doubled if len(doubled) else inside)
            fix = f"Set {key} in [data], or remove the quotes from the file"
            return f"has values in quotes: {shown}. {fix}, unless clients send them too."
    return None


def integral_floats(found: pl.DataFrame, values: pl.DataFrame) -> str | None:
    """Return a warning if ids were written as floating-point numbers, as pandas does in a column with empty values."""
    if not is_typical(found, values):
        return None
    number = found["value"][0].split(".")[0]
    return (
        f"has ids that were written as decimals: {example(found)}. A client that sends {number} would not match it. "
        'Write whole numbers (in pandas: astype("Int64")).'
    )


def capitalized_booleans(found: pl.DataFrame, values: pl.DataFrame) -> str | None:
    """Return a warning if booleans were written as True and False, which JSON's true and false do not match."""
    if not is_typical(found, values):
        return None
    text = found["value"][0]
    return (
        f"has capitalized booleans: {example(found)}. A client that sends {text.lower()} would not match it. "
        "Write true and false in lower case, or 1 and 0 if clients send numbers."
    )


def times(found: pl.DataFrame, values: pl.DataFrame) -> str | None:
    """Return a warning if a categorical column contains times, which do not occur again after training."""
    if not is_typical(found, values) or len(found) < 2:
        return None
    return (
        f'has times: {example(found)}. They do not occur again. Use transform = "hour" or transform = "weekday", or '
        "remove the field."
    )


# Each check gets the values that match its pattern, and all values.
CHECKS: dict[Callable[[pl.DataFrame, pl.DataFrame], str | None], pl.Expr] = {
    null_markers: IS_MARKER,
    quoted_values: pl.any_horizontal(
        TEXT.str.starts_with(quote) & TEXT.str.ends_with(quote) & (TEXT.str.len_chars() >= 2) for quote in "\"'"
    ),
    integral_floats: TEXT.str.contains(r"^-?\d+\.0+$"),
    capitalized_booleans: TEXT.is_in(["True", "False", "TRUE", "FALSE"]),
    times: TEXT.str.contains(ISO_TIME),
}


def unique_warning(name: str, distinct: int, rows: int) -> str | None:
    """Return a warning if almost every row has a different value, as in a column of row ids.

    Args:
        name: A categorical column.
        distinct: The number of its distinct values.
        rows: The number of rows that have a value.
    """
    if rows < MIN_ROWS or distinct < UNIQUE_SHARE * rows:
        return None
    return (
        f'column "{name}" has {distinct:,} distinct values in {rows:,} rows, so the model cannot learn from it. Remove '
        "the field."
    )


def leak_warning(name: str, counts: pl.DataFrame, label: str, numeric: bool = False) -> str | None:
    """Return a warning if a column alone predicts the label, like a value that is known only after the click.

    Args:
        name: The column.
        counts: Its values (see field_auc.count_values()).
        label: The name of the label in messages.
        numeric: Whether the values are numbers, so that larger ones may mean more or fewer clicks.
    """
    fix = f"If the value is known only after the impression, remove the field: the model would copy {label}."
    auc = field_auc(counts, numeric)
    if auc >= LEAK_AUC:
        top = counts.filter(pl.col("rows") * pl.col("clicks").sum() < pl.col("clicks") * pl.col("rows").sum())
        shown = f"; for example, {click_rate(top)}" if len(top) else ""
        return f'column "{name}" alone predicts {label} almost perfectly, with an AUC of {auc:.5f}{shown}. {fix}'
    rows, clicks = int(counts["rows"].sum()), int(counts["clicks"].sum())
    if not 0 < clicks < rows:
        return None
    min_clicks = max(LEAK_SHARE * clicks, LOG_CHANCE / math.log(clicks / rows))
    telling = counts.filter((pl.col("clicks") == pl.col("rows")) & (pl.col("clicks") >= min_clicks))
    if not len(telling):
        return None
    return f'column "{name}" gives {label} away: {click_rate(telling)}, and {clicks / rows:.2%} overall. {fix}'


def is_typical(found: pl.DataFrame, values: pl.DataFrame) -> bool:
    """Return whether these values make up most rows of the column."""
    return len(found) > 0 and int(found["rows"].sum()) >= TYPICAL_SHARE * int(values["rows"].sum())


def example(found: pl.DataFrame) -> str:
    """Return the most frequent value with its number of rows."""
    return f"{quoted(found['value'][0])} in {rows_in(found['rows'][0])}"


def click_rate(found: pl.DataFrame) -> str:
    """Return the most frequent value with its click rate."""
    value, rows, clicks = found.row(0)[:3]
    shown = "the missing value" if value is None else quoted(value)
    return f"{shown} has {clicks / rows:.2%} clicks in {rows_in(rows)}"


def rows_in(rows: int) -> str:
    """Return "1 row" or "n rows"."""
    return "1 row" if rows == 1 else f"{rows:,} rows"


def quoted(value: object) -> str:
    """Return a value as TOML and JSON write it: text in double quotes."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")
