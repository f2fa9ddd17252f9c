"""What a sample shows about one column: its type, its values, and the strings that stand for a missing value."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from model.data.field_auc import count_values
from model.data.inspect.words import TIME_WORDS, words
from model.data.sentinels import find_sentinels
from model.data.value_warnings import ISO_TIME, POSSIBLE_MARKERS, find_markers

Type = Literal["text", "integer", "decimal", "boolean", "time", "other"]
LEADING_ZERO = r"^-?0\d"
# Unix seconds and milliseconds from 2001 to 2100.
SECONDS = (10**9, 4_102_444_800)
MILLISECONDS = (10**12, 4_102_444_800_000)


@dataclass(frozen=True)
class Column:
    """A column of a sample.

    Attributes:
        name: The name in the file.
        type: The type of the values. A text column that contains only numbers is numeric.
        text: The values as strings, (rows). Missing values, including the markers, are null.
        numbers: The values as float64, (rows), or None if they are not numbers.
        markers: The strings that look like missing values, with the number of rows that contain each.
        possible: Strings that may mean "missing" but may also be categories, with the number of rows that contain each.
        sentinels: Numbers that may mean "missing", with the share of rows that contain each.
        distinct: The number of distinct values, not counting missing values.
        missing: The share of rows without a value.
    """

    name: str
    type: Type
    text: pl.Series
    numbers: pl.Series | None
    markers: dict[str, int]
    possible: dict[str, int]
    sentinels: dict[str, float]
    distinct: int
    missing: float

    @property
    def values(self) -> set[str]:
        """The distinct values as strings. Use this property only if there are few."""
        return set(self.text.drop_nulls().unique().to_list())

    @property
    def top(self) -> str:
        """The most frequent value."""
        counts = self.text.drop_nulls().value_counts(sort=True, name="__rows__")
        return str(counts[self.name][0]) if len(counts) else ""


def describe(column: pl.Series) -> Column:
    """Return what a column of a sample contains."""
    dtype, name = column.dtype, column.name
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Time, pl.Duration):
        return Column(name, "other", column.is_null().cast(pl.String), None, {}, {}, {}, 0, share(column.is_null()))
    if dtype.is_temporal():
        text = column.cast(pl.String)
        return Column(name, "time", text, None, {}, {}, {}, text.drop_nulls().n_unique(), share(text.is_null()))
    if dtype.is_float():
        column = column.fill_nan(None)
    text = column.cast(pl.String).str.strip_chars()
    if dtype.is_float():
        text = text.str.strip_suffix(".0")  # the token of a float that is a whole number
    text = text.set(text == "", None)
    markers, possible = dict[str, int](), dict[str, int]()
    if dtype == pl.String:
        counts = count_values(text).drop_nulls("value")
        markers = find_markers(counts)
        other = counts.filter(counts["value"].str.to_lowercase().is_in(sorted(POSSIBLE_MARKERS)))
        possible = dict(other.select("value", "rows").iter_rows())
        text = text.set(text.is_in([*markers]), None)
    kind, numbers = read_type(text if dtype == pl.String else column.cast(pl.String), dtype, [*possible])
    if numbers is not None or kind == "time":
        markers |= possible  # a string in a column of numbers or times stands for a missing value
        text = text.set(text.is_in([*possible]), None)
    sentinels = find_sentinels(numbers.fill_null(np.nan).to_numpy()) if numbers is not None else {}
    return Column(
        name, kind, text, numbers, markers, possible, sentinels, text.drop_nulls().n_unique(), share(text.is_null())
    )


def read_type(text: pl.Series, dtype: pl.DataType, possible: list[str]) -> tuple[Type, pl.Series | None]:
    """Return the type of a column's values and, if all of them are numbers, the values as numbers."""
    if dtype == pl.Boolean:
        return "boolean", None
    present = text.drop_nulls()
    if not len(present):
        return "text", None
    if set(present.unique().str.to_lowercase().head(3).to_list()) <= {"true", "false"}:
        return "boolean", None
    bare = text.set(text.is_in(possible), None)
    if len(bare.drop_nulls()) and bare.drop_nulls().str.contains(ISO_TIME).all():
        return "time", None
    numbers = bare.cast(pl.Float64, strict=False)
    finite = numbers.is_finite().sum()
    if not finite or finite < len(bare.drop_nulls()) or bare.str.contains(LEADING_ZERO).any():
        return "text", None
    if dtype.is_float() or bare.str.contains(r"[.eE]").any():
        return "decimal", numbers
    if is_unix_time(text.name, numbers):
        return "time", numbers
    return "integer", numbers


def is_unix_time(name: str, numbers: pl.Series) -> bool:
    """Return whether a column contains Unix times, by its name and its range."""
    present = numbers.drop_nulls()
    within = any(bool(present.is_between(low, high).all()) for low, high in (SECONDS, MILLISECONDS))
    return within and bool(TIME_WORDS & {*words(name)})


def share(mask: pl.Series) -> float:
    """Return the share of values that are True."""
    return float(mask.mean() or 0)  # type: ignore[arg-type]
