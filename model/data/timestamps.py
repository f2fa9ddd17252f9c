"""Columns of timestamps as Unix seconds, parsed like the values of a request in contract/timestamps.py."""

from datetime import UTC, datetime

import polars as pl

from contract.timestamps import MAX_MILLISECONDS, MAX_SECONDS, MIN_MILLISECONDS, MIN_SECONDS, timestamp

# The notations of most logs, which polars reads much faster than Python.
REGULAR = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-5][0-9](?:[.,][0-9]+)?Z?$"
INTEGER = r"^[0-9]{9,13}$"
EXPECTED_TIME = "expected an ISO 8601 time, or Unix seconds or milliseconds"  # in error messages
MAX_AHEAD_S = 86_400  # The clocks and time zones of logs may differ by this much.
MIN_HOUR = 1990010100  # as YYYYMMDDHH
YEAR_0 = "0000"  # polars has this year, and Python does not


def unix_seconds(column: pl.Series) -> pl.Series:
    """Return a column of timestamps as Unix seconds, int64, rounded down. Null means missing or unreadable.

    Raises:
        ValueError: If the column's type cannot represent timestamps. The message states only the reason.
    """
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime):
        return column.dt.timestamp("us") // 1_000_000
    if dtype == pl.Date:
        return column.cast(pl.Int64) * 86_400
    if dtype.is_integer():
        return seconds_of_integers(column.cast(pl.Int64, strict=False))
    if dtype == pl.Float64:
        return seconds_of_integers(column.floor().cast(pl.Int64, strict=False))
    if dtype in (pl.String, pl.Categorical, pl.Enum) or column.null_count() == len(column):
        return seconds_of_text(column.cast(pl.String).str.strip_chars())
    raise ValueError(f"has the type {dtype}; expected text, timestamps, integers or 64-bit floats")


def future_warning(name: str, first: int, last: int, now_s: float) -> str | None:
    """Return a warning if a log ends in the future, as one does whose times are YYYYMMDDHH and are read as seconds.

    Args:
        name: The column with the times.
        first: The oldest time, in Unix seconds.
        last: The newest time, in Unix seconds.
        now_s: The present time, in Unix seconds.
    """
    if last <= now_s + MAX_AHEAD_S:
        return None
    ends = f'column "{name}": the newest time is {datetime.fromtimestamp(last, UTC):%Y-%m-%d %H:%M}, in the future.'
    if (hour := as_hour(last)) is None or as_hour(first) is None:
        return f"{ends} Check the clock and the unit: numbers are read as Unix seconds or milliseconds."
    return (
        f"{ends} The values look like YYYYMMDDHH, but numbers are read as Unix seconds. Write {last} as "
        f'{hour:%Y-%m-%dT%H:00} in the file (in pandas: pd.to_datetime(log["{name}"].astype(str), format="%Y%m%d%H")).'
    )


def as_hour(number: int) -> datetime | None:
    """Return a number such as 2026013121 as a date with an hour, or None if it is not one."""
    try:
        return datetime.strptime(str(number), "%Y%m%d%H").replace(tzinfo=UTC) if number >= MIN_HOUR else None
    except ValueError:
        return None


def seconds_of_integers(numbers: pl.Series) -> pl.Series:
    """Return Unix seconds or milliseconds, int64, as seconds. A number outside the years 1990 to 2099 becomes null."""
    value = pl.col(numbers.name)
    seconds = (
        pl.when(value.is_between(MIN_SECONDS, MAX_SECONDS, closed="left"))
        .then(value)
        .when(value.is_between(MIN_MILLISECONDS, MAX_MILLISECONDS, closed="left"))
        .then(value // 1000)
    )
    return numbers.to_frame().select(seconds.alias(numbers.name)).to_series()


def seconds_of_text(text: pl.Series) -> pl.Series:
    """Return timestamps, without white space around them, as Unix seconds. Unreadable text becomes null."""
    value = pl.col(text.name)
    is_regular = value.str.contains(REGULAR) & ~value.str.starts_with(YEAR_0)
    moments = value.str.slice(0, 19).str.replace("T", " ", literal=True)
    numbers = pl.when(value.str.contains(INTEGER)).then(value).cast(pl.Int64, strict=False).alias("number")
    regular = pl.when(is_regular).then(moments).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).alias("moment")
    parsed = text.to_frame().select(numbers, regular)
    seconds = seconds_of_integers(parsed["number"]).fill_null(unix_seconds(parsed["moment"])).rename(text.name)
    others = text.filter(seconds.is_null() & text.is_not_null()).unique()
    if not len(others):
        return seconds
    found = pl.Series([timestamp_or_none(value) for value in others.to_list()], dtype=pl.Int64)
    return seconds.fill_null(text.replace_strict(others, found, default=None, return_dtype=pl.Int64))


def timestamp_or_none(text: str) -> int | None:
    """Parse a timestamp by the contract's rules, and return Unix seconds, or None if it cannot be parsed."""
    try:
        return timestamp(text)
    except ValueError:
        return None
