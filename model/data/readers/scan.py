"""Scanning the files of a log as one lazy frame, in which every row has FILE and LINE."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from model.data.readers.files import Source
from model.data.readers.log import FILE, LINE, LogFile, require_columns
from model.data.readers.text import TextFormat, check_lines, header

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
COMPRESSIONS = (".gz", ".zst")
# Values of these types have the same token as their text, so a column that mixes them can be read as text.
TEXT_TYPES = (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null)
# The metadata key of the files that ctr-join writes. They lack the columns of features that no request had sent so far.
JOINED_LOG = "ctr-join"


@dataclass(frozen=True)
class Part:
    """A file of a log, checked but not read.

    Attributes:
        source: The file.
        frame: Its rows, with LINE and the columns of its Hive partition folders. The columns of text files are strings.
        rows: The number of rows that were counted, or None for parquet.
        columns: The type of each column, without LINE.
        is_joined: Whether ctr-join wrote the file, so that an absent column is a missing value.
    """

    source: Source
    frame: pl.LazyFrame
    rows: int | None
    columns: Mapping[str, pl.DataType]
    is_joined: bool = False

    def with_column(self, name: str, value: pl.Expr, dtype: pl.DataType) -> "Part":
        """Return a part with an additional or replaced column."""
        return replace(self, frame=self.frame.with_columns(value.alias(name)), columns={**self.columns, name: dtype})


def open_parts(
    sources: Iterable[Source], delimiter: str = "", quote: str | None = None, names: Sequence[str] = ()
) -> list[Part]:
    """Check files in parallel.

    Args:
        sources: The files. Their extensions determine the format: .parquet, .csv, .tsv or .txt, the last three also
            with .gz or .zst.
        delimiter: The delimiter of text files, or "" for a comma in .csv files and a tab in others.
        quote: The quote character of text files, "" for none, or None for a double quote in .csv files and none in
            others.
        names: The column names of text files without a header line.

    Raises:
        ValueError: If a format is unknown, or a file cannot be read. The message names the file and, if applicable, the
            line.
    """

    def open_part(source: Source) -> Part:
        if source.name.lower().endswith(".parquet"):
            return open_parquet(source)
        ending = text_ending(source)
        if ending not in DELIMITERS:
            formats = "Use .parquet, .csv, .tsv or .txt; the last three also with .gz or .zst."
            raise ValueError(f"{source.name}: unknown format. {formats}")
        chosen = quote if quote is not None else '"' if ending == ".csv" else ""
        return open_text(source, TextFormat(delimiter or DELIMITERS[ending], chosen, tuple(names)))

    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        return list(pool.map(open_part, sources))


def text_ending(source: Source) -> str:
    """Return a file's extension, in lower case and without .gz or .zst."""
    name = source.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return f".{name.rpartition('.')[2]}"


def open_text(source: Source, text: TextFormat) -> Part:
    """Check a text file, plain or compressed.

    Types are not inferred, so a hashed id that looks like a number keeps its leading zeros. Empty values are null. This
    function reads the whole file once, because polars does not report missing columns or stray quotes.

    Raises:
        ValueError: If the file is empty or damaged, or a line has too few or too many columns.
    """
    names = text.names or header(source, text)
    checked = check_lines(source, text, names)
    if checked.swallowed_lines and len(names) > 2:
        print(
            f"warning: {source.name}:{checked.first_swallowed}: {checked.swallowed_lines:,} lines inside quoted values "
            f"look like rows, because they have {len(names)} columns. If a quote before this line is not closed, these "
            'rows are lost: close the quote, or set quote = "" in [data] if quotes have no meaning in this file.',
            file=sys.stderr,
        )
    header_rows = 0 if text.names else 1
    frame = pl.scan_csv(
        source.path,
        separator=text.delimiter,
        has_header=False,
        skip_rows=header_rows,
        schema=dict.fromkeys(names, pl.String()),
        quote_char=text.quote or None,
        row_index_name=LINE,
        row_index_offset=1 + header_rows,
        glob=False,
    )
    multiline_rows = checked.multiline_rows

    def first_line(rows: pl.Series) -> pl.Series:
        """Return the line at which each row begins. polars counts rows, but a quoted value may span several lines."""
        return rows.cast(pl.Int64) + np.searchsorted(multiline_rows, rows.to_numpy())

    line = pl.col(LINE).cast(pl.Int64)
    if len(multiline_rows):
        line = pl.col(LINE).map_batches(first_line, return_dtype=pl.Int64, is_elementwise=True)
    columns = dict.fromkeys(names, pl.String())
    return with_partitions(Part(source, frame.with_columns(line), checked.rows - header_rows, columns))


