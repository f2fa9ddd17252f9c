"""Reading a sample of a log whose format is not known yet: files, delimiter, quotes and a header line."""

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from model.data.readers.files import Source
from model.data.readers.log import LINE
from model.data.readers.scan import COMPRESSIONS, DELIMITERS, Part, open_parquet, text_ending, with_partitions
from model.data.readers.text import RowCheck, TextFormat, header

SAMPLE_ROWS = 100_000
MAX_SAMPLED_FILES = 50
SLICES = 10  # parts of a file that are sampled
SNIFFED_LINES = 1000
MAX_SAMPLE_BYTES = 1 << 28  # of text, estimated from the length of the first lines
MAX_COUNTED_BYTES = 1 << 30  # larger logs are not read to the end
OTHER_DELIMITERS = (",", "\t", ";", "|", "\x01")
QUOTE = '"'
PARQUET = ".parquet"
MAX_LINES_OF_A_VALUE = 20  # at the beginning of a slice, a longer quoted value is not recognized
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

# Which rows of a file were read: all rows, the first rows, or rows from all parts of the file.
Extent = Literal["all", "first", "spread"]


@dataclass(frozen=True)
class Sample:
    """A sample of a log.

    Attributes:
        sources: All files.
        text: The format of text files, or None for parquet.
        rows: The sampled rows. The columns of text files are strings. Empty values are null.
        is_complete: Whether the sample contains every row.
        is_head: Whether the sample contains only the first rows of a few files, so that it does not show the whole
            period.
    """

    sources: tuple[Source, ...]
    text: TextFormat | None
    rows: pl.DataFrame
    is_complete: bool
    is_head: bool = False


