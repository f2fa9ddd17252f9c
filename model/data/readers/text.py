"""Whether every line of a text file has all columns: polars fills a short one with nulls and says nothing."""

import csv
import gzip
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 1 << 20  # bytes: of a file at a time, small enough for a processor's cache
QUOTE = b'"'
WAY_OUT = "write every value, an empty one for what is missing"


def header(path: Path, separator: str) -> list[str]:
    """The names in the first line.

    Raises:
        ValueError: naming the file, for an empty or damaged one, and for a column that is there twice.
    """
    with _open(path) as file:
        first = file.readline().decode("utf-8-sig", "replace")
    try:
        names = next(csv.reader([first], delimiter=separator), [])
    except csv.Error as error:
        raise _unreadable(path, 1, error) from error
    if not names:
        raise ValueError(f"{path}: is empty: its first line must name the columns")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: line 1 names the column {name!r} twice: give every column a name of its own")
    return names


def check_lines(path: Path, separator: str, columns: int, quoted: bool) -> NDArray[np.int64]:
    """The rows with line ends inside their values, once for each: row r (from 1) begins at line r + (entries below r).

    quoted: values may stand in double quotes, and then hold the separator and line ends.

    Raises:
        ValueError: naming file and line, for one with another number of columns or that is no UTF-8, and for a damaged
            file.
    """
    line = 0
    # Counting in a byte is what makes it fast. It wraps, but polars refuses a line with 256 columns too many.
    kind = np.uint8 if columns < 256 else np.uint32
    for block in _blocks(path):
        if quoted and QUOTE in block:
            return _check_quoted(path, separator, columns)
        _check_utf8(path, block, line)
        found = _separators(block, separator, kind)
        wrong = np.flatnonzero(found != columns - 1)
        if len(wrong):
            text = block.split(b"\n")[wrong[0]]
            raise _wrong(path, line + int(wrong[0]) + 1, text.count(separator.encode()) + 1, columns)
        line += len(found)
    return np.empty(0, np.int64)


def _check_utf8(path: Path, lines: bytes, before: int) -> str:
    """The lines as text. before: how many lines of the file come before them."""
    try:
        return lines.decode()
    except UnicodeDecodeError as error:
        line = before + lines.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line} is no UTF-8 (byte {lines[error.start]:#04x}): convert the file, as iconv does"
        ) from error


def _separators(block: bytes, separator: str, kind: DTypeLike) -> NDArray[Any]:
    """[lines]"""
    characters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    starts = np.append(0, ends[:-1] + 1)
    marks = (characters == ord(separator)).view(np.uint8)
    counts: NDArray[Any] = np.add.reduceat(marks, starts, dtype=kind)
    return counts


def _check_quoted(path: Path, separator: str, columns: int) -> NDArray[np.int64]:
    begin, long = 1, array("q")
    with _open(path) as file:
        text = (_check_utf8(path, line, before) for before, line in enumerate(file))
        reader = csv.reader(text, delimiter=separator, strict=True)  # as polars reads
        try:
            for number, row in enumerate(reader, 1):
                if len(row) != columns:
                    raise _wrong(path, begin, len(row), columns)
                long.extend([number] * (reader.line_num - begin))
                begin = reader.line_num + 1
        except csv.Error as error:
            raise _unreadable(path, begin, error) from error
    return np.array(long, np.int64)


def _unreadable(path: Path, line: int, error: csv.Error) -> ValueError:
    return ValueError(f"{path}: line {line} cannot be read: {error}: close every double quote, write one inside as two")


def _wrong(path: Path, line: int, found: int, columns: int) -> ValueError:
    return ValueError(f"{path}: line {line} has {found} columns instead of {columns}: {WAY_OUT}")


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines, the last one with a line end that the file may lack."""
    rest = b""
    with _open(path) as file:
        while block := file.read(BLOCK):
            lines, end, tail = block.rpartition(b"\n")
            if end:
                yield rest + lines + end
                rest = tail
            else:
                rest += block
    if rest:
        yield rest + b"\n"


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], gzip.open(path) if path.name.endswith(".gz") else path.open("rb")) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: is no whole gzip file: {error}: copy it again") from error