def open_parquet(source: Source) -> Part:
    """Read the schema of a parquet file.

    Raises:
        ValueError: If the file is not a parquet file.
    """
    frame = pl.scan_parquet(source.path, glob=False, hive_partitioning=False, row_index_name=LINE, row_index_offset=1)
    try:
        columns = {name: dtype for name, dtype in frame.collect_schema().items() if name != LINE}
        is_joined = JOINED_LOG in pl.read_parquet_metadata(source.path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{source.name}: cannot be read as parquet: {error}") from error
    return with_partitions(Part(source, frame.with_columns(pl.col(LINE).cast(pl.Int64)), None, columns, is_joined))


def with_partitions(part: Part) -> Part:
    """Return a part with the columns of its Hive partition folders, as strings, unless the file itself has them."""
    for name, value in part.source.partitions.items():
        if name not in part.columns:
            part = part.with_column(name, pl.lit(value, pl.String), pl.String())
    return part


def rename_columns(part: Part, names: Mapping[str, str]) -> Part:
    """Return a part with new column names.

    Args:
        part: A part.
        names: The new names, keyed by the names in the file.

    Raises:
        ValueError: If the file does not have a column, or two columns would have the same name.
    """
    if part.is_joined:
        names = {old: new for old, new in names.items() if old in part.columns}
    require_columns(part.source.name, names, part.columns)
    columns = {names.get(name, name): dtype for name, dtype in part.columns.items()}
    if len(columns) < len(part.columns):
        twice = next(new for new in names.values() if new in part.columns and new not in names)
        raise ValueError(f'{part.source.name}: rename gives two columns the name "{twice}". Choose another name.')
    return replace(part, frame=part.frame.rename(names), columns=columns)


def join_parts(
    parts: Sequence[Part], columns: Sequence[str], *, numbers: Collection[str] = (), first: int = 0
) -> pl.LazyFrame:
    """Return the rows of several files as one frame with FILE, LINE and the given columns, in the files' order.

    Args:
        parts: The files.
        columns: The columns to keep.
        numbers: The columns that may be read as float64 if their types differ.
        first: The number of the first file.

    Raises:
        ValueError: If a column is missing, or has incompatible types in two files. The message names the files.
    """
    parts = with_later_columns(parts, columns)
    require_columns(parts[0].source.name, columns, parts[0].columns)
    for part in parts[1:]:
        for column in columns:
            if column not in part.columns:
                raise ValueError(
                    f'{part.source.name}: no column "{column}", which {parts[0].source.name} has. The file has '
                    f"{', '.join(part.columns)}. Files of one log need the same columns."
                )
    types = {column: common_type(parts, column, column in numbers) for column in columns}
    frames = [
        part.frame.select(
            pl.lit(first + number, pl.Int32).alias(FILE), LINE, *(pl.col(name).cast(types[name]) for name in columns)
        )
        for number, part in enumerate(parts)
    ]
    return pl.concat(frames) if len(frames) > 1 else frames[0]


def with_later_columns(parts: Sequence[Part], columns: Sequence[str]) -> list[Part]:
    """Return files of which those that ctr-join wrote have null columns for features that only other files have.

    A joined hour has no column for a feature that clients began to send later.
    """
    parts = list(parts)
    for column in columns:
        absent = [number for number, part in enumerate(parts) if part.is_joined and column not in part.columns]
        if not absent or all(column not in part.columns for part in parts):
            continue
        for number in absent:
            parts[number] = parts[number].with_column(column, pl.lit(None, pl.String), pl.String())
        print(
            f'warning: column "{column}" is not in {len(absent):,} of {len(parts):,} joined files, such as '
            f"{parts[absent[0]].source.name}, and is missing in all of their rows.",
            file=sys.stderr,
        )
    return parts


def common_type(parts: Sequence[Part], column: str, is_number: bool) -> pl.DataType:
    """Return the type with which a column can be read from all files.

    Raises:
        ValueError: If there is no such type. The message names two files.
    """
    first = parts[0].columns[column]
    types = {part.columns[column]: part.source.name for part in reversed(parts)}
    if len(types) == 1:
        return first
    if is_number and all(dtype.is_numeric() or dtype == pl.Null for dtype in types):
        return pl.Float64()
    if all(dtype.is_integer() or dtype in TEXT_TYPES for dtype in types):
        return pl.String()
    typed = [dtype for dtype in types if dtype != pl.Null]
    if len(typed) == 1:
        return typed[0]
    one, other = typed[0], typed[1]
    raise ValueError(
        f'column "{column}" has the type {other} in {types[other]} and {one} in {types[one]}. Write it with the same '
        "type in both files."
    )


def log_files(parts: Iterable[Part]) -> tuple[LogFile, ...]:
    """Return the files of a log, for errors and for counting rows."""
    return tuple(LogFile(part.source.name, part.rows) for part in parts)
