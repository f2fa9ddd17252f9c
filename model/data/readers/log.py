"""What a reader returns: a log as lazy frames that are never in memory as a whole, and which columns are fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contract.schema import Field
from model.data.readers.text import check_lines, header
from model.data_config import Data

SPLITS = ("train", "valid", "test")
# A row's line in its text file, or its row number in its parquet file. Both count from 1, and a header is a line.
LINE = "__line__"


@dataclass(frozen=True)
class Log:
    """Three lazy frames with the same columns, each with LINE.

    Attributes:
        fields: In the schema's order. Their mean and std are not known yet.
        label: The column that holds 0 and 1.
        splits: The frames by the names in SPLITS.
        paths: The files by the names in SPLITS.
        extra: Columns of `test` that are not features but are kept for later checks.
    """

    fields: tuple[Field, ...]
    label: str
    splits: Mapping[str, pl.LazyFrame]
    paths: Mapping[str, Path]
    extra: tuple[str, ...] = ()


def position(path: Path, line: int) -> str:
    """Return the position of a row as errors name it: `train.csv:17`, or `train.parquet, row 17`."""
    return f"{path}, row {line}" if path.suffix == ".parquet" else f"{path}:{line}"


def scan_text(path: Path, *, separator: str = ",", names: Sequence[str] | None = None, hint: str = "") -> pl.LazyFrame:
    """Return a text file, plain or .gz, as a lazy frame of strings and LINE.

    No type is inferred, so a hashed id that looks like a number keeps its zeros. An empty value is null. Double quotes
    have a meaning only with commas. The call reads the whole file once to find lines with missing columns.

    Args:
        path: The file.
        separator: One character.
        names: The columns' names; None takes them from the header line.
        hint: Where a missing file comes from.

    Raises:
        ValueError: If the file is missing or empty, or a line has too few or too many columns.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file{'. ' * bool(hint)}{hint}")
    columns = header(path, separator) if names is None else list(names)
    quoted = separator == ","
    multiline_rows = check_lines(path, separator, len(columns), quoted)
    frame = pl.scan_csv(
        path,
        separator=separator,
        has_header=names is None,
        schema=dict.fromkeys(columns, pl.String()),
        quote_char='"' if quoted else None,
        row_index_name=LINE,
        row_index_offset=2 if names is None else 1,
    )
    if not len(multiline_rows):
        return frame

    def first_line(rows: pl.Series) -> pl.Series:
        """Return the line in which each row begins. polars counts rows, and a quoted value may span lines."""
        return rows + np.searchsorted(multiline_rows, rows.to_numpy())

    return frame.with_columns(pl.col(LINE).map_batches(first_line, return_dtype=pl.Int64, is_elementwise=True))


def scan_parquet(path: Path, columns: Iterable[str], hint: str) -> pl.LazyFrame:
    """Return the named columns of a parquet file and LINE.

    Args:
        path: The file.
        columns: The columns to read.
        hint: Where a missing file comes from.

    Raises:
        ValueError: If the file is missing, is not a parquet file, or has no such column.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. {hint}")
    columns = list(columns)
    try:
        require_columns(path, columns, pl.read_parquet_schema(path))
        return pl.scan_parquet(path, row_index_name=LINE, row_index_offset=1).select(LINE, *columns)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: cannot be read as parquet: {error}") from error


def require_columns(path: Path, columns: Iterable[str], present: Iterable[str]) -> None:
    """Check that a file has all columns.

    Raises:
        ValueError: If one is missing. The message lists the columns of the file.
    """
    present = list(present)
    for column in columns:
        if column not in present:
            raise ValueError(
                f'{path}: no column "{column}". The file has {", ".join(present)}. Fix the experiment file.'
            )


def apply_field_specs(fields: Sequence[Field], data: Data) -> tuple[Field, ...]:
    """Return a reader's fields with the changes that [[data.fields]] makes to them.

    Raises:
        ValueError: If an entry names a field that the reader does not have.
    """
    specs = {spec.name: spec for spec in data.fields}
    if unknown := specs.keys() - {field.name for field in fields}:
        raise ValueError(f'field "{min(unknown)}" is not in this log, which has {", ".join(f.name for f in fields)}')
    return tuple(specs[field.name].apply(field) if field.name in specs else field for field in fields)
