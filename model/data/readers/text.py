"""Checking every line of a text file and counting its rows, by the same rules as polars.

polars silently fills short lines with nulls, and a stray quote makes it merge or skip rows. So a file is read only if
it follows RFC 4180: a quoted value begins and ends at a delimiter or a line end, and quotes inside it are doubled.
"""

import codecs
import csv
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.readers.blocks import read_blocks
from model.data.readers.files import Source

LF, CR = ord("\n"), ord("\r")
MAX_VALUE_BYTES = 1 << 28  # A quote that opens a longer value is a mistake, and checking it takes a lot of memory.
SHOWN = 60  # characters of a value in an error
CLOSE_QUOTES = "Close every quote, and double those inside a value."
QUOTE_KEY = 'If quotes are ordinary characters in this file, set quote = "" in [data].'


@dataclass(frozen=True)
class TextFormat:
    """The format of a text file.

    Attributes:
        delimiter: The character between columns.
        quote: The character around values, or "" if no character is special.
        names: The column names of a file without a header line.
    """

    delimiter: str = ","
    quote: str = '"'
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedLines:
    """What the check of a text file found.

    Attributes:
        rows: The number of rows, including the header.
        multiline_rows: The numbers of the rows (from 1) whose values contain line breaks, with one entry per line
            break. Row r begins at line r + (number of entries below r).
        swallowed_lines: The number of lines inside quoted values that have as many delimiters as a row. An unclosed
            quote may have turned these rows into a value.
        first_swallowed: The number of the first such line, or 0.
    """

    rows: int
    multiline_rows: NDArray[np.int64]
    swallowed_lines: int = 0
    first_swallowed: int = 0


def header(source: Source, text: TextFormat) -> list[str]:
    """Return the column names from the first row.

    Raises:
        ValueError: If the file is empty or damaged, or a column name occurs twice.
    """
    name = source.name
    block = next(read_blocks(source), b"").removeprefix(codecs.BOM_UTF8)
    lines = decode(name, block, 0).split("\n")
    if "\r" in lines[0].removesuffix("\r"):
        raise ValueError(f"{name}:1: the line ends are carriage returns. Convert them, for example with mac2unix.")
    if text.quote:
        reader = csv.reader((line + "\n" for line in lines), delimiter=text.delimiter, quotechar=text.quote)
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise ValueError(f"{name}:1: the column names cannot be read: {error}. {CLOSE_QUOTES}") from error
    else:
        line = lines[0].removesuffix("\r")
        names = line.split(text.delimiter) if line else []
    if not names:
        raise ValueError(
            f"{name}: the file is empty. Its first line must contain the column names. If it has no rows, remove the "
            "file."
        )
    for column in names:
        if names.count(column) > 1:
            raise ValueError(f'{name}:1: the column "{column}" occurs twice. Rename one of them.')
    return names


def check_lines(source: Source, text: TextFormat, names: Sequence[str]) -> CheckedLines:
    """Check the quotes and the number of columns of every row.

    Args:
        source: The file.
        text: Its format.
        names: The names of its columns.

    Raises:
        ValueError: If a row has the wrong number of columns, a quote is misplaced, a line is not UTF-8, or the
            file is damaged. The message names the file and the line.
    """
    check = RowCheck(source.name, text, names)
    rest, wanted = b"", 0
    for number, block in enumerate(read_blocks(source)):
        rest += block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
        if len(rest) >= wanted:
            rest = check.add(rest)
            # An incomplete row is checked again only when it is twice as long, so that the time stays linear.
            wanted = 2 * len(rest)
    if rest and (rest := check.add(rest)):
        raise check.open_quote(rest)
    multiline_rows = np.array(check.multiline_rows, np.int64)
    return CheckedLines(check.rows, multiline_rows, check.swallowed_lines, check.first_swallowed)


