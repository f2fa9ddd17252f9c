"""Splitting a log into train, valid and test: by time, or at random by row or by unit."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from contract.tokens import marked_numbers, token
from model.data.readers.log import FILE, LINE
from model.data.timestamps import EXPECTED_TIME, future_warning, unix_seconds
from model.data_config import Data, SplitAtRandom, SplitByTime

SHARES = (8, 1, 1)  # train : valid : test
MIN_DAYS = 3

# SplitMix64 (Steele, Lea and Flood 2014). polars' own hash function may change between versions.
GOLDEN = 0x9E3779B97F4A7C15
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # shift right and xor, then multiply
WORD = 2**64
MAX_LINES = 2**40  # in a file
DRAW = "__draw__"
TIME = "__time__"
DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}  # in seconds


def format_position(file: int, line: int) -> str:
    """Return the position of a row if the names of the files are not known."""
    return f"file {file + 1}, line {line}"


def split_rows(
    frame: pl.LazyFrame, data: Data, position: Callable[[int, int], str] = format_position
) -> Mapping[str, pl.LazyFrame]:
    """Split a log as `data.split` specifies. Each split keeps the order of the log.

    Args:
        frame: The log, with LINE and, if it has several files, FILE.
        data: The [data] section, whose `split` is a table.
        position: A function from FILE and LINE to the position of a row in an error message.

    Raises:
        ValueError: If a time cannot be read, or a split by time has an empty part.
    """
    if isinstance(data.split, SplitByTime):
        return split_by_time(frame, data.split, data.time, position)
    assert isinstance(data.split, SplitAtRandom)
    return split_at_random(frame, data.split, position, data.missing)


def split_by_time(
    frame: pl.LazyFrame, split: SplitByTime, column: str, position: Callable[[int, int], str] = format_position
) -> Mapping[str, pl.LazyFrame]:
    """Return the newest rows as test, the rows before them as valid, and older rows as train.

    The durations count back from the time of the newest row, which need not be the last row of the log.

    Args:
        frame: The log.
        split: The durations.
        column: The column with the time of each row.
        position: See split_rows().

    Raises:
        ValueError: If a time is missing or cannot be read, or a part is empty.
    """
    first, last = first_and_last(frame, column, position)
    if warning := future_warning(column, first, last, datetime.now(UTC).timestamp()):
        print(f"warning: {warning}", file=sys.stderr)
    valid, test, gap = (seconds_of(text) if text else 0 for text in (split.valid, split.test, split.gap))
    valid_end = last - test - gap
    train_end = valid_end - valid - gap
    time = pl.col(TIME)
    train_start = train_end - seconds_of(split.train) if split.train else first - 1
    periods = {
        "train": (time > train_start) & (time <= train_end),
        "valid": (time > valid_end - valid) & (time <= valid_end),
        "test": time > last - test,
    }
    seconds = pl.col(column).map_batches(unix_seconds, return_dtype=pl.Int64, is_elementwise=True).alias(TIME)
    timed = frame.with_columns(seconds)
    parts = {name: timed.filter(period).drop(TIME) for name, period in periods.items()}
    empty = next((name for name in ("train", "valid") if is_empty(parts[name])), None)  # the newest row is in test
    if empty:
        raise ValueError(
            f"split: {empty} would be empty. The log runs from {iso(first)} to {iso(last)}, and the {describe(split)} "
            "count back from its end. Set shorter durations, or add older files."
        )
    return parts


def first_and_last(frame: pl.LazyFrame, column: str, position: Callable[[int, int], str]) -> tuple[int, int]:
    """Return the times of the oldest and the newest row in Unix seconds.

    Raises:
        ValueError: If there are no rows, or a time is missing or cannot be read.
    """
    first: int | None = None
    last: int | None = None
    file = [FILE] if FILE in frame.collect_schema() else []
    for batch in frame.select(LINE, *file, column).collect_batches(engine="streaming", maintain_order=True):
        try:
            seconds = unix_seconds(batch[column])
        except ValueError as error:
            raise ValueError(f'column "{column}" {error}. The key time names this column.') from error
        if seconds.null_count():
            row = batch.filter(seconds.is_null()).row(0, named=True)
            value = row[column]
            holds = "is empty" if value is None else f"holds {json.dumps(value, default=str, ensure_ascii=False)}"
            raise ValueError(
                f'{position(row.get(FILE, 0), row[LINE])}: column "{column}" {holds}; {EXPECTED_TIME}. A split by time '
                "needs the time of every row: fix or remove the row."
            )
        for found in (seconds.min(), seconds.max()):
            assert isinstance(found, int)
            first, last = min(found, found if first is None else first), max(found, found if last is None else last)
    if first is None or last is None:
        raise ValueError("split: the log has no rows")
    return first, last


def split_at_random(
    frame: pl.LazyFrame,
    split: SplitAtRandom,
    position: Callable[[int, int], str] = format_position,
    missing: Sequence[str] = (),
) -> Mapping[str, pl.LazyFrame]:
    """Return shares of the rows, or of the units, as valid and test, and the rest as train.

    The choice is a hash of the seed and the row's file and line, or of the seed and the unit. So the same log and seed
    always give the same split, and no row has to be held in memory. A unit stays in its split when rows are added. A
    row without a unit is assigned by its file and line.

    Args:
        frame: The log.
        split: The shares, the seed and the unit.
        position: See split_rows().
        missing: The units that mean "missing".

    Raises:
        ValueError: If the column of the units has a type that cannot be compared.
    """
    row = pl.col(LINE).cast(pl.UInt64)
    if FILE in frame.collect_schema():
        row += pl.col(FILE).cast(pl.UInt64) * uint64(MAX_LINES)
    drawn = with_draw(frame, split.seed, row)
    if split.unit:
        check_units(frame, split.unit, position, missing)

        def draw_units(units: pl.Series) -> pl.Series:
            return unit_draws(units, split.seed, missing)

        draws = pl.col(split.unit).map_batches(draw_units, return_dtype=pl.UInt64, is_elementwise=True)
        drawn = drawn.with_columns(draws.fill_null(pl.col(DRAW)).alias(DRAW))
    train, valid = (uint64(int(share * WORD)) for share in (1 - split.valid - split.test, 1 - split.test))
    draw = pl.col(DRAW)
    parts = {"train": draw < train, "valid": (draw >= train) & (draw < valid), "test": draw >= valid}
    return {name: drawn.filter(part).drop(DRAW) for name, part in parts.items()}


def check_units(
    frame: pl.LazyFrame, unit: str, position: Callable[[int, int], str], missing: Sequence[str] = ()
) -> None:
    """Check that the units of a log can be read. This depends on their type and, for floats, on NaN and infinities."""
    is_bad = pl.col(unit).is_not_null()
    if frame.collect_schema()[unit].is_float():
        is_bad &= ~pl.col(unit).is_finite() & ~pl.col(unit).is_in(marked_numbers(missing))
    file = [FILE] if FILE in frame.collect_schema() else []
    for row in frame.filter(is_bad).select(LINE, *file, unit).head(1).collect(engine="streaming").iter_rows(named=True):
        try:
            token(row[unit])
        except ValueError as error:
            where = position(row.get(FILE, 0), row[LINE])
            raise ValueError(f'{where}: column "{unit}" is the unit of the split, so each value {error}') from error


def unit_draws(units: pl.Series, seed: int, missing: Sequence[str] = ()) -> pl.Series:
    """Return a hash of the seed and each unit, uint64. Equal units have equal hashes, whatever the column's type.

    The hash is null for a unit that is null, blank or in `missing`.
    """
    key = (seed % WORD).to_bytes(8, "little")

    def draw(value: Any) -> int | None:
        if isinstance(value, float) and not math.isfinite(value):
            return None  # the value is in `missing`, because check_units() rejects all others
        unit = token(value)
        if unit is None or unit in missing:
            return None
        return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8, key=key).digest(), "little")

    distinct = units.drop_nulls().unique()
    draws = pl.Series([draw(unit) for unit in distinct.to_list()], dtype=pl.UInt64)
    return units.replace_strict(distinct, draws, default=None, return_dtype=pl.UInt64)


def seconds_of(duration: str) -> int:
    """Return a duration such as "12h" in seconds."""
    return int(duration[:-1]) * DURATION_UNITS[duration[-1]]


def describe(split: SplitByTime) -> str:
    """Return the durations of a split, as in the experiment's file."""
    keys = {"train": split.train, "valid": split.valid, "test": split.test, "gap": split.gap}
    return ", ".join(f'{key} = "{value}"' for key, value in keys.items() if value)


def iso(seconds: int) -> str:
    """Format Unix seconds, such as 2026-12-01T00:00:05Z."""
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


def is_empty(frame: pl.LazyFrame) -> bool:
    """Return whether a frame has no rows. Only its first row is read."""
    return not len(frame.select(LINE).head(1).collect(engine="streaming"))


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
