"""Reading a text file, plain or compressed, in blocks of complete lines."""

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, cast

import polars as pl

from model.data.readers.files import Source

BLOCK_BYTES = 1 << 20  # the size of one read, small enough for a processor's cache
BLOCK_LINES = 10_000  # the lines in a block of a .zst file
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def read_blocks(source: Source) -> Iterator[bytes]:
    """Yield the file in blocks of complete lines. If the last line has no line break, one is added.

    Raises:
        ValueError: If a compressed file is damaged, or the file's extension does not match its content.
    """
    name = source.name.lower()
    with source.path.open("rb") as file:
        magic = file.read(len(ZSTD))
        file.seek(0)
        if name.endswith(".gz"):
            yield from gzip_blocks(source, file)
        elif name.endswith(".zst"):
            if magic not in (b"", ZSTD):
                raise ValueError(f"{source.name}: is not a zstd file. Rename it or compress it.")
            yield from zstd_blocks(source)
        elif magic.startswith((GZIP, ZSTD)):
            ending = ".gz" if magic.startswith(GZIP) else ".zst"
            raise ValueError(f"{source.name}: the file is compressed. Add {ending} to its name.")
        else:
            yield from complete_lines(file)


def complete_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of an open file in blocks of complete lines."""
    rest: list[bytes] = []
    while block := file.read(BLOCK_BYTES):
        lines, end, tail = block.rpartition(b"\n")
        if end:
            yield b"".join((*rest, lines, end))
            rest = [tail]
        else:
            rest.append(block)
    if any(rest):
        yield b"".join((*rest, b"\n"))


def gzip_blocks(source: Source, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the blocks of a gzip file."""
    try:
        with gzip.open(file) as text:
            yield from complete_lines(cast(IO[bytes], text))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{source.name}: the gzip file is truncated or corrupt: {error}. Copy it again.") from error


def zstd_blocks(source: Source) -> Iterator[bytes]:
    """Yield the blocks of a zstd file. polars decompresses it, because Python can do so only since version 3.14."""
    lines = pl.scan_lines(source.path, glob=False)
    try:
        for batch in lines.collect_batches(engine="streaming", chunk_size=BLOCK_LINES, maintain_order=True):
            yield ("\n".join(batch["line"].to_list()) + "\n").encode()
    except pl.exceptions.ComputeError as error:
        where = f"{source.name}:{first_undecodable_line(source)}"
        raise ValueError(f"{where}: the line is not UTF-8. Convert the file, for example with iconv.") from error
    except OSError as error:
        raise ValueError(f"{source.name}: the zstd file is truncated or corrupt: {error}. Copy it again.") from error


def first_undecodable_line(source: Source) -> int:
    """Return the number of the first line of a zstd file that is not UTF-8."""
    lines = pl.scan_csv(
        source.path,
        has_header=False,
        separator="\x01",
        quote_char=None,
        schema={"line": pl.String()},
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        row_index_name="number",
        row_index_offset=1,
        glob=False,
    )
    wrong = lines.filter(pl.col("line").str.contains("\ufffd", literal=True)).select("number").head(1)
    return int(wrong.collect(engine="streaming").item())
