"""Reading text files: every value is read as it was written, or the file is rejected with a line number."""

import codecs
import csv
import importlib.util
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.tokens import token
from model.data.readers import blocks
from model.data.readers.files import Source
from model.data.readers.log import FILE, LINE, check_rows_read
from model.data.readers.scan import join_parts, log_files, open_parts
from tests.support.compression import compress
from tests.support.examples import examples

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        ending: The extension of the file: .csv, .tsv or .txt.
        delimiter: The character between values.
        quote: The quote character, or "" if no value is quoted.
        line_end: The end of each line.
    """

    ending: str
    delimiter: str
    quote: str
    line_end: str


Quoting = Literal[0, 1, 2]  # csv.QUOTE_MINIMAL, csv.QUOTE_ALL and csv.QUOTE_NONNUMERIC


def write_with_csv(quoting: Quoting) -> Callable[[Rows, Dialect], str]:
    def write(rows: Rows, dialect: Dialect) -> str:
        file = io.StringIO(newline="")
        csv.writer(
            file,
            delimiter=dialect.delimiter,
            quotechar=dialect.quote or None,
            quoting=quoting if dialect.quote else csv.QUOTE_NONE,
            lineterminator=dialect.line_end,
        ).writerows(rows)
        return file.getvalue()

    return write


QuoteStyle = Literal["necessary", "always", "non_numeric"]


def write_with_polars(style: QuoteStyle) -> Callable[[Rows, Dialect], str]:
    def write(rows: Rows, dialect: Dialect) -> str:
        if not dialect.quote:
            return write_with_csv(csv.QUOTE_MINIMAL)(rows, dialect)
        frame = pl.DataFrame(rows[1:], schema=dict.fromkeys(rows[0], pl.String()), orient="row")
        return frame.write_csv(
            separator=dialect.delimiter,
            quote_char=dialect.quote,
            line_terminator=dialect.line_end,
            quote_style=style,
        )

    return write


def write_with_pandas(quoting: Quoting) -> Callable[[Rows, Dialect], str]:
    def write(rows: Rows, dialect: Dialect) -> str:
        import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return str(
            pd.DataFrame(rows[1:], columns=rows[0]).to_csv(
                sep=dialect.delimiter,
                quotechar=dialect.quote or '"',
                quoting=quoting if dialect.quote else csv.QUOTE_NONE,
                lineterminator=dialect.line_end,
                index=False,
            )
        )

    return write


WRITERS = [
    *map(write_with_csv, get_args(Quoting)),
    *map(write_with_polars, get_args(QuoteStyle)),
    *(map(write_with_pandas, get_args(Quoting)) if importlib.util.find_spec("pandas") else ()),
]
DIALECTS = st.builds(
    lambda ending, delimiter, quote, line_end: Dialect(ending, delimiter, quote, line_end),
    st.sampled_from([".csv", ".tsv", ".txt"]),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(['"', "'", ""]),
    st.sampled_from(["\n", "\r\n"]),
)
VALUES = st.text(st.sampled_from("ab0,;\t|\n\r\"' é\ufeff"), max_size=6)
COMPRESSION = st.sampled_from(["", ".gz", ".zst"])


def read_file(content: bytes, name: str, delimiter: str, quote: str, names: Sequence[str] = ()) -> pl.DataFrame:
    """Return the rows of a file as ctr-prepare reads them, with LINE, after comparing their number with the count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        parts = open_parts([Source(name, path)], delimiter, quote, names)
        frame = join_parts(parts, list(parts[0].columns))
        rows = frame.collect(engine="streaming").drop(FILE)
    check_rows_read(log_files(parts), [len(rows)])
    return rows


def tokens(rows: Sequence[Sequence[str | None]]) -> list[list[str | None]]:
    """Return the tokens of values. Some writers do not quote a carriage return at a line's end."""
    return [[token(value) for value in row] for row in rows]


