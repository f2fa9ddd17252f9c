"""What a sample shows about one column: its type, its values, and the texts that stand for a missing value."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from model.data.inspect.words import TIME_WORDS, words
from model.data.value_warnings import ISO_TIME, POSSIBLE_MARKERS, count_values, find_markers

Type = Literal["text", "integer", "decimal", "boolean", "time", "other"]
LEADING_ZERO = r"^-?0\d"
# Unix seconds and milliseconds from 2001 to 2100.
SECONDS = (10**9, 4_102_444_800)
MILLISECONDS = (10**12, 4_102_444_800_000)
# A missing number is often written as one of these.
SENTINELS = (-1.0, -9.0, -99.0, -999.0, -9999.0, -99999.0, -999999.0, 9999.0, 99999.0, 999999.0, 9999999.0, 99999999.0)
LIMITS = tuple(sign * 2.0**bits for bits in (15, 16, 31, 32, 63, 64) for sign in (-1, 1))
FAR = 10.0  # a sentinel is this many times the range of the other numbers away from them


@dataclass(frozen=True)
class Column:
    """A column of a sample.

    Attributes:
        name: The name in the file.
        type: The type of its values. Text that contains only numbers is a number.
        text: The values as text, (rows). Null means missing, which includes the markers.
        numbers: The values as float64, (rows), or None if they are not numbers.
        markers: The texts that look missing, with their rows.
        possible: Texts that may mean "missing", but may also be a category.
        sentinel: A number that may stand for a missing one, with its rows.
        distinct: The number of distinct values, without missing ones.
        missing: The share of rows without a value.
    """

    name: str
    type: Type
    text: pl.Series
    numbers: pl.Series | None
    markers: dict[str, int]
    possible: dict[str, int]
    sentinel: tuple[float, int] | None
    distinct: int
    missing: float

    @property
    def values(self) -> set[str]:
        """The distinct texts. Use this only if there are few."""
        return set(self.text.drop_nulls().unique().to_list())

    @property
    def top(self) -> str:
        """The most frequent value."""
        counts = self.text.drop_nulls().value_counts(sort=True, name="__rows__")
        return str(counts[self.name][0]) if len(counts) else ""


def describe(column: pl.Series) -> Column:
    """Return what a column of a sample contains."""
    dtype, name = column.dtype, column.name
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        return Column(name, "other", column.is_null().cast(pl.String), None, {}, {}, None, 0, share(column.is_null()))
    if dtype.is_temporal():
        text = column.cast(pl.String)
        return Column(name, "time", text, None, {}, {}, None, text.drop_nulls().n_unique(), share(text.is_null()))
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
    if numbers is not None:
        markers |= possible  # a text in a column of numbers stands for a missing one
        text = text.set(text.is_in([*possible]), None)
    sentinel = find_sentinel(numbers) if numbers is not None else None
    return Column(
        name, kind, text, numbers, markers, possible, sentinel, text.drop_nulls().n_unique(), share(text.is_null())
    )


def read_type(text: pl.Series, dtype: pl.DataType, possible: list[str]) -> tuple[Type, pl.Series | None]:
    """Return the type of a column's values, and the values as numbers if they all are."""
    if dtype == pl.Boolean:
        return "boolean", None
    present = text.drop_nulls()
    if not len(present):
        return "text", None
    if set(present.unique().str.to_lowercase().head(3).to_list()) <= {"true", "false"}:
        return "boolean", None
    if present.str.contains(ISO_TIME).all():
        return "time", None
    bare = text.set(text.is_in(possible), None)
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


def find_sentinel(numbers: pl.Series) -> tuple[float, int] | None:
    """Return a number that is far from all others and looks like a marker for a missing number, with its rows."""
    present = numbers.drop_nulls()
    if not len(present):
        return None
    for value in (present.min(), present.max()):
        assert isinstance(value, float)
        others = present.filter(present != value)
        if not len(others) or value not in (*SENTINELS, *LIMITS, *(limit - 1 for limit in LIMITS)):
            continue
        low, high = others.min(), others.max()
        assert isinstance(low, float)
        assert isinstance(high, float)
        if max(low - value, value - high) > FAR * max(high - low, abs(high), abs(low)):
            return value, len(present) - len(others)
    return None


def share(mask: pl.Series) -> float:
    """Return the share of True."""
    return float(mask.mean() or 0)  # type: ignore[arg-type]
