"""How a log's files become train, valid and test: by their names, by time, or at random."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os.path import commonpath, relpath
from pathlib import Path

import polars as pl

from model.data.inspect.sample import MAX_COUNTED_BYTES, Sample, ending, plain_suffix, scan

SPLIT_NAMES = {
    "train": r"train(ing)?",
    "valid": r"val(id|idation)?|dev",
    "test": r"test(ing)?|eval|holdout",
}
MANY_FILES = 5  # more files in one folder are named by a glob
DAY = 86400
WEEK = 7 * DAY
UNITS = (("h", 3600), ("m", 60), ("s", 1))
MIN_DAYS, MAX_DAYS = 3, 7  # a log of this many days has whole days as valid and test, up to a week
PART = 10  # valid and test get one part each


@dataclass(frozen=True)
class Layout:
    """Where the files of a log are.

    Attributes:
        folder: The value of `folder`: relative to the data folder if possible.
        splits: The file of each split, relative to the folder, if the names tell. Otherwise empty.
        files: All files or globs, relative to the folder.
    """

    folder: str
    splits: dict[str, str]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Period:
    """The period of a log.

    Attributes:
        span: The time between the first and the last row in seconds.
        is_days: Whether the times are days, without the time of day.
    """

    span: float
    is_days: bool = False


def find_layout(arguments: Sequence[str], paths: Sequence[Path], data: Path) -> Layout:
    """Return how an experiment names these files.

    Args:
        arguments: The paths, globs and folders that were given.
        paths: The files that they stand for.
        data: The base folder of experiments (see data_folder.py).
    """
    parents = [path.absolute().parent for path in paths]
    folder = Path(commonpath(parents))
    splits = split_names([Path(argument) for argument in arguments], folder) or split_names(paths, folder)
    names = [relpath(path.absolute(), folder) for path in paths]
    if any(character in argument for argument in arguments for character in "*?["):
        names = [relpath(Path(argument).absolute(), folder) for argument in arguments]
    elif len(arguments) == 1 and Path(arguments[0]).is_dir() and not splits:
        # A folder is read whole, so that files that are added later are read as well.
        folder, names = Path(arguments[0]).absolute().parent, [Path(arguments[0]).absolute().name]
    elif len(names) > MANY_FILES and len(set(parents)) == 1 and is_whole_folder(paths):
        names = [f"*{''.join(paths[0].suffixes[-1 - (plain_suffix(paths[0]) != paths[0].suffix) :])}"]
    inside = folder.is_relative_to(data.absolute())
    return Layout(relpath(folder, data.absolute()) if inside else str(folder), splits, tuple(names))


def split_names(paths: Sequence[Path], folder: Path) -> dict[str, str]:
    """Return the file of each split if there are exactly three and their names tell, otherwise {}."""
    if len(paths) != len(SPLIT_NAMES):
        return {}
    found = {}
    for split, pattern in SPLIT_NAMES.items():
        named = [path for path in paths if re.search(rf"(^|[^a-z])({pattern})([^a-z]|$)", path.name.lower())]
        if len(named) != 1:
            return {}
        found[split] = relpath(named[0].absolute(), folder)
    return found if len({*found.values()}) == len(found) else {}


def is_whole_folder(paths: Sequence[Path]) -> bool:
    """Return whether these are all files of their format in their folder."""
    suffix = ending(paths[0])
    there = {path.name for path in paths[0].absolute().parent.iterdir() if plain_suffix(path) == suffix}
    return there == {path.name for path in paths} and len({path.suffixes[-1] for path in paths}) == 1


def find_period(sample: Sample, column: str) -> Period | None:
    """Return the period of a log, or of the sample if the log is too large. None means that it cannot be read."""
    size = sum(path.stat().st_size for path in sample.paths)
    if sample.is_complete or (sample.text is not None and size > MAX_COUNTED_BYTES):
        frames = [sample.rows.lazy()]
    else:
        frames = [scan(path, sample.text) for path in sample.paths]
    ends = []
    is_number = sample.rows[column].dtype.is_numeric() or is_numbers(sample.rows[column])
    values = pl.col(column).cast(pl.Float64, strict=False) if is_number else pl.col(column)
    for frame in frames:
        found = frame.select(values.min().alias("first"), values.max().alias("last")).collect(engine="streaming")
        ends += [seconds(found["first"]), seconds(found["last"])]
    known = [end for end in ends if end is not None]
    return Period(max(known) - min(known), is_days(sample.rows[column], known)) if known else None


def is_days(times: pl.Series, ends: Sequence[float]) -> bool:
    """Return whether times are days, without the time of day."""
    if times.dtype == pl.String and not is_numbers(times):
        return bool(times.drop_nulls().str.strip_chars().str.len_chars().max() == len("2026-01-31"))
    return times.dtype == pl.Date or all(end % DAY == 0 for end in ends)


def is_numbers(column: pl.Series) -> bool:
    """Return whether a column of text contains Unix times."""
    return column.dtype == pl.String and bool(column.drop_nulls().str.contains(r"^\s*\d+(\.\d*)?\s*$").all())


def seconds(time: pl.Series) -> float | None:
    """Return the time in a column with one row in Unix seconds, or None if it cannot be read."""
    value = time.item()
    if value is None:
        return None
    if time.dtype == pl.Date or isinstance(time.dtype, pl.Datetime):
        return float(time.cast(pl.Datetime("us")).to_physical().item()) / 1e6
    if isinstance(value, int | float):
        return float(value) / 1000 if value > 1e11 else float(value)
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def duration(period: Period) -> str | None:
    """Return the length of valid and of test, or None if the log is too short to be split by time."""
    if period.span >= MIN_DAYS * DAY or (period.is_days and period.span >= (MIN_DAYS - 1) * DAY):
        return f"{min(max(1, int(period.span / PART // DAY)), MAX_DAYS)}d"
    for unit, length in UNITS:
        if not period.is_days and (count := int(period.span / PART // length)):
            return f"{count}{unit}"
    return None


def time_fields(period: Period, is_split_by_time: bool) -> list[str]:
    """Return the transforms of the time that occur again after training: the hour of the day and the weekday."""
    train = period.span * (1 - 2 / PART if is_split_by_time else 1)
    transforms = ["hour"] if train >= DAY and not period.is_days else []
    return [*transforms, "weekday"] if train >= WEEK else transforms
