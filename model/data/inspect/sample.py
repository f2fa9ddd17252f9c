"""Reading a sample of a log whose format is not known yet: files, delimiter, quotes and a header line."""

import csv
import glob
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from model.data.readers.files import partitions
from model.data.readers.scan import COMPRESSIONS, DELIMITERS

SAMPLE_ROWS = 100_000
MAX_SAMPLED_FILES = 50
PARQUET_SLICES = 10
SNIFFED_LINES = 1000
MAX_SAMPLE_BYTES = 1 << 28  # of text, by the length of the first lines
MAX_COUNTED_BYTES = 1 << 30  # larger logs are not read to the end
OTHER_DELIMITERS = (",", "\t", ";", "|", "\x01")
QUOTE = '"'
PARQUET = ".parquet"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class TextFormat:
    """The format of text files.

    Attributes:
        delimiter: The delimiter.
        quote: The quote character, or "" if no character is special.
        columns: The names of the columns.
        has_header: Whether the first line contains the names.
    """

    delimiter: str
    quote: str
    columns: tuple[str, ...]
    has_header: bool


@dataclass(frozen=True)
class Sample:
    """A sample of a log.

    Attributes:
        paths: All files.
        text: The format of text files, or None for parquet.
        rows: The sampled rows. The columns of text files are strings. Empty values are null.
        is_complete: Whether the sample contains every row.
    """

    paths: tuple[Path, ...]
    text: TextFormat | None
    rows: pl.DataFrame
    is_complete: bool


def find_files(arguments: Iterable[str]) -> list[Path]:
    """Return the files that these paths, globs and folders name, in name order.

    Files and folders whose names begin with "_" or "." are not part of a log, for example Spark's _SUCCESS.

    Raises:
        ValueError: If a path does not exist, or a folder or a glob contains no file of a known format.
    """
    files: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = [inner for inner in sorted(path.rglob("*")) if is_log_file(inner, path)]
        elif path.exists():
            found = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
            found = [match for match in matches if match.is_file()]
            if not found:
                raise ValueError(f"{argument}: no such file. Give files, folders or globs.")
        if not found:
            raise ValueError(f"{argument}: the folder has no .parquet, .csv, .tsv or .txt files (also .gz or .zst).")
        files.update(dict.fromkeys(found))
    formats = {ending(path) for path in files}
    if len(formats) > 1:
        raise ValueError(f"the files have different formats: {', '.join(sorted(formats))}. Give files of one format.")
    return list(files)


def is_log_file(path: Path, folder: Path) -> bool:
    """Return whether a file in a folder is part of a log."""
    hidden = any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and plain_suffix(path) in (PARQUET, *DELIMITERS)


def plain_suffix(path: Path) -> str:
    """Return the suffix of a file without its compression: ".csv" for x.csv.gz."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def ending(path: Path) -> str:
    """Return the format of a file, by its name.

    Raises:
        ValueError: If the format is not known.
    """
    if (suffix := plain_suffix(path)) in (PARQUET, *DELIMITERS):
        return suffix
    raise ValueError(f"{path}: unknown format. Use .parquet, .csv, .tsv or .txt; the last three also with .gz or .zst.")


def read_sample(paths: Sequence[Path], rows: int = SAMPLE_ROWS) -> Sample:
    """Read the first rows of up to MAX_SAMPLED_FILES files, or rows from all parts of parquet files.

    Args:
        paths: The files, all of one format.
        rows: The maximum number of rows, over all files.

    Raises:
        ValueError: If a file cannot be read, or has other columns than the first one.
    """
    step = max(1, -(-len(paths) // MAX_SAMPLED_FILES))
    sampled = [*paths[::step]]
    if sampled[-1] != paths[-1]:
        sampled.append(paths[-1])
    text = None if ending(paths[0]) == PARQUET else detect_format(paths[0])
    if text is not None:
        lines = first_lines(paths[0], SNIFFED_LINES)
        rows = min(rows, MAX_SAMPLE_BYTES * len(lines) // sum(map(len, lines)))
    per_file = max(1, rows // len(sampled))
    frames: list[pl.DataFrame] = []
    is_complete = len(sampled) == len(paths)
    for path in sampled:
        if text is not None and text.has_header and path != paths[0]:
            check_columns(path, header_of(path, text), text.columns, paths[0])
        try:
            frame, is_whole = read_rows(path, text, per_file)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
        columns = frames[0].columns if frames else frame.columns
        check_columns(path, frame.columns, columns, paths[0])
        frames.append(pl.DataFrame([frame.get_column(name) for name in columns]))  # select() would expand "*"
        is_complete &= is_whole
    try:
        joined = pl.concat(frames, how="vertical_relaxed", rechunk=True)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{paths[0].parent}: a column has different types in different files: {error}") from error
    if not len(joined):
        raise ValueError(f"{paths[0]}: has no rows.")
    return Sample(tuple(paths), text, joined, is_complete)


def check_columns(path: Path, columns: Sequence[str], expected: Sequence[str], first: Path) -> None:
    """Check that a file has the columns of the first one, in any order.

    Raises:
        ValueError: If it does not. The message names a column.
    """
    if missing := [name for name in expected if name not in columns]:
        raise ValueError(
            f'{path}: no column "{missing[0]}", which {first} has. Inspect only files with the same columns.'
        )


def scan(path: Path, text: TextFormat | None) -> pl.LazyFrame:
    """Return a file as a lazy frame. Text is not converted, and lines with missing values are accepted."""
    if text is None:
        return with_partitions(path, pl.scan_parquet(path, glob=False))
    frame = pl.scan_csv(
        path,
        separator=text.delimiter,
        has_header=text.has_header,
        schema=dict.fromkeys(header_of(path, text), pl.String()),
        quote_char=text.quote or None,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    )
    return with_partitions(path, frame)


def with_partitions(path: Path, frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows of a file with the columns of its Hive partition folders, such as day=2026-01-01."""
    found = partitions(path.absolute().parent.parts)
    return frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in found.items())


