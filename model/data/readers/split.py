"""Train, valid and test of a log that is published in one piece: by row and seed, or by day."""

from collections.abc import Mapping

import polars as pl

from model.data.readers.log import LINE

SHARES = (8, 1, 1)  # train : valid : test
FEWEST_DAYS = 3

# SplitMix64 (Steele, Lea and Flood 2014): polars' own hash may differ from one version to the next.
GOLDEN = 0x9E3779B97F4A7C15
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shift right and xor, then multiply
WORD = 2**64
DRAW = "__draw__"


def split_by_row(frame: pl.LazyFrame, seed: int) -> Mapping[str, pl.LazyFrame]:
    """About 8, 1 and 1 rows of ten, drawn by a hash of the row's number in its file and the seed.

    No row is held in memory, the same file and seed make the same split in every run, and each part keeps the
    order of the file.
    """
    drawn = with_draw(frame, seed)
    train, valid = (pl.lit(edge, pl.UInt64) for edge in edges())
    draw = pl.col(DRAW)
    parts = {"train": draw < train, "valid": (draw >= train) & (draw < valid), "test": draw >= valid}
    return {split: drawn.filter(part).drop(DRAW) for split, part in parts.items()}


def split_by_day(frame: pl.LazyFrame, day: pl.Expr, where: object) -> Mapping[str, pl.LazyFrame]:
    """The last day is test, the one before it valid, all earlier ones train.

    day: an expression over `frame`, larger for a later day. where: names the log in the error.

    Raises:
        ValueError: for fewer than three days.
    """
    days = sorted(frame.select(day.unique().alias("day")).collect(engine="streaming")["day"].to_list())
    if len(days) < FEWEST_DAYS:
        raise ValueError(f'{where}: holds {len(days)} days, split = "time" needs {FEWEST_DAYS}: use split = "row"')
    valid, test = (pl.lit(one) for one in days[-2:])
    parts = {"train": day < valid, "valid": day == valid, "test": day == test}
    return {split: frame.filter(part) for split, part in parts.items()}


def with_draw(frame: pl.LazyFrame, seed: int) -> pl.LazyFrame:
    """With column DRAW, uint64: for the row at LINE n, output n of SplitMix64 started at the seed."""
    start = pl.col(LINE).cast(pl.UInt64) * _word(GOLDEN) + _word(seed % WORD)
    drawn = frame.with_columns(start.alias(DRAW))
    for shift, factor in STEPS:
        shifted = pl.col(DRAW) // _word(2**shift)
        drawn = drawn.with_columns(((pl.col(DRAW) ^ shifted) * _word(factor)).alias(DRAW))
    return drawn


def edges() -> tuple[int, int]:
    """The draws at which train and valid end, of 2**64."""
    train, valid, _ = SHARES
    return train * WORD // sum(SHARES), (train + valid) * WORD // sum(SHARES)


def _word(value: int) -> pl.Expr:
    return pl.lit(value, pl.UInt64)
