"""Columns of a log -> ids and numbers, by the contract's rules applied to distinct values."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import Field
from contract.tokens import token
from contract.vocabulary import MISSING, Vocabulary, build_vocabulary


def check_column(column: pl.Series, field: Field) -> None:
    """Raises ValueError, naming the field and the way out, for a column that `field` cannot take."""
    kind = column.dtype
    empty = column.null_count() == len(column)  # then a CSV or parquet file may give it any type
    if field.kind == "numeric" and not (kind.is_numeric() or empty):
        raise ValueError(f"field {field.name!r} is numeric, but the log holds {kind}: write numbers, null for missing")
    text = kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
    if field.kind == "categorical" and not (text or kind.is_integer() or kind.is_float() or empty):
        raise ValueError(f"field {field.name!r} holds {kind}: write strings, numbers, booleans or null")
    if kind.is_float() and (count := column.len() - column.null_count() - (column.is_finite().sum() or 0)):
        raise ValueError(f"field {field.name!r} is NaN or infinite in {count} rows: write null for missing")
    if kind == pl.String and (column.str.contains("\0", literal=True).any()):
        raise ValueError(f"field {field.name!r} holds text with a NUL character: no vocabulary keeps one, remove it")


def build_column_vocabulary(column: pl.Series, min_count: int) -> Vocabulary:
    """The tokens seen at least `min_count` times, the most frequent first, ties in the order of the tokens."""
    counts: Counter[str] = Counter()
    seen = _plain(column).value_counts(name="rows")
    for value, rows in zip(_tokens(seen[column.name]), seen["rows"].to_list(), strict=True):
        if value is not None:
            counts[value] += rows  # two values may be one token: 1 and 1.0, "x" and " x "
    kept = [(-rows, value) for value, rows in counts.items() if rows >= min_count]
    return build_vocabulary(value for _, value in sorted(kept))


def column_ids(column: pl.Series, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Ids int32 [rows]: 0 for a token that the vocabulary does not know, 1 for a missing one."""
    rows = _plain(column).alias("value").to_frame()
    distinct = rows["value"].unique()
    ids = [MISSING if t is None else vocabulary(t) for t in _tokens(distinct)]
    table = pl.DataFrame({"value": distinct, "id": pl.Series(ids, dtype=pl.Int32)})
    joined = rows.join(table, on="value", how="left", nulls_equal=True, maintain_order="left")
    return joined["id"].to_numpy()


def column_numbers(column: pl.Series) -> NDArray[np.float64]:
    """Numbers float64 [rows]; NaN is missing."""
    if column.null_count() == len(column):
        return np.full(len(column), np.nan)
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()


def mean_and_std(numbers: NDArray[np.float64]) -> tuple[float, float]:
    """Of the present values; (0, 1) without any, and 1 for a standard deviation of 0."""
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # the schema refuses what overflows, by the field's name
        return float(present.mean()), float(present.std()) or 1.0


def missing_share(column: pl.Series) -> float:
    """The share of rows without a value: null, or text that is blank."""
    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column.str.strip_chars() == "").fill_null(False)
    return float(missing.cast(pl.Float64).to_numpy().mean())


def _plain(column: pl.Series) -> pl.Series:
    """The same values in a type that can be counted and joined."""
    if column.dtype in (pl.Categorical, pl.Enum) or column.null_count() == len(column):
        return column.cast(pl.String)
    return column


def _tokens(distinct: pl.Series) -> list[str | None]:
    values: list[Any] = distinct.to_list()
    if distinct.dtype == pl.Float32:
        # The shortest decimal that names the float32: 0.1 as a client writes it, not 0.10000000149011612.
        values = [None if value is None else float(str(np.float32(value))) for value in values]
    return [token(value) for value in values]
