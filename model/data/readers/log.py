"""A log as the readers hand it to prepare: lazy frames that nobody holds in memory, and which columns are fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import Field
from model.data.readers.text import check_lines, header
from model.data_config import Data

SPLITS = ("train", "valid", "test")
# The line (of a text file, from 1, the header included) or row (parquet, from 1) of each row in its file.
LINE = "__line__"


@dataclass(frozen=True)
class Log:
    """Three lazy frames with the same columns, all of them with LINE.

    fields: in the order of the schema; mean and std are not known yet. label: a column of 0 and 1.
    splits, paths: by the names in SPLITS. extra: columns of `test` that are no features and go along for later checks.
    """

    fields: tuple[Field, ...]
    label: str
    splits: Mapping[str, pl.LazyFrame]
    paths: Mapping[str, Path]
    extra: tuple[str, ...] = ()


def scan_text(
    path: Path, *, separator: str = ",", names: Sequence[str] | None = None, way_out: str = ""
) -> pl.LazyFrame:
    """A text file, plain or .gz, as columns of strings, and LINE. names: None takes them from the header line.

    Nothing is inferred (a hashed id that happens to look like a number keeps its zeros); an empty value is null.
    Double quotes mean something between commas only. The whole file is looked through at once, for lines that lack a
    column.

    Raises:
        ValueError: naming the file, for one that is missing or empty; and the line with too few columns or too many.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file{'. ' * bool(way_out)}{way_out}")
    columns = header(path, separator) if names is None else list(names)
    quoted = separator == ","
    long = check_lines(path, separator, len(columns), quoted)
    frame = pl.scan_csv(
        path,
        separator=separator,
        has_header=names is None,
        schema=dict.fromkeys(columns, pl.String()),
        quote_char='"' if quoted else None,
        row_index_name=LINE,
        row_index_offset=2 if names is None else 1,
    )
    return frame.with_columns(_line_of_row(long)) if len(long) else frame


def _line_of_row(long: NDArray[np.int64]) -> pl.Expr:
    """LINE, which counts rows, as the line where the row begins. long: as check_lines() has it."""

    def line(rows: pl.Series) -> pl.Series:
        return rows + np.searchsorted(long, rows.to_numpy())

    return pl.col(LINE).map_batches(line, return_dtype=pl.Int64, is_elementwise=True)


def scan_parquet(path: Path, columns: Iterable[str], way_out: str) -> pl.LazyFrame:
    """The named columns of a parquet file, and LINE.

    Raises:
        ValueError: naming the file, and the column that it lacks; `way_out` says where a missing file comes from.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file. {way_out}")
    columns = list(columns)
    try:
        require_columns(path, columns, pl.read_parquet_schema(path))
        return pl.scan_parquet(path, row_index_name=LINE, row_index_offset=1).select(LINE, *columns)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: is no readable parquet file: {error}") from error


def require_columns(path: Path, columns: Iterable[str], present: Iterable[str]) -> None:
    present = list(present)
    for column in columns:
        if column not in present:
            raise ValueError(
                f"{path}: has no column {column!r}, only {', '.join(present)}: correct the experiment file"
            )


def declared(fields: Sequence[Field], data: Data) -> tuple[Field, ...]:
    """A reader's fields as `[[data.fields]]` wants them: kind, missing and transform of those that it names.

    Raises:
        ValueError: for a name that the reader does not have.
    """
    wanted = {spec.name: spec for spec in data.fields}
    if strangers := wanted.keys() - {field.name for field in fields}:
        raise ValueError(f"field {min(strangers)!r} is not in this log: it has {', '.join(f.name for f in fields)}")
    return tuple(wanted[field.name].apply(field) if field.name in wanted else field for field in fields)
