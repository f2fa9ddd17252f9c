"""Read the rows of files as a client would send them."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from contract.schema import FeatureSchema, Field
from contract.tokens import marked_numbers
from model.data.prepare.columns import without_marked
from model.data.readers.files import Source
from model.data.readers.log import LINE, require_columns
from model.data.readers.scan import Part, common_type, open_parts, rename_columns, with_later_columns
from model.data_config import Data

BATCH_ROWS = 16_384
CONFIG = "--config EXPERIMENT.toml"
RENAME = f"Add the column to the file. If it has another name, set rename in [data] of {CONFIG}."


@dataclass(frozen=True)
class Batch:
    """Rows of one file, in order.

    Attributes:
        path: The file.
        rows: LINE, the columns that the model reads, and the columns to keep (see kept_name()).
    """

    path: Path
    rows: pl.DataFrame


def open_frames(
    sources: Sequence[Source], columns: Sequence[str], keep: Sequence[str], data: Data | None
) -> dict[Path, pl.LazyFrame]:
    """Return each file as a lazy frame with these columns and LINE. See open_files() and select_columns().

    Raises:
        ValueError: If a file cannot be read or does not have all columns, or a kept column's types do not match.
    """
    return select_columns(open_files(sources, data), columns, keep, data)


def open_files(sources: Sequence[Source], data: Data | None) -> list[Part]:
    """Open files with the columns of `data`.

    Args:
        sources: The files.
        data: The [data] section that describes the format of the files, or None for the usual format.

    Raises:
        ValueError: If a file cannot be read.
    """
    if data is None:
        return open_parts(sources)
    return [with_new_names(part, data) for part in open_parts(sources, data.delimiter, data.quote, data.columns)]


def select_columns(
    parts: Sequence[Part], columns: Sequence[str], keep: Sequence[str], data: Data | None
) -> dict[Path, pl.LazyFrame]:
    """Return each file as a lazy frame with these columns and LINE.

    Args:
        parts: The files.
        columns: The columns that the model reads. A column that `data` renames has its new name.
        keep: Columns to copy to the output. They get the same type in all files.
        data: The [data] section that describes the format of the files, or None for the usual format.

    Raises:
        ValueError: If a file does not have all columns, or a kept column's types do not match.
    """
    parts = with_later_columns(parts, columns)
    for part in parts:
        require_columns(part.source.name, columns, part.columns, section=f"[data] of {CONFIG}", advice=RENAME)
        require_kept(part, keep, {} if data is None else data.rename)
    # A kept column may also be a feature, which is read with the type that it has in its file.
    kept = {name: pl.col(name).cast(common_type(parts, name, False)).alias(kept_name(name)) for name in keep}
    return {part.source.path: part.frame.select(LINE, *columns, *kept.values()) for part in parts}


def require_kept(part: Part, keep: Iterable[str], renamed: Mapping[str, str]) -> None:
    """Check that a file has all columns to keep.

    Args:
        part: The file, with its new column names.
        keep: The columns to keep.
        renamed: The new names, keyed by the names in the file.

    Raises:
        ValueError: If a column is missing. The message shows the valid names.
    """
    for name in keep:
        if name in part.columns:
            continue
        option = f"--keep {shlex.quote(name)}"
        if (new := renamed.get(name, "")) in part.columns:
            raise ValueError(f'{option}: [data] renames this column to "{new}". Use --keep {shlex.quote(new)}.')
        raise ValueError(f'{option}: {part.source.name} has no column "{name}". Use one of: {", ".join(part.columns)}.')


def kept_name(name: str) -> str:
    """Return the name of a kept column in a batch. The prefix avoids a conflict with a feature of the same name."""
    return f"keep:{name}"


def with_new_names(part: Part, data: Data) -> Part:
    """Rename the columns that a file has. Some may be absent: rows to score often have no label."""
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

    Text files have no types. Therefore, text in a numeric column is converted to a number if possible. Timestamps are
    converted to ISO 8601 text.
    """
    readers: dict[str, list[Field]] = {}
    for field in schema.fields:
        readers.setdefault(field.reads, []).append(field)
    columns = [sent_column(rows[name], fields) for name, fields in readers.items()]
    return [dict(zip(readers, values, strict=True)) for values in zip(*columns, strict=True)]


def sent_column(column: pl.Series, fields: Sequence[Field]) -> list[Any]:
    """Return the values of one column as a client would send them, for the fields that read it."""
    dtype = column.dtype
    marked = [number for field in fields for number in marked_numbers(field.missing or ())]
    if dtype == pl.String and any(reads_numbers(field) for field in fields):
        bare = column.str.strip_chars()
        bare = bare.set(bare == "", None)
        numbers = bare.cast(pl.Float64, strict=False)
        is_text, numbers = numbers.is_null(), without_marked(numbers, marked)
        values = zip(is_text.to_list(), bare.to_list(), numbers.to_list(), strict=True)
        return [text if is_word else number for is_word, text, number in values]
    if dtype.is_decimal():
        return column.cast(pl.Float64).to_list()
    if dtype.is_float():
        column = without_marked(column, marked)
        # The shortest decimal that identifies a float32, as a client writes it: 0.1, not 0.10000000149011612.
        return (column.cast(pl.String).cast(pl.Float64) if dtype == pl.Float32 else column).to_list()
    if isinstance(dtype, pl.Datetime):
        moment = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list()
    if dtype.is_temporal() or dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String).to_list()
    return column.to_list()


def reads_numbers(field: Field) -> bool:
    """Return whether a field reads numbers. Text files have no types, so their values must be converted."""
    return field.kind == "numeric" or field.transform == "log_square"