def read_rows(path: Path, text: TextFormat | None, rows: int) -> tuple[pl.DataFrame, bool]:
    """Return at most this many rows of a file, and whether these are all.

    They are the first rows of a text file, or rows from all parts of a parquet file.
    """
    frame = scan(path, text)
    if text is not None:
        found = frame.head(rows + 1).collect(engine="streaming")
        return found.head(rows), len(found) <= rows
    total = int(frame.select(pl.len()).collect().item())
    if total <= rows:
        return frame.collect(), True
    length, distance = rows // PARQUET_SLICES or 1, total // PARQUET_SLICES
    return pl.concat([frame.slice(part * distance, length) for part in range(PARQUET_SLICES)]).collect(), False


def count_rows(sample: Sample) -> int | None:
    """Return the number of rows of the log, or None if the log is too large to count them."""
    if sample.is_complete:
        return len(sample.rows)
    if sample.text is not None and sum(path.stat().st_size for path in sample.paths) > MAX_COUNTED_BYTES:
        return None
    frames = (scan(path, sample.text) for path in sample.paths)
    return sum(int(frame.select(pl.len()).collect(engine="streaming").item()) for frame in frames)


def detect_format(path: Path) -> TextFormat:
    """Return the format of a text file, from its first lines.

    The usual format of the extension is preferred. Otherwise, the delimiter with the most columns is used with which
    all lines have the same number of columns.

    Raises:
        ValueError: If the file is empty or cannot be read, or a column name occurs twice.
    """
    lines = first_lines(path, SNIFFED_LINES)
    usual = DELIMITERS[ending(path)]
    delimiters = [usual, *(other for other in OTHER_DELIMITERS if other != usual)]
    widths = {delimiter: max(row_width(lines, delimiter, quote) for quote in (QUOTE, "")) for delimiter in delimiters}
    delimiter = usual if widths[usual] > 1 else max(delimiters, key=lambda each: widths[each])
    quote = detect_quote(lines, delimiter, QUOTE if usual == "," else "")
    first = parse(lines[:1], delimiter, quote)[0]
    has_header = not any(NUMBER.fullmatch(name.strip()) for name in first) and sum(not name for name in first) < 2
    if not has_header:
        return TextFormat(delimiter, quote, tuple(f"column_{n}" for n in range(1, len(first) + 1)), False)
    if twice := [name for name, count in Counter(first).items() if count > 1]:
        raise ValueError(f'{path}:1: the column "{twice[0]}" occurs twice. Rename one of them.')
    return TextFormat(delimiter, quote, tuple(first), True)


def detect_quote(lines: Sequence[str], delimiter: str, usual: str) -> str:
    """Return the quote character of text, or "" if no character is special."""
    rows = parse(lines, delimiter, "")
    if not any(QUOTE in value for row in rows for value in row):
        return usual
    has_quoted = any(value.startswith(QUOTE) for row in rows for value in row)
    return QUOTE if has_quoted and row_width(lines, delimiter, QUOTE) else ""


def row_width(lines: Sequence[str], delimiter: str, quote: str) -> int:
    """Return the number of columns that all lines have, or 0 if they differ."""
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


def header_of(path: Path, text: TextFormat) -> tuple[str, ...]:
    """Return the column names of a text file."""
    if not text.has_header:
        return text.columns
    return tuple(parse(first_lines(path, 1), text.delimiter, text.quote)[0])


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first lines of a text file, plain or compressed, without line breaks and byte order mark.

    Raises:
        ValueError: If the file is empty or cannot be read.
    """
    try:
        lines: list[str] = pl.read_lines(path, n_rows=count, glob=False)["line"].to_list()
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "If it is text, convert it to UTF-8, for example with iconv."
        raise ValueError(f"{path}: cannot be read: {reason}. {fix}") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}: the file is empty.")
    return [line.removesuffix("\r").removeprefix("\ufeff" if not number else "") for number, line in enumerate(lines)]