class RowCheck:
    """Checks a file block by block.

    Attributes:
        rows: The number of rows so far.
        multiline_rows: See CheckedLines.
        swallowed_lines: See CheckedLines.
        first_swallowed: See CheckedLines.
    """

    def __init__(self, name: str, text: TextFormat, names: Sequence[str]) -> None:
        self.rows = 0
        self.multiline_rows = array("q")
        self.swallowed_lines = self.first_swallowed = 0
        self._name = name
        self._text = text
        self._quote = text.quote.encode()
        self._names = names
        self._lines = 0  # before the current block

    def add(self, block: bytes) -> bytes:
        """Check complete lines that begin with a new row.

        Returns:
            The lines of the last row if a quote in it is still open. Add them again with the next block.
        """
        decode(self._name, block, self._lines)
        characters = np.frombuffer(block, np.uint8)
        is_end, is_delimiter = characters == LF, characters == ord(self._text.delimiter)
        inner_ends = np.empty(0, np.int64)
        if self._quote and self._quote in block:
            outside = self._outside_quotes(block, characters)
            inner_ends = np.flatnonzero(is_end & ~outside)
            is_end &= outside
            is_delimiter &= outside
        ends = np.flatnonzero(is_end)
        size = int(ends[-1]) + 1 if len(ends) else 0
        if len(ends):
            self._check_columns(block, is_delimiter[:size], ends)
        inner_ends = inner_ends[inner_ends < size]
        if len(inner_ends):
            self._find_swallowed(characters[:size], inner_ends)
        self.multiline_rows.extend((self.rows + 1 + np.searchsorted(ends, inner_ends)).tolist())
        self.rows += len(ends)
        self._lines += len(ends) + len(inner_ends)
        if len(block) - size > MAX_VALUE_BYTES:
            raise self.open_quote(block[size:])
        return block[size:]

    def _find_swallowed(self, characters: NDArray[np.uint8], inner_ends: NDArray[np.int64]) -> None:
        """Count the lines inside quoted values that look like rows, because they have as many delimiters.

        Args:
            characters: Complete rows.
            inner_ends: The positions of the line breaks inside quoted values.
        """
        ends = np.flatnonzero(characters == LF)
        before = np.cumsum(characters == ord(self._text.delimiter))
        following = np.searchsorted(ends, inner_ends) + 1  # the lines after these line breaks
        delimiters = before[ends[following]] - before[inner_ends]
        found = following[delimiters == len(self._names) - 1]
        if len(found) and not self.swallowed_lines:
            self.first_swallowed = self._lines + int(found[0]) + 1
        self.swallowed_lines += len(found)

    def open_quote(self, rest: bytes) -> ValueError:
        """Return the error for the last row of a file, in which a quote is still open."""
        start = rest.rfind(self._quote)
        line = self._lines + rest.count(b"\n", 0, start) + 1
        value = shown(rest[start:])
        return ValueError(
            f"{self._name}:{line}: no quote closes the value that begins with {value}. {CLOSE_QUOTES} {QUOTE_KEY}"
        )

    def _check_columns(self, block: bytes, is_delimiter: NDArray[np.bool_], ends: NDArray[np.int64]) -> None:
        """Check the number of delimiters of each row. `ends` are the positions of the rows' line breaks."""
        starts = np.append(0, ends[:-1] + 1)
        expected = len(self._names) - 1
        # Counting in uint8 is fastest. A count that wraps around changes the total.
        dtype = np.uint8 if expected < 256 else np.uint32
        counts: NDArray[Any] = np.add.reduceat(is_delimiter.view(np.uint8), starts, dtype=dtype)
        if (counts == expected).all() and np.count_nonzero(is_delimiter) == expected * len(ends):
            return
        counts = np.add.reduceat(is_delimiter.view(np.uint8), starts, dtype=np.int64)
        row = int(np.flatnonzero(counts != expected)[0])
        line = self._lines + block.count(b"\n", 0, int(starts[row])) + 1
        content = block[starts[row] : ends[row]].strip(b"\r")
        advice = "Write every column, leaving missing values empty."
        if not content:
            advice = "Remove the empty line."
        elif not self._quote and b'"' in content:
            advice = "If double quotes enclose values in this file, set quote = '\"' in [data]."
        raise ValueError(f"{self._name}:{line}: expected {expected + 1} columns, found {counts[row] + 1}. {advice}")

    def _outside_quotes(self, block: bytes, characters: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which characters are outside of quoted values, after checking the position of every quote."""
        delimiter, quote = ord(self._text.delimiter), ord(self._text.quote)
        is_quote = characters == quote
        quotes = np.flatnonzero(is_quote)
        # Quotes alternately open and close a value. The first of two doubled quotes closes, and the second opens.
        opening, closing = quotes[::2], quotes[1::2]
        # At the block's start, index -1 is the block's last character, which is a line break.
        before = characters[opening - 1]
        after = characters[closing + 1]
        after_cr = characters[np.minimum(closing + 2, len(characters) - 1)]
        opens = (before == delimiter) | (before == LF) | (before == quote)
        closes = (after == delimiter) | (after == LF) | (after == quote) | ((after == CR) & (after_cr == LF))
        outside: NDArray[np.bool_] = np.add.accumulate(is_quote.view(np.uint8), dtype=np.uint8) % 2 == 0
        if not (opens.all() and closes.all()):
            first = int(min([*opening[~opens][:1], *closing[~closes][:1]]))
            raise self._misplaced_quote(block, first, outside)
        return outside

    def _misplaced_quote(self, block: bytes, at: int, outside: NDArray[np.bool_]) -> ValueError:
        """Return the error for a quote inside an unquoted value, or for text after a closing quote.

        Args:
            block: The lines.
            at: The position of the first misplaced quote.
            outside: Which characters are outside of quoted values.
        """
        delimiter = self._text.delimiter.encode()
        characters = np.frombuffer(block, np.uint8)[:at]
        row_starts = np.flatnonzero((characters == LF) & outside[:at]) + 1
        row_start = int(row_starts[-1]) if len(row_starts) else 0
        value_starts = np.flatnonzero((characters == delimiter[0]) & outside[:at]) + 1
        column = int(np.count_nonzero(value_starts > row_start))
        start = max(row_start, int(value_starts[-1]) if len(value_starts) else 0)
        end = min(found for limit in (delimiter, b"\n") if (found := block.find(limit, at)) >= 0)
        line = self._lines + block.count(b"\n", 0, start) + 1
        name = f'column "{self._names[column]}"' if column < len(self._names) else "the line"
        reason = "text after its closing quote" if block[start : start + 1] == self._quote else "a quote inside"
        return ValueError(
            f"{self._name}:{line}: {name} holds {shown(block[start:end])}, a value with {reason}. {CLOSE_QUOTES} "
            f"{QUOTE_KEY}"
        )


def decode(name: str, lines: bytes, before: int) -> str:
    """Decode lines of a file.

    Args:
        name: The file.
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
            f"{name}:{line}: byte {byte} is not UTF-8. Convert the file, for example with iconv."
        ) from error


def shown(value: bytes) -> str:
    """Return the beginning of a value, as an error shows it."""
    text = value.decode(errors="replace").strip("\r\n")
    return json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}...", ensure_ascii=False)
