"""Converting one column of a batch of rows to text, numbers or labels, and rejecting unreadable values."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import Field
from contract.timestamps import MIN_SECONDS, NUMBER
from contract.tokens import absent_numbers, marked_numbers, signed_log1p, time_part, token
from model.data.timestamps import EXPECTED_TIME, unix_seconds
from model.data_config import label_key


class BadValueError(ValueError):
    """A value, or a whole column, that cannot be read.

    Attributes:
        column: The column's name.
        reason: What the column holds and how to fix it: 'holds "x"; expected a number. ...'.
        row: The position of the value in the batch, or None if the whole column is wrong.
    """

    def __init__(self, column: str, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason
        self.row = row


def text_column(column: pl.Series, marked: Iterable[float] = ()) -> pl.Series:
    """Return a column as strings that are the tokens of its values. Null means missing.

    Args:
        column: The column.
        marked: Numbers that mean "missing". Only NaN and infinities have an effect, because the field's tokenizer
            handles the others.

    Raises:
        BadValueError: If a value is NaN or infinite, or no field can have the column's type.
    """
    dtype = column.dtype
    if dtype == pl.String:
        return column
    if dtype.is_float():
        column = without_marked(column, marked)
        reject_first(column, ~column.is_finite().fill_null(True), "expected a finite number")
        # The contract's rule is Python code, so it runs only once per distinct value.
        distinct = column.drop_nulls().unique()
        # Use the shortest decimal that identifies a float32: 0.1, as a client writes it, not 0.10000000149011612.
        values = distinct.cast(pl.String).cast(pl.Float64) if dtype == pl.Float32 else distinct
        tokens = pl.Series([token(value) for value in values.to_list()], dtype=pl.String)
        return column.replace_strict(distinct, tokens, default=None, return_dtype=pl.String)
    if dtype.is_integer() or dtype in (pl.Boolean, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    if column.null_count() == len(column):  # a parquet file may give a column of nulls any type
        return pl.Series(column.name, [None] * len(column), dtype=pl.String)
    raise BadValueError(column.name, f"has the type {dtype}; expected strings, numbers, booleans or nulls")


def number_column(column: pl.Series, field: Field) -> NDArray[np.float64]:
    """Return a column as numbers, float64 (rows). NaN means missing.

    Raises:
        BadValueError: If a text is not a number, a number is NaN or infinite, or the column's type is not numeric.
    """
    if column.dtype == pl.String:
        numbers = parse_numbers(column, field)
    elif column.dtype.is_numeric():
        numbers = without_marked(column.cast(pl.Float64), marked_numbers(field.missing or ()))
        reject_first(column, ~numbers.is_finite().fill_null(True), "expected a finite number")
    elif column.null_count() == len(column):
        numbers = pl.Series([None] * len(column), dtype=pl.Float64)
    else:
        raise BadValueError(column.name, f"has the type {column.dtype}; expected numbers, or nulls for missing values")
    values = numbers.fill_null(np.nan).to_numpy()
    if absent := absent_numbers(field):
        values = np.where(np.isin(values, list(absent)), np.nan, values)
    return values


def time_column(column: pl.Series, field: Field) -> pl.Series:
    """Return a column of timestamps as the field's tokens, such as hours. Null means missing.

    Raises:
        BadValueError: If a value is not a timestamp, or the column contains neither text nor numbers nor timestamps.
    """
    try:
        seconds = unix_seconds(column)
    except ValueError as error:
        raise BadValueError(column.name, str(error)) from error
    absent = is_absent(column, field)
    reject_first(column, seconds.is_null() & ~absent, EXPECTED_TIME)
    # Python computes tokens only once per minute, because time zones have changed at whole minutes since MIN_SECONDS.
    minutes = pl.select(pl.when(seconds >= MIN_SECONDS).then(seconds // 60 * 60).otherwise(seconds)).to_series()
    minutes = minutes.set(absent, None)
    distinct, part = minutes.drop_nulls().unique(), time_part(field)
    try:
        tokens = pl.Series([part(minute) for minute in distinct.to_list()], dtype=pl.String)
    except ValueError as error:  # the first or the last day of the calendar
        raise BadValueError(column.name, str(error)) from error
    return minutes.replace_strict(distinct, tokens, default=None, return_dtype=pl.String).rename(column.name)


def is_absent(column: pl.Series, field: Field) -> pl.Series:
    """Return which values of a column of timestamps are missing: nulls, empty text, and the field's markers."""
    dtype = column.dtype
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        text = column.cast(pl.String).str.strip_chars()
        is_marker = text.is_null() | text.is_in(["", *(word.strip() for word in field.missing or ())])
        if not (absent := absent_numbers(field)):
            return is_marker
        numbers = text.set(~text.str.contains(f"^(?:{NUMBER.pattern})$"), None).cast(pl.Float64, strict=False)
        return is_marker | numbers.is_in(list(absent)).fill_null(False)
    if dtype.is_numeric():
        numbers = without_marked(column.cast(pl.Float64), marked_numbers(field.missing or ()))
        return numbers.is_null() | numbers.is_in(list(absent_numbers(field)))
    return column.is_null()


def without_marked(numbers: pl.Series, marked: Iterable[float]) -> pl.Series:
    """Replace the NaN and infinities of a float column that mean "missing" with nulls."""
    for value in marked:
        if math.isnan(value):
            numbers = numbers.fill_nan(None)
        elif math.isinf(value):
            numbers = numbers.set(numbers == value, None)
    return numbers