@settings(max_examples=examples(200), deadline=None)
@given(st.data(), st.sampled_from(WRITERS), DIALECTS, st.booleans(), st.booleans(), COMPRESSION, st.integers(1, 3))
def test_values_are_read_as_any_writer_wrote_them(
    data: st.DataObject,
    write: Callable[[Rows, Dialect], str],
    dialect: Dialect,
    bom: bool,
    last_line_ends: bool,
    compression: str,
    members: int,
) -> None:
    special = {dialect.delimiter, "\n", "\r", *"\"'"} if not dialect.quote else set()
    values = VALUES.map(lambda value: "".join(character for character in value if character not in special))
    columns = data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.lists(values, min_size=columns, max_size=columns), max_size=8))
    if columns == 1 and not dialect.quote:
        rows = [row for row in rows if row[0]]  # an unquoted empty line cannot be written
    header = [f"c{number}" for number in range(columns)]
    text = write([header, *rows], dialect)
    if not last_line_ends and rows and rows[-1][-1]:
        text = text.removesuffix(dialect.line_end)
    content = bom * codecs.BOM_UTF8 + text.encode()
    name = f"log{dialect.ending}{compression}"
    read = read_file(compress(content, compression, members), name, dialect.delimiter, dialect.quote)
    assert tokens(read.drop(LINE).rows()) == tokens(rows)
    assert read[LINE].to_list() == first_lines(text, dialect, len(rows))


def first_lines(text: str, dialect: Dialect, rows: int) -> list[int]:
    """Return the line at which each row begins. A line ends with a line feed, also inside a quoted value."""
    lines, line, quoted = [], 1, False
    for character in text:
        quoted ^= character == dialect.quote
        line += character == "\n"
        if character == "\n" and not quoted:
            lines.append(line)
    return lines[:rows]


