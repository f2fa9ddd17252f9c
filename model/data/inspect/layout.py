"""How a log's files become train, valid and test: by their names, by time, or at random."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonpath, relpath
from pathlib import Path

import polars as pl

from model.data.inspect.columns import Column
from model.data.inspect.file_dates import split_by_date
from model.data.inspect.sample import MAX_COUNTED_BYTES, Sample, bytes_of, scan
from model.data.readers.files import Source, files_below
from model.data.readers.named import NamedFiles
from model.data.readers.scan import text_ending
from model.data.timestamps import unix_seconds

SPLIT_NAMES = {
    "train": r"train(ing)?",
    "valid": r"val(id|idation)?|dev",
    "test": r"test(ing)?|eval|holdout",
}
MANY_FILES = 5  # if a folder has more files than this, a glob names them
DAY = 86400
WEEK = 7 * DAY
UNITS = (("h", 3600), ("m", 60), ("s", 1))
MIN_DAYS, MAX_DAYS = 3, 7  # if a log spans MIN_DAYS, valid and test are whole days, at most MAX_DAYS each
PART = 10  # valid and test each get 1 / PART of the period


@dataclass(frozen=True)
class Layout:
    """Where the files of a log are.

    Attributes:
        folder: The value of `folder`: relative to the data folder if possible.
        splits: The file of each split, relative to the folder, or {} if the names do not show which file is which.
        files: All files or globs, relative to the folder.
        by_date: The files or globs of each split by the dates in the names, or {}. A split by a time column is better.
    """

    folder: str
    splits: dict[str, str]
    files: tuple[str, ...]
    by_date: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Period:
    """The period of a log.

    Attributes:
        span: The time between the first and the last row in seconds.
        is_days: Whether the times are dates without a time of day.
        missing: The number of rows without a time.
        unreadable: The number of rows with a value that is not a time.
    """

    span: float
    is_days: bool = False
    missing: int = 0
    unreadable: int = 0


def find_layout(arguments: Sequence[str], named: NamedFiles, data: Path) -> Layout:
    """Return the folder, the splits and the files that an experiment lists for these files.

    Args:
        arguments: The paths, globs, folders and URLs that were given.
        named: The files that they name.
        data: The base folder of experiments (see data_folder.py).
    """
    paths = [source.path for source in named.sources]
    folder, patterns = named.folder, named.patterns
    if not any("://" in argument for argument in arguments):
        inner = Path(commonpath([path.parent for path in paths]))
        if splits := split_names([Path(argument) for argument in arguments], folder):
            return Layout(folder_name(folder, data), splits, patterns)
        if splits := split_names(paths, inner):
            return Layout(folder_name(inner, data), splits, patterns)
        if len(patterns) > MANY_FILES and len({path.parent for path in paths}) == 1 and is_whole_folder(named.sources):
            patterns = (f"*{shared_suffix(named.sources[0])}",)
        return Layout(folder_name(folder, data), {}, patterns, split_by_date(folder, named.sources))
    return Layout(folder_name(folder, data), {}, patterns)


def folder_name(folder: Path, data: Path) -> str:
    """Return the value of `folder`: relative to the data folder if it is inside."""
    return relpath(folder, data.absolute()) if folder.is_relative_to(data.absolute()) else str(folder)


def split_names(paths: Sequence[Path], folder: Path) -> dict[str, str]:
    """Return the file of each split if there are exactly three files with clear names, otherwise {}."""
    if len(paths) != len(SPLIT_NAMES):
        return {}
    found = {}
    for split, pattern in SPLIT_NAMES.items():
        named = [path for path in paths if re.search(rf"(^|[^a-z])({pattern})([^a-z]|$)", path.name.lower())]
        if len(named) != 1:
            return {}
        found[split] = relpath(named[0].absolute(), folder)
    return found if len({*found.values()}) == len(found) else {}


def is_whole_folder(sources: Sequence[Source]) -> bool:
    """Return whether these are all visible files of their format in their folder, with the same compression."""
    ending = text_ending(sources[0])
    there = (Source(path.name, path) for path in files_below(sources[0].path.parent))
    same = {source.path for source in there if text_ending(source) == ending}
    return same == {source.path for source in sources} and len({*map(shared_suffix, sources)}) == 1


def shared_suffix(source: Source) -> str:
    """Return a file's extension, including the compression, such as .csv.gz."""
    return source.name[source.name.lower().rindex(text_ending(source)) :]


def find_period(sample: Sample, column: Column) -> Period | None:
    """Return the period of a log, or of the sample if the log is too large. None means that the period is not known.

    Times are parsed as in ctr-prepare.

    Args:
        sample: The sample.
        column: The column with the time of each row.
    """
    try:
        unix_seconds(sample.rows[column.name])
    except ValueError:  # a type that cannot be the time of a row
        return None
    if sample.is_head:
        return None
    if sample.is_complete or (sample.text is not None and bytes_of(sample.sources) > MAX_COUNTED_BYTES):
        frames = [sample.rows.lazy()]
    else:
        frames = [scan(source, sample.text) for source in sample.sources]
    value = pl.col(column.name)
    text = value.cast(pl.String).str.strip_chars()
    is_missing = text.is_null() | text.is_in(["", *column.markers])
    seconds = value.map_batches(unix_seconds, return_dtype=pl.Int64, is_elementwise=True)
    measures = {
        "first": seconds.min(),
        "last": seconds.max(),
        "missing": is_missing.sum(),
        "unreadable": (seconds.is_null() & ~is_missing).sum(),
        "moments": (seconds % DAY != 0).sum(),
    }
    parts = [frame.select(**measures).collect(engine="streaming") for frame in frames]
    found = pl.concat(parts).select(
        pl.col("first").min(), pl.col("last").max(), pl.col("missing", "unreadable", "moments").sum()
    )
    first, last, missing, unreadable, moments = found.row(0)
    return None if first is None else Period(last - first, moments == 0, missing, unreadable)


def split_length(layout: Layout, period: Period | None) -> str | None:
    """Return the length of valid and of test, or None if the log cannot be split by time."""
    if layout.splits or period is None or period.missing or period.unreadable:
        return None
    return duration(period)


def duration(period: Period) -> str | None:
    """Return the length of valid and of test, or None if the log is too short to be split by time."""
    if period.span >= MIN_DAYS * DAY or (period.is_days and period.span >= (MIN_DAYS - 1) * DAY):
        return f"{min(max(1, int(period.span / PART // DAY)), MAX_DAYS)}d"
    for unit, length in UNITS:
        if not period.is_days and (count := int(period.span / PART // length)):
            return f"{count}{unit}"
    return None


def time_fields(period: Period, is_split_by_time: bool) -> list[str]:
    """Return the time transforms whose values occur again after training: the hour of the day and the weekday."""
    train = period.span * (1 - 2 / PART if is_split_by_time else 1)
    transforms = ["hour"] if train >= DAY and not period.is_days else []
    return [*transforms, "weekday"] if train >= WEEK else transforms