def parse_numbers(text: pl.Series, field: Field) -> pl.Series:
    """Parse text as float64. Empty values and the field's markers for missing values become null.

    Numbers that stand for a missing value are kept.

    Raises:
        BadValueError: If a text is not a number, or is NaN or infinite.
    """
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count() and numbers.is_finite().all():
        return numbers  # nothing to strip
    bare = text.str.strip_chars()
    absent = bare.is_in(["", *(word.strip() for word in field.missing or ())])
    numbers = bare.cast(pl.Float64, strict=False)
    absent |= (
        numbers.is_not_null() & without_marked(numbers, marked_numbers(field.missing or ())).is_null()
    )  # such as "NaN" if "nan" is in missing
    reject_first(text, text.is_not_null() & ~absent & ~numbers.is_finite().fill_null(False), "expected a number")
    return numbers.set(absent, None)


def label_column(column: pl.Series, positive: Sequence[str] = (), missing: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return a column as labels, uint8 (rows).

    Args:
        column: The labels from the log.
        positive: The labels that are clicks. All others are non-clicks. Case does not matter, and the numbers 1 and 1.0
            are equal. If `positive` is empty, the labels must be 0 and 1, or false and true.
        missing: The labels that are neither clicks nor non-clicks, compared in the same way.

    Raises:
        BadValueError: If a label is missing, or if `positive` is empty and a label is not 0 or 1.
    """
    dtype = column.dtype
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null)):
        raise BadValueError(column.name, f"has the type {dtype}; expected labels such as 0 and 1")
    if not positive:
        numbers = parse_labels(column) if dtype in (pl.String, pl.Categorical, pl.Enum) else column.cast(pl.Float64)
        labels, expected = numbers.set((numbers != 0) & (numbers != 1), None), "0 or 1"
        advice = ". Name the labels that are clicks with positive = [...] in [data]."
    else:
        labels, expected, advice = is_positive(column, positive, missing), "a label", ". Add a label to every row."
    bad = labels.is_null()
    if bad.any():
        row = bad.arg_max()
        assert row is not None
        value = column[row]
        key = label_key(value)
        marked = ", which is in missing" if key is not None and key in map(label_key, missing) else ""
        if value is None or positive or marked:
            advice = ". Add a label to every row."
        raise BadValueError(column.name, f"{holds(value)}{marked}; expected {expected}{advice}", row)
    return labels.cast(pl.UInt8).to_numpy()


def parse_labels(column: pl.Series) -> pl.Series:
    """Parse text as numbers. "true" and "false" are 1 and 0, and all other text is null."""
    text = column.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    return text.str.to_lowercase().replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)


def is_positive(column: pl.Series, positive: Sequence[str], missing: Sequence[str] = ()) -> pl.Series:
    """Return whether each label is one of `positive`. A label that is null, blank or one of `missing` gives null."""
    distinct = column.unique()
    clicks, absent = ({label_key(value) for value in values} for values in (positive, missing))
    keys = [label_key(value) for value in distinct.to_list()]
    found = [None if key is None or key in absent else key in clicks for key in keys]
    return column.replace_strict(distinct, pl.Series(found, dtype=pl.Boolean), return_dtype=pl.Boolean)


def measure(field: Field, numbers: NDArray[np.float64], clip_share: float = 0.0) -> Field:
    """Return a numeric field with the mean, standard deviation and range of its column in the training set.

    If there are no numbers, mean and std stay 0 and 1. If all numbers are equal, std is 1.

    Args:
        field: The field.
        numbers: Its column, (rows). NaN means missing.
        clip_share: The share of the numbers that is left out at each end, so that a few extreme numbers have no effect.
            If it is above 0, at least one number is left out at each end. If all remaining numbers would be equal, no
            number is left out.
    """
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return field
    low, high = seen_range(present, clip_share)
    inside = present[(present >= low) & (present <= high)] if clip_share else present
    if field.transform == "log1p":
        inside = signed_log1p(inside)
    with np.errstate(over="ignore", invalid="ignore"):  # the schema rejects an overflow with the field's name
        mean, std = float(inside.mean()), float(inside.std()) or 1.0
    return msgspec.structs.replace(field, mean=mean, std=std, seen=(low, high))


def seen_range(present: NDArray[np.float64], clip_share: float) -> tuple[float, float]:
    """Return the quantiles `clip_share` and 1 - `clip_share` of numbers, or their whole range if both are equal.

    The quantiles are numbers that occur in the column. At least one number is left out at each end, so that a single
    extreme number has no effect even in a small log.
    """
    last = len(present) - 1
    below = math.ceil(clip_share * last)
    if 0 < below < last - below:
        # numpy finds one order statistic much faster than two at once.
        ordered = np.partition(present, below)
        low = float(ordered[below])
        ordered.partition(last - below)
        high = float(ordered[last - below])
        if low < high:
            return low, high
    return float(present.min()), float(present.max())


def reject_first(column: pl.Series, bad: pl.Series, expected: str) -> None:
    """Raise BadValueError for the first bad value of a column.

    Args:
        column: The values from the log.
        bad: True where a value cannot be read.
        expected: What the column should hold.
    """
    if not bad.any():
        return
    row = bad.arg_max()
    assert row is not None
    value = column[row]
    marker = value if isinstance(value, str) else str(value)
    fix = f"Add {shown(marker)} to missing = [...] or fix the file."
    raise BadValueError(column.name, f"{holds(value)}; {expected}. {fix}", row)


def holds(value: Any) -> str:
    """Return the beginning of a reason: what the column contains."""
    return "is empty" if value is None else f"holds {shown(value)}"


def shown(value: Any) -> str:
    """Format a value for an error message. Text is in double quotes, with control characters escaped."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