def parse(text: str, quote: str) -> list[list[str]] | None:
    """Return the rows of comma-separated text by the grammar of RFC 4180, or None if it does not follow the grammar."""
    rows: list[list[str]] = [[]]
    rest = text if text.endswith("\n") else text + "\n"
    pattern = re.compile(f"{quote}((?:[^{quote}]|{quote}{quote})*){quote}(,|\r?\n)|([^,\n{quote}]*)(,|\n)")
    while rest:
        found = pattern.match(rest)
        if not found:
            return None
        quoted, end, plain, plain_end = found.groups()
        if quoted is None:
            # A carriage return before a line feed belongs to the line's end.
            rows[-1].append(plain.removesuffix("\r") if plain_end == "\n" else plain)
        else:
            rows[-1].append(quoted.replace(quote * 2, quote))
        rest = rest[found.end() :]
        if (end or plain_end) != "," and rest:
            rows.append([])
    return rows if len({len(row) for row in rows}) == 1 else None


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", '"', ",", "\n", '""', '"a"', '",', ',"', '"\n', "\r\n", "\r", "é"])).map(
        "".join
    ),
    COMPRESSION,
    st.sampled_from([7, 1 << 20]),
)
def test_any_text_is_read_by_the_grammar_or_rejected_with_a_line_number(
    text: str, compression: str, block_bytes: int
) -> None:
    """Small blocks must not change the result, even if values and line ends span two blocks."""
    content = f"x,y\n{text}"
    expected = parse(content, '"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        patch.setattr(blocks, "BLOCK_LINES", 2)
        compressed, name = compress(content.encode(), compression), f"log.csv{compression}"
        if expected is None:
            with pytest.raises(ValueError, match=rf"^log\.csv{compression}:[0-9]+: "):
                read_file(compressed, name, ",", '"')
        else:
            read = read_file(compressed, name, ",", '"')
            assert tokens(read.drop(LINE).rows()) == tokens(expected[1:])


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_stray_quote_is_an_error_wherever_it_is(compression: str, ending: str) -> None:
    """If two columns contain a stray quote, polars reads 3 of these 300,000 rows without an error."""
    delimiter = "," if ending == ".csv" else "\t"
    rows = ["click,user,ad,title", *(f"{n % 2},u{n % 7},a{n % 5},x" for n in range(300_000))]
    rows[100_001] = '1,u1,a2,19" wide'
    rows[200_001] = '1,u1,a2,22" wide'
    content = "\n".join(rows).replace(",", delimiter).encode()
    with pytest.raises(ValueError, match=rf'log{ending}{compression}:100002: column "title" holds "19\\" wide"'):
        read_file(compress(content, compression), f"log{ending}{compression}", "", '"')
    read = read_file(compress(content, compression), f"log{ending}{compression}", "", "")
    assert len(read) == 300_000
    assert read["title"][100_000] == '19" wide'


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("length", [140_000, 5_000_000])
def test_a_value_may_be_longer_than_a_block(compression: str, length: int) -> None:
    value = ("a,\n" * length)[:length] + "é"
    content = f'x,y\n1,"{value}"\n2,b\n'.encode()
    read = read_file(compress(content, compression), f"log.csv{compression}", "", '"')
    assert read["y"].to_list() == [value, "b"]
    assert read[LINE].to_list() == [2, 3 + value.count("\n")]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("first", ["a", '"a"', '"a\n"'])
def test_a_byte_order_mark_is_not_part_of_the_first_value(compression: str, first: str) -> None:
    content = codecs.BOM_UTF8 + f"{first},b\nc,d\n".encode()
    read = read_file(compress(content, compression), f"log.csv{compression}", "", '"', names=("x", "y"))
    assert [row[1:] for row in read.rows()] == [(first.strip('"'), "b"), ("c", "d")]
    assert read[LINE].to_list() == [1, 2 + first.count("\n")]


def test_a_quoted_header_may_contain_line_breaks_and_delimiters() -> None:
    read = read_file(b'"a\n,","b"""\r\n1,2\r\n', "log.csv", "", '"')
    assert read.columns == [LINE, "a\n,", 'b"']
    assert read[LINE].to_list() == [3]


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_rows_inside_a_quoted_value_are_a_warning_that_names_the_line(
    compression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quote in line 3 is closed only in line 6, so the two rows between them are part of a value."""
    content = b'x,y,z\n1,a,b\n2,c,"22\n3,d,e\n4,f,g\n5,h,27"\n6,i,"two\nlines"\n'
    read_file(compress(content, compression), f"log.csv{compression}", "", '"')
    error = capsys.readouterr().err
    assert f"log.csv{compression}:4: 3 lines inside quoted values look like rows, because they have 3 columns" in error
    read_file(b'x,y,z\n1,a,"two\nlines"\n', "good.csv", "", '"')
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_line_in_another_encoding_is_an_error_that_names_it(compression: str) -> None:
    content = "x,y\n1,a\n2,José\n3,b\n".encode("latin-1")
    with pytest.raises(ValueError, match=rf"log\.csv{compression}:3: .* is not UTF-8\. Convert the file"):
        read_file(compress(content, compression), f"log.csv{compression}", "", '"')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", compress(b"x,y\n1,2\n", ".gz"), r"a\.csv: the file is compressed\. Add \.gz to its name"),
        ("a.csv", compress(b"x,y\n1,2\n", ".zst"), r"a\.csv: the file is compressed\. Add \.zst to its name"),
        ("a.csv.zst", b"x,y\n1,2\n", r"a\.csv\.zst: is not a zstd file\. Rename it or compress it"),
        ("a.csv.zst", compress(b"x,y\n1,2\n", ".zst")[:-3], r"a\.csv\.zst: the zstd file is truncated or corrupt"),
        ("a.csv.zst", compress(b"x,y\n1,2\n", ".zst") + b"more", r"a\.csv\.zst: the zstd file is truncated or corrupt"),
        ("a.csv.gz", compress(b"x,y\n1,2\n", ".gz")[:-3], r"a\.csv\.gz: the gzip file is truncated or corrupt"),
        ("a.csv", b"x,y\n1,2\n\n", r"a\.csv:3: expected 2 columns, found 1\. Remove the empty line"),
        (
            "a.tsv",
            b'x\ty\n1\t"a\tb"\n',
            r"a\.tsv:2: expected 2 columns, found 3\. If double quotes .* set quote = '\"'",
        ),
        ("a.csv", "x,y\n1,2\n".encode("utf-16"), r"a\.csv:1: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_a_reason(name: str, content: bytes, message: str) -> None:
    quote = "" if name.startswith("a.tsv") else '"'
    with pytest.raises(ValueError, match=message):
        read_file(content, name, "", quote)


def test_a_quote_that_opens_a_huge_value_is_an_error_before_the_whole_file_is_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.data.readers.text.MAX_VALUE_BYTES", 1 << 21)
    content = b'x,y\n1,"a\n' + b"1,a\n" * 3_000_000
    with pytest.raises(ValueError, match=r"log\.csv:2: no quote closes the value that begins with"):
        read_file(content, "log.csv", "", '"')


def test_fewer_rows_than_were_counted_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("x\n1\n2\n3\n")
    files = log_files(open_parts([Source("log.csv", path)]))
    check_rows_read(files, [3])
    with pytest.raises(ValueError, match=r"log\.csv: 2 rows were read, but the file has 3"):
        check_rows_read(files, [2])
