"""Reading the rows of files as a client would send them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from contract.schema import FeatureSchema, Field
from model.data.readers.files import Source, partitions
from model.data.readers.scan import Part, join_parts, open_parts, rename_columns
from model.data_config import Data

BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Batch:
    """Rows of one file, in order.

    Attributes:
        path: The file.
        rows: The columns of the file, and LINE.
    """

    path: Path
    rows: pl.DataFrame


def open_frames(paths: Sequence[Path], columns: Sequence[str], data: Data | None) -> dict[Path, pl.LazyFrame]:
    """Return each file as a lazy frame with these columns and LINE.

    Args:
        paths: The files.
        columns: The columns, by their new names if `data` renames some.
        data: The [data] section that describes the format of the files, or None for the usual format.

    Raises:
        ValueError: If a file cannot be read or has no such column.
    """
    sources = [Source(str(path), path, partitions(path.absolute().parent.parts)) for path in paths]
    if data is None:
        parts = open_parts(sources)
    else:
        parts = [with_new_names(part, data) for part in open_parts(sources, data.delimiter, data.quote, data.columns)]
    return {path: join_parts([part], columns) for path, part in zip(paths, parts, strict=True)}


def with_new_names(part: Part, data: Data) -> Part:
    """Return a file with the new names of the columns that it has. Rows to score often have no label."""
    return rename_columns(part, {old: new for old, new in data.rename.items() if old in part.columns})


def count_rows(frames: Mapping[Path, pl.LazyFrame]) -> int:
    """Return the number of rows in all files."""
    return sum(int(frame.select(pl.len()).collect(engine="streaming").item()) for frame in frames.values())


def read_batches(frames: Mapping[Path, pl.LazyFrame]) -> Iterator[Batch]:
    """Yield the rows of all files in order, at most BATCH_ROWS at a time.

    Raises:
        ValueError: If polars cannot read a file.
    """
    for path, frame in frames.items():
        try:
            for rows in frame.collect_batches(engine="streaming", chunk_size=BATCH_ROWS, maintain_order=True):
                for part in rows.iter_slices(BATCH_ROWS):
                    yield Batch(path, part)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error


def sent_values(rows: pl.DataFrame, schema: FeatureSchema) -> list[dict[str, Any]]:
    """Return rows as a client would send them, by the names that the fields read.

    Text in a column of numbers becomes a number if it is one, because a text file has no types. Timestamps become ISO
    8601 text.
    """
    columns = {}
    for field in schema.fields:
        is_number = field.kind == "numeric" or field.transform == "log_square"
        columns[field.reads] = sent_column(rows[field.reads], field, is_number)
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def sent_column(column: pl.Series, field: Field, is_number: bool) -> list[Any]:
    """Return the values of one column as a client would send them."""
    dtype = column.dtype
    if dtype == pl.String and is_number:
        bare = column.str.strip_chars()
        missing = bare.is_in(["", *(text.strip() for text in field.missing or ())])
        numbers: list[float | None] = bare.set(missing, None).cast(pl.Float64, strict=False).to_list()
        texts: list[str | None] = bare.set(missing, None).to_list()
        return [text if number is None else number for number, text in zip(numbers, texts, strict=True)]
    if dtype.is_float():
        if any(text.strip().lower() == "nan" for text in field.missing or ()):
            column = column.fill_nan(None)
        # The shortest decimal that identifies a float32, as a client writes it: 0.1, not 0.10000000149011612.
        return (column.cast(pl.String).cast(pl.Float64) if dtype == pl.Float32 else column).to_list()
    if isinstance(dtype, pl.Datetime):
        moment = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list()
    if dtype.is_temporal() or dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String).to_list()
    return column.to_list()
