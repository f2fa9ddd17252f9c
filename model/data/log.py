"""A log as the readers hand it to prepare: named columns, and which of them are fields."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from contract.schema import Field

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Log:
    """Three frames with the same columns.

    fields: in the order of the schema; mean and std are not known yet. label: a column of 0 and 1.
    extra: columns of `test` that are no features and go along for later checks.
    """

    fields: tuple[Field, ...]
    label: str
    splits: Mapping[str, pl.DataFrame]
    extra: tuple[str, ...] = ()


def read_parquet(path: Path, columns: Iterable[str], way_out: str) -> pl.DataFrame:
    """The named columns of a parquet file.

    Raises:
        ValueError: naming the file, and the column that it lacks; `way_out` says where a missing file comes from.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. {way_out}")
    columns = list(columns)
    try:
        require_columns(path, columns, pl.read_parquet_schema(path))
        return pl.read_parquet(path, columns=columns)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: is no readable parquet file: {error}") from error


def require_columns(path: Path, columns: Iterable[str], present: Iterable[str]) -> None:
    present = list(present)
    for column in columns:
        if column not in present:
            raise ValueError(
                f"{path}: has no column {column!r}, only {', '.join(present)}: correct the experiment file"
            )


def check_label(path: Path, label: pl.Series) -> None:
    """Raises ValueError, naming file, column and value, unless every label is 0 or 1."""
    if label.is_empty():
        raise ValueError(f"{path}: has no rows")
    if label.null_count():
        raise ValueError(f"{path}: column {label.name!r} is null in {label.null_count()} rows: every row needs 0 or 1")
    if label.dtype == pl.Boolean:
        return
    if not label.dtype.is_numeric():
        raise ValueError(f"{path}: column {label.name!r} holds {label.dtype}: a label is 0 or 1")
    wrong = label.filter((label != 0) & (label != 1))
    if len(wrong):
        raise ValueError(f"{path}: column {label.name!r} holds {wrong[0]} in {len(wrong)} rows: a label is 0 or 1")
