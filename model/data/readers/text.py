"""Checking that every line of a text file has all columns. polars silently fills short lines with nulls."""

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

BLOCK_BYTES = 1 << 20  # the size of one read, small enough for a processor's cache
QUOTE = b'"'


def header(path: Path, separator: str) -> list[str]:
    """Return the column names from the first line.

    Raises:
        ValueError: If the file is empty or damaged, or a column name occurs twice.
    """
    with open_text(path) as file:
        first = file.readline().decode("utf-8-sig", "replace")
    try:
        names = next(csv.reader([first], delimiter=separator), [])
    except csv.Error as error:
        raise quoting_error(path, 1, error) from error
    if not names:
        raise ValueError(f"{path}: the file is empty. Its first line must contain the column names.")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{path}:1: the column "{name}" occurs twice. Rename one of them.')
    return names


def check_lines(path: Path, separator: str, columns: int, quoted: bool) -> NDArray[np.int64]:
    """Check the number of columns of every line.

    Args:
        path: The file, plain or .gz.
        separator: The separator, a single character.
        columns: The number of columns that every line must have.
        quoted: Whether values may be in double quotes. Quoted values may contain separators and line breaks.

    Returns:
        The numbers of the rows (from 1) whose values contain line breaks, with one entry per line break. Row r begins
        at line r + (number of entries below r).

    Raises:
        ValueError: If a line has the wrong number of columns or is not UTF-8, or the file is damaged. The message names
            the file and the line.
    """
    line = 0
    # Counting in uint8 makes this fast. A count may wrap around, but polars rejects a line with 256 excess columns.
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
    """Check a file that contains double quotes. Slower than check_lines(), which calls this function."""
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
    """Decode lines of a file.

    Args:
        path: The file.
        lines: One or more complete lines.
        before: The number of lines in the file before them.

    Raises:
        ValueError: If the lines are not UTF-8. The message names the file and the line.
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
        f"{path}:{line}: expected {columns} columns, found {found}. Write every column, leaving missing values empty."
    )


def quoting_error(path: Path, line: int, error: csv.Error) -> ValueError:
    """Return the error for a line that the csv module cannot read."""
    return ValueError(f"{path}:{line}: {error}. Close every double quote, and double those inside a value.")


def read_blocks(path: Path) -> Iterator[bytes]:
    """Yield the file in blocks of complete lines. If the last line has no line break, one is added."""
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
        ValueError: If a .gz file is damaged. This may also be raised while the `with` block reads the file.
    """
    try:
        with cast(IO[bytes], gzip.open(path) if path.name.endswith(".gz") else path.open("rb")) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is truncated or corrupt: {error}. Copy it again.") from error
