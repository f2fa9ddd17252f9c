"""Splitting a log that is published as a single file, either at random by row or by day."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from model.data.readers.log import FILE, LINE
from model.data_config import Data, SplitAtRandom

SHARES = (8, 1, 1)  # train : valid : test
MIN_DAYS = 3

# SplitMix64 (Steele, Lea and Flood 2014). polars' own hash function may change between versions.
GOLDEN = 0x9E3779B97F4A7C15
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shift right and xor, then multiply
WORD = 2**64
MAX_LINES = 2**40  # in a file
DRAW = "__draw__"


def split_by_row(frame: pl.LazyFrame, seed: int) -> Mapping[str, pl.LazyFrame]:
    """Return train, valid and test with about 80%, 10% and 10% of the rows, chosen at random.

    The choice is a hash of the seed and the row's number in the file. So the same file and seed always give the same
    split, and no row has to be held in memory. Each split keeps the order of the file.
    """
    drawn = with_draw(frame, seed)
    train, valid = (pl.lit(edge, pl.UInt64) for edge in edges())
    draw = pl.col(DRAW)
    parts = {"train": draw < train, "valid": (draw >= train) & (draw < valid), "test": draw >= valid}
    return {split: drawn.filter(part).drop(DRAW) for split, part in parts.items()}


def split_rows(frame: pl.LazyFrame, data: Data, position: Callable[[int, int], str]) -> Mapping[str, pl.LazyFrame]:
    """Return train, valid and test as `split` in [data] describes them.

    Args:
        frame: All rows of the log, with FILE and LINE.
        data: The [data] section.
        position: A function from FILE and LINE to the position of a row in an error message.

    Raises:
        ValueError: If the rows cannot be split in this way.
    """
    split = data.split
    if not isinstance(split, SplitAtRandom) or split.unit:
        raise ValueError('reader = "table" supports split = { by = "random", ... } without unit.')
    row = pl.col(FILE).cast(pl.UInt64) * uint64(MAX_LINES) + pl.col(LINE).cast(pl.UInt64)
    drawn = with_draw(frame, split.seed, row)
    train, valid = (pl.lit(int(share * WORD), pl.UInt64) for share in (1 - split.valid - split.test, 1 - split.test))
    draw = pl.col(DRAW)
    parts = {"train": draw < train, "valid": (draw >= train) & (draw < valid), "test": draw >= valid}
    return {name: drawn.filter(part).drop(DRAW) for name, part in parts.items()}


def split_by_day(frame: pl.LazyFrame, day: pl.Expr, path: Path) -> Mapping[str, pl.LazyFrame]:
    """Return the last day as test, the day before it as valid, and all earlier days as train.

    Args:
        frame: The log.
        day: An expression over `frame` that increases with the day.
        path: The log's file, for the error message.

    Raises:
        ValueError: If there are fewer than three days.
    """
    days = sorted(frame.select(day.unique().alias("day")).collect(engine="streaming")["day"].to_list())
    if len(days) < MIN_DAYS:
        raise ValueError(f'{path}: has {len(days)} days; split = "time" needs {MIN_DAYS}. Use split = "row".')
    valid, test = (pl.lit(last) for last in days[-2:])
    parts = {"train": day < valid, "valid": day == valid, "test": day == test}
    return {split: frame.filter(part) for split, part in parts.items()}


def with_draw(frame: pl.LazyFrame, seed: int, row: pl.Expr | None = None) -> pl.LazyFrame:
    """Return the frame with a column DRAW, uint64. Row n, by default at LINE n, has output n of SplitMix64."""
    row = pl.col(LINE) if row is None else row
    drawn = frame.with_columns((row.cast(pl.UInt64) * uint64(GOLDEN) + uint64(seed % WORD)).alias(DRAW))
    for shift, factor in STEPS:
        shifted = pl.col(DRAW) // uint64(2**shift)
        drawn = drawn.with_columns(((pl.col(DRAW) ^ shifted) * uint64(factor)).alias(DRAW))
    return drawn


def edges() -> tuple[int, int]:
    """Return the values of DRAW, below 2**64, at which train and valid end."""
    train, valid, _ = SHARES
    return train * WORD // sum(SHARES), (train + valid) * WORD // sum(SHARES)


def uint64(value: int) -> pl.Expr:
    """Return a uint64 literal."""
    return pl.lit(value, pl.UInt64)
