"""One column of a batch of rows -> text to count, numbers or labels; what cannot be read is refused with its line."""

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import Field
from contract.tokens import absent_numbers, token

NOT_A_LABEL = "a label is 0 or 1"
NO_NUMBER = "it takes a number, or nothing where it is missing"


class BadValueError(ValueError):
    """row: of the batch; None when the whole column is at fault."""

    def __init__(self, column: str, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason
        self.row = row


def text_column(column: pl.Series) -> pl.Series:
    """Strings, with the token that its value has; null is missing.

    Raises:
        BadValueError: for NaN, an infinity, and a type that no field takes.
    """
    kind = column.dtype
    if kind == pl.String:
        return column
    if kind.is_float():
        return _float_tokens(column)
    if kind.is_integer() or kind in (pl.Boolean, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    if column.null_count() == len(column):  # then a parquet file may give it any type
        return pl.Series(column.name, [None] * len(column), dtype=pl.String)
    raise BadValueError(column.name, f"holds {kind}: write strings, numbers, booleans or null")


def number_column(column: pl.Series, field: Field) -> NDArray[np.float64]:
    """Numbers float64 [rows]; NaN is missing.

    Raises:
        BadValueError: for text that is no number, NaN, an infinity, and a type that is none.
    """
    if column.dtype == pl.String:
        numbers = numbers_in(column, field)
    elif column.dtype.is_numeric():
        numbers = column.cast(pl.Float64)
        _refuse_first(column.name, ~numbers.is_finite().fill_null(True), NO_NUMBER)
    elif column.null_count() == len(column):
        numbers = pl.Series([None] * len(column), dtype=pl.Float64)
    else:
        raise BadValueError(column.name, f"holds {column.dtype}: a numeric field takes numbers, null for missing")
    found = numbers.fill_null(np.nan).to_numpy()
    if absent := absent_numbers(field):
        found = np.where(np.isin(found, list(absent)), np.nan, found)
    return found


def numbers_in(text: pl.Series, field: Field) -> pl.Series:
    """Float64; null where there is nothing, or a word that means missing. Numbers that mean it stay.

    Raises:
        BadValueError: for text that is no number, NaN and an infinity.
    """
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count() and numbers.is_finite().all():
        return numbers  # nothing to strip
    bare = text.str.strip_chars()
    absent = bare.is_in(["", *(word.strip() for word in field.missing or ())])
    numbers = bare.cast(pl.Float64, strict=False)
    _refuse_first(text.name, text.is_not_null() & ~absent & ~numbers.is_finite().fill_null(False), NO_NUMBER)
    return numbers.set(absent, None)


def label_column(column: pl.Series) -> NDArray[np.uint8]:
    """0 or 1, uint8 [rows].

    Raises:
        BadValueError: for any other label.
    """
    numbers = column.str.strip_chars() if column.dtype == pl.String else column
    if not (numbers.dtype.is_numeric() or numbers.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise BadValueError(column.name, f"holds {column.dtype}: {NOT_A_LABEL}")
    numbers = numbers.cast(pl.Float64, strict=False)
    _refuse_first(column.name, ~((numbers == 0) | (numbers == 1)).fill_null(False), NOT_A_LABEL)
    return numbers.cast(pl.UInt8).to_numpy()


def measured(field: Field, numbers: NDArray[np.float64]) -> Field:
    """A numeric field with what its column in train says of it. Without a number mean and std stay 0 and 1, and a
    column of one number has a std of 1."""
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return field
    with np.errstate(over="ignore", invalid="ignore"):  # the schema refuses what overflows, by the field's name
        mean, std = float(present.mean()), float(present.std()) or 1.0
    return msgspec.structs.replace(field, mean=mean, std=std, seen=(float(present.min()), float(present.max())))


def _float_tokens(column: pl.Series) -> pl.Series:
    """By the contract's rule, which needs Python; so distinct values only."""
    bad = ~column.is_finite().fill_null(True)
    _refuse_first(column.name, bad, "is NaN or infinite: write null for missing")
    distinct = column.drop_nulls().unique()
    # The shortest decimal that names a float32: 0.1 as a client writes it, not 0.10000000149011612.
    values = distinct.cast(pl.String).cast(pl.Float64) if column.dtype == pl.Float32 else distinct
    tokens = pl.Series([token(value) for value in values.to_list()], dtype=pl.String)
    return column.replace_strict(distinct, tokens, default=None, return_dtype=pl.String)


def _refuse_first(name: str, bad: pl.Series, reason: str) -> None:
    if bad.any():
        row = bad.arg_max()
        raise BadValueError(name, reason, row)
