"""The result of a reader: a log as lazy frames, which are never fully in memory, and its fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from contract.schema import Field
from model.data.readers.text import check_lines, header
from model.data_config import Data

SPLITS = ("train", "valid", "test")
# The line number of a row in a text file, or its row number in a parquet file. Both start at 1; a header counts as a
# line.
LINE = "__line__"
# The number of a row's file, if the log has several.
FILE = "__file__"


@dataclass(frozen=True)
class Log:
    """Three lazy frames with the same columns, each with LINE.

    Attributes:
        fields: The fields in the schema's order. Their mean and std are not measured yet.
        label: The label column, which contains 0 and 1.
        splits: The frame of each split (see SPLITS).
        paths: The file of each split.
        extra: Columns of `test` that are not features but are kept for later checks.
        weight: The column with the weight of each row, or "" if all weights are 1.
        unit: The column with the unit of each row, or "".
        request: The column with the request of each row, or "".
    """

    fields: tuple[Field, ...]
    label: str
    splits: Mapping[str, pl.LazyFrame]
    paths: Mapping[str, Path]
    extra: tuple[str, ...] = ()
    weight: str = ""
    unit: str = ""
    request: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the frames that are read from all splits: the label, the sources of the fields, and others."""
        others = filter(None, (self.weight, self.unit, self.request))
        return tuple(dict.fromkeys((self.label, *(field.reads for field in self.fields), *others)))


def position(path: Path, line: int) -> str:
    """Format the position of a row for an error message: `train.csv:17` or `train.parquet, row 17`."""
    return f"{path}, row {line}" if path.suffix == ".parquet" else f"{path}:{line}"


def scan_text(path: Path, *, separator: str = ",", names: Sequence[str] | None = None, hint: str = "") -> pl.LazyFrame:
    """Return a text file, plain or .gz, as a lazy frame of strings, with LINE.

    Types are not inferred, so a hashed id that looks like a number keeps its leading zeros. Empty values are null.
    Double quotes are special only if the separator is a comma. This function reads the whole file once, to find lines
    with missing columns.

    Args:
        path: The file.
        separator: The separator, a single character.
        names: The column names, or None to read them from the header line.
        hint: Where to get the file, for the error if it is missing.

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
        """Return the line at which each row begins. polars counts rows, but a quoted value may span several lines."""
        return rows + np.searchsorted(multiline_rows, rows.to_numpy())

    return frame.with_columns(pl.col(LINE).map_batches(first_line, return_dtype=pl.Int64, is_elementwise=True))


def scan_parquet(path: Path, columns: Iterable[str], hint: str) -> pl.LazyFrame:
    """Return the given columns of a parquet file, with LINE.

    Args:
        path: The file.
        columns: The columns to read.
        hint: Where to get the file, for the error if it is missing.

    Raises:
        ValueError: If the file is missing or is not a parquet file, or a column is missing.
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
    """Check that a file has all required columns.

    Raises:
        ValueError: If a column is missing. The message lists the file's columns.
    """
    present = list(present)
    for column in columns:
        if column not in present:
            raise ValueError(
                f'{path}: no column "{column}". The file has {", ".join(present)}. Fix the experiment file.'
            )


def apply_field_specs(fields: Sequence[Field], data: Data) -> tuple[Field, ...]:
    """Return a reader's fields with the changes in [[data.fields]] applied.

    Raises:
        ValueError: If an entry names a field that the reader does not have.
    """
    specs = {spec.name: spec for spec in data.fields}
    if unknown := specs.keys() - {field.name for field in fields}:
        raise ValueError(f'field "{min(unknown)}" is not in this log, which has {", ".join(f.name for f in fields)}')
    return tuple(specs[field.name].apply(field) if field.name in specs else field for field in fields)