def read_sample(sources: Sequence[Source], rows: int = SAMPLE_ROWS) -> Sample:
    """Read rows from all parts of up to MAX_SAMPLED_FILES files.

    Args:
        sources: The files, all of one format.
        rows: The maximum number of rows, over all files.

    Raises:
        ValueError: If a file cannot be read, or its columns differ from those of the first file.
    """
    step = max(1, -(-len(sources) // MAX_SAMPLED_FILES))
    sampled = [*sources[::step]]
    if sampled[-1] != sources[-1]:
        sampled.append(sources[-1])
    text = None if text_ending(sources[0]) == PARQUET else detect_format(sources[0])
    if text is not None:
        rows = min(rows, int(MAX_SAMPLE_BYTES / line_bytes(sources[0])))
    per_file, is_small = max(1, rows // len(sampled)), bytes_of(sources) <= MAX_COUNTED_BYTES
    frames: list[pl.DataFrame] = []
    extents: set[Extent] = set()
    for source in sampled:
        try:
            frame, extent = read_rows(source, text, per_file, is_small)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{source.name}: cannot be read: {' '.join(str(error).split())[:300]}") from error
        columns = frames[0].columns if frames else frame.columns
        check_columns(source.name, frame.columns, columns, sources[0].name)
        frames.append(pl.DataFrame([frame.get_column(name) for name in columns]))  # select() would expand "*"
        extents.add(extent)
    try:
        joined = pl.concat(frames, how="vertical_relaxed", rechunk=True)
    except pl.exceptions.PolarsError as error:
        folder = sources[0].path.parent
        raise ValueError(f"{folder}: a column has different types in different files: {error}") from error
    if not len(joined):
        raise ValueError(f"{sources[0].name}: has no rows.")
    is_complete = extents == {"all"} and len(sampled) == len(sources)
    return Sample(tuple(sources), text, joined, is_complete, "first" in extents and len(sampled) < SLICES)


def check_columns(name: str, columns: Sequence[str], expected: Sequence[str], first: str) -> None:
    """Check that a file has the columns of the first file, in any order.

    Raises:
        ValueError: If a column is missing. The message names the column.
    """
    if missing := [column for column in expected if column not in columns]:
        raise ValueError(
            f'{name}: no column "{missing[0]}", which {first} has. Inspect only files with the same columns.'
        )


def scan(source: Source, text: TextFormat | None) -> pl.LazyFrame:
    """Return a file as a lazy frame. Text is not converted, and lines with missing values are accepted."""
    if text is None:
        return open_parquet(source).frame.drop(LINE)
    names = text.names or header(source, text)
    frame = pl.scan_csv(
        source.path,
        separator=text.delimiter,
        has_header=not text.names,
        schema=dict.fromkeys(names, pl.String()),
        quote_char=text.quote or None,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    )
    return with_partitions(Part(source, frame, None, dict.fromkeys(names, pl.String()))).frame


def read_rows(source: Source, text: TextFormat | None, rows: int, is_small: bool) -> tuple[pl.DataFrame, Extent]:
    """Return rows from all parts of a file, and which part of the file they are from.

    Args:
        source: The file.
        text: The format of a text file.
        rows: The maximum number of rows.
        is_small: Whether the text files are small enough to be read to the end. If not, the rows after the first rows
            are found by their position in the file, and only the first rows of a compressed file are read.
    """
    frame, slices = scan(source, text), min(SLICES, rows)
    length = rows // slices
    if text is not None:
        first = frame.head(rows + 1).collect(engine="streaming")
        if len(first) <= rows:
            return first, "all"
        if not is_small:
            found = [] if source.name.lower().endswith(COMPRESSIONS) else rows_inside(source, text, length, slices)
            return (pl.concat([first.head(length), *found]), "spread") if found else (first.head(rows), "first")
    total = int(frame.select(pl.len()).collect(engine="streaming").item())
    if total <= rows:
        return frame.collect(), "all"
    starts = np.linspace(0, total - length, slices).astype(int).tolist()
    if text is None:
        return pl.concat([frame.slice(start, length) for start in starts]).collect(), "spread"
    number = pl.col(LINE)
    wanted = pl.any_horizontal(number.is_between(start, start + length - 1) for start in starts)
    return frame.with_row_index(LINE).filter(wanted).drop(LINE).collect(engine="streaming"), "spread"


def rows_inside(source: Source, text: TextFormat, rows: int, slices: int) -> list[pl.DataFrame]:
    """Return rows from evenly spaced positions in a text file, without the rows at its beginning."""
    size = round(line_bytes(source) * (rows + 1))
    offsets = np.linspace(0, max(0, source.path.stat().st_size - size), slices).astype(int).tolist()[1:]
    found = (rows_at(source, text, offset, size, rows) for offset in offsets)
    return [frame for frame in found if frame is not None]


def rows_at(source: Source, text: TextFormat, offset: int, size: int, rows: int) -> pl.DataFrame | None:
    """Return the rows after a position in a text file, or None if no complete row is found there."""
    with source.path.open("rb") as file:
        file.seek(offset)
        file.readline()
        block = file.read(size)
    names = text.names or header(source, text)
    block = block[: block.rfind(b"\n") + 1]
    for _ in range(MAX_LINES_OF_A_VALUE):
        try:
            rest = RowCheck(source.name, text, names).add(block) if block else b""
        except ValueError:  # the position is inside a quoted value
            block = block.partition(b"\n")[2]
            continue
        block = block.removesuffix(rest)
        break
    else:
        return None
    if not block:
        return None
    schema = dict.fromkeys(names, pl.String())
    frame = pl.read_csv(
        block,
        separator=text.delimiter,
        has_header=False,
        schema=schema,
        quote_char=text.quote or None,
        n_rows=rows,
    )
    return with_partitions(Part(source, frame.lazy(), None, schema)).frame.collect()


def bytes_of(sources: Iterable[Source]) -> int:
    """Return the size of all files."""
    return sum(source.path.stat().st_size for source in sources)


def line_bytes(source: Source) -> float:
    """Return the mean length of the first lines of a text file, with their line breaks."""
    lines = first_lines(source, SNIFFED_LINES)
    return sum(len(line.encode()) + 1 for line in lines) / len(lines)


def count_rows(sample: Sample) -> int | None:
    """Return the number of rows of the log, or None if the log is too large to count them."""
    if sample.is_complete:
        return len(sample.rows)
    if sample.text is not None and bytes_of(sample.sources) > MAX_COUNTED_BYTES:
        return None
    frames = (scan(source, sample.text) for source in sample.sources)
    return sum(int(frame.select(pl.len()).collect(engine="streaming").item()) for frame in frames)


def detect_format(source: Source) -> TextFormat:
    """Return the format of a text file, from its first lines.

    The usual delimiter of the file's extension is preferred. Otherwise, the delimiter must split all lines into the
    same number of columns. If several delimiters do, the delimiter with the most columns is used.

    Raises:
        ValueError: If the file is empty or cannot be read, or a column name occurs twice.
    """
    lines = first_lines(source, SNIFFED_LINES)
    usual = DELIMITERS[text_ending(source)]
    delimiters = [usual, *(other for other in OTHER_DELIMITERS if other != usual)]
    widths = {delimiter: max(row_width(lines, delimiter, quote) for quote in (QUOTE, "")) for delimiter in delimiters}
    delimiter = usual if widths[usual] > 1 else max(delimiters, key=lambda each: widths[each])
    quote = detect_quote(lines, delimiter, QUOTE if usual == "," else "")
    first = parse(lines[:1], delimiter, quote)[0]
    has_header = not any(NUMBER.fullmatch(name.strip()) for name in first) and sum(not name for name in first) < 2
    if not has_header:
        return TextFormat(delimiter, quote, tuple(f"column_{n}" for n in range(1, len(first) + 1)))
    header(source, TextFormat(delimiter, quote))  # raises an error if the column names are invalid
    return TextFormat(delimiter, quote)


def detect_quote(lines: Sequence[str], delimiter: str, usual: str) -> str:
    """Return the quote character of text, or "" if no character is special."""
    rows = parse(lines, delimiter, "")
    if not any(QUOTE in value for row in rows for value in row):
        return usual
    has_quoted = any(value.startswith(QUOTE) for row in rows for value in row)
    return QUOTE if has_quoted and row_width(lines, delimiter, QUOTE) else ""


def row_width(lines: Sequence[str], delimiter: str, quote: str) -> int:
    """Return the number of columns that all lines have, or 0 if the lines differ."""
    try:
        rows = parse(lines, delimiter, quote)
    except csv.Error:
        return 0
    # The last value may continue after the lines that were read.
    widths = {len(row) for row in (rows[:-1] if len(lines) >= SNIFFED_LINES else rows) if row}
    return widths.pop() if len(widths) == 1 else 0


def parse(lines: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    """Return the values of lines. Raises csv.Error if a quote is not closed."""
    text = (f"{line}\n" for line in lines)
    is_cut = len(lines) in (1, SNIFFED_LINES)
    limit = csv.field_size_limit(sys.maxsize)  # the limit applies to the whole process, so it is restored
    try:
        if not quote:
            return list(csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE))
        return list(csv.reader(text, delimiter=delimiter, quotechar=quote, strict=not is_cut))
    finally:
        csv.field_size_limit(limit)


def first_lines(source: Source, count: int) -> list[str]:
    """Return the first lines of a text file, plain or compressed, without line breaks or a byte order mark.

    Raises:
        ValueError: If the file is empty or cannot be read.
    """
    try:
        lines: list[str] = pl.read_lines(source.path, n_rows=count, glob=False)["line"].to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "If it is text, convert it to UTF-8, for example with iconv."
        raise ValueError(f"{source.name}: cannot be read: {reason}. {fix}") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"{source.name}: the file is empty.")
    return [line.removesuffix("\r").removeprefix("\ufeff" if not number else "") for number, line in enumerate(lines)]
