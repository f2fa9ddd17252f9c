"""Checking that every line of a text file has all columns: polars silently fills a short line with nulls."""

import csv
import gzip
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 20  # read at a time: small enough for a processor's cache
QUOTE = b'"'


def header(path: Path, separator: str) -> list[str]:
    """Return the column names in the first line.

    Raises:
        ValueError: If the file is empty or damaged, or a column occurs twice.
    """
    with open_text(path) as file:
        first = file.readline().decode("utf-8-sig", "replace")
    try:
        names = next(csv.reader([first], delimiter=separator), [])
    except csv.Error as error:
        raise quoting_error(path, 1, error) from error
    if not names:
        raise ValueError(f"{path}: the file is empty. Its first line must name the columns.")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{path}:1: the column "{name}" occurs twice. Rename one of them.')
    return names


def check_lines(path: Path, separator: str, columns: int, quoted: bool) -> NDArray[np.int64]:
    """Check the number of columns of every line.

    Args:
        path: The file, plain or .gz.
        separator: One character.
        columns: The number of columns that every line must have.
        quoted: Whether values may be in double quotes, and then contain the separator and line ends.

    Returns:
        The rows (from 1) whose values contain line ends, one entry for each of these line ends. Row r begins at line
        r + (number of entries below r).

    Raises:
        ValueError: If a line has another number of columns or is not UTF-8, or the file is damaged. The message names
            the file and the line.
    """
    line = 0
    # Counting in bytes is what makes this fast. A count may wrap, but polars rejects a line with 256 columns too many.
    dtype = np.uint8 if columns < 256 else np.uint32
    for block in read_blocks(path):
        if quoted and QUOTE in block:
            return check_quoted_rows(path, separator, columns)
        decode(path, block, line)
        characters = np.frombuffer(block, np.uint8)
        starts = np.append(0, np.flatnonzero(characters == ord("\n"))[:-1] + 1)
        separators: NDArray[Any] = np.add.reduceat((characters == ord(separator)).view(np.uint8), starts, dtype=dtype)
        wrong = np.flatnonzero(separators != columns - 1)
        if len(wrong):
            text = block.split(b"\n")[wrong[0]]
            raise column_error(path, line + int(wrong[0]) + 1, text.count(separator.encode()) + 1, columns)
        line += len(separators)
    return np.empty(0, np.int64)


def check_quoted_rows(path: Path, separator: str, columns: int) -> NDArray[np.int64]:
    """Check a file in which values are in double quotes; slower than check_lines(), which calls it."""
    begin, multiline_rows = 1, array("q")
    with open_text(path) as file:
        text = (decode(path, line, before) for before, line in enumerate(file))
        reader = csv.reader(text, delimiter=separator, strict=True)  # as strict as polars
        try:
            for number, row in enumerate(reader, 1):
                if len(row) != columns:
                    raise column_error(path, begin, len(row), columns)
                multiline_rows.extend([number] * (reader.line_num - begin))
                begin = reader.line_num + 1
        except csv.Error as error:
            raise quoting_error(path, begin, error) from error
    return np.array(multiline_rows, np.int64)


def decode(path: Path, lines: bytes, before: int) -> str:
    """Return lines of a file as text.

    Args:
        path: The file.
        lines: Whole lines.
        before: How many lines of the file come before them.

    Raises:
        ValueError: If they are not UTF-8. The message names the file and the line.
    """
    try:
        return lines.decode()
    except UnicodeDecodeError as error:
        line = before + lines.count(b"\n", 0, error.start) + 1
        byte = f"{lines[error.start]:#04x}"
        raise ValueError(
            f"{path}:{line}: byte {byte} is not UTF-8. Convert the file, for example with iconv."
        ) from error


def column_error(path: Path, line: int, found: int, columns: int) -> ValueError:
    """Return the error for a line with too few or too many columns."""
    return ValueError(
        f"{path}:{line}: expected {columns} columns, found {found}. Write every value, and nothing for a missing one."
    )


def quoting_error(path: Path, line: int, error: csv.Error) -> ValueError:
    """Return the error for a line that the csv module cannot read."""
    return ValueError(
        f"{path}:{line}: {error}. Close every double quote, and write a double quote inside a value twice."
    )


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file in blocks of whole lines. The last line gets its line end if the file has none."""
    rest = b""
    with open_text(path) as file:
        while block := file.read(BLOCK_BYTES):
            lines, end, tail = block.rpartition(b"\n")
            if end:
                yield rest + lines + end
                rest = tail
            else:
                rest += block
    if rest:
        yield rest + b"\n"


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, plain or .gz.

    Raises:
        ValueError: If a .gz file turns out to be damaged, also while the block reads it.
    """
    try:
        with cast(IO[bytes], gzip.open(path) if path.name.endswith(".gz") else path.open("rb")) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is truncated or corrupt: {error}. Copy it again.") from error
