"""Splitting a log by the dates in the names of its files and folders."""

import glob
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from os.path import commonprefix, relpath
from pathlib import Path

from model.data.readers.files import Source, find_files

MIN_DATES = 3  # one for each split
SHORT_LIST = 5  # a longer list of files becomes globs
# 20260131, or 2026-01-31 with any separator, also in folders such as 2026/01/31 and year=2026/month=1/day=31.
SEPARATOR = r"(?:[-_.]|/(?:[a-z]+=)?)"
DATE = re.compile(
    rf"(?<!\d)((?:19|20)\d\d)(?:(\d\d)(\d\d)|{SEPARATOR}(\d{{1,2}}){SEPARATOR}(\d{{1,2}}))(?!\d)", re.IGNORECASE
)


def split_by_date(folder: Path, sources: Sequence[Source]) -> dict[str, tuple[str, ...]]:
    """Return paths and globs for train, valid and test: the last date is test, the date before it is valid.

    Args:
        folder: The folder that the paths are relative to.
        sources: The files of the log.

    Returns:
        The paths and globs of each split, or {} if a name has no date or there are fewer than MIN_DATES dates.
    """
    groups: dict[date, list[Source]] = {}
    for source in sources:
        found = date_in(relpath(source.path, folder))
        if found is None:
            return {}
        groups.setdefault(found[0], []).append(source)
    if len(groups) < MIN_DATES:
        return {}
    ordered = [groups[day] for day in sorted(groups)]
    splits = {
        "train": [source for group in ordered[:-2] for source in group],
        "valid": ordered[-2],
        "test": ordered[-1],
    }
    return {split: patterns_of(folder, group, sources) for split, group in splits.items()}


def date_in(name: str) -> tuple[date, int] | None:
    """Return the first date in a path and the position of its end, or None if there is no date."""
    for found in DATE.finditer(name):
        year, *rest = filter(None, found.groups())
        try:
            return date(int(year), *map(int, rest)), found.end()
        except ValueError:  # such as February 31
            continue
    return None


def patterns_of(folder: Path, group: Sequence[Source], sources: Sequence[Source]) -> tuple[str, ...]:
    """Return paths and globs that name the files of a split and no others. They are few, if the names allow it.

    Args:
        folder: The folder that the paths are relative to.
        group: The files of the split.
        sources: All files of the log.
    """
    paths = {relpath(source.path, folder) for source in group}
    others = {relpath(source.path, folder) for source in sources} - paths
    dated = sorted({*map(through_date, paths)})
    patterns = dated if len(dated) <= SHORT_LIST else [*globs(dated, {*map(through_date, others)})]
    return tuple(patterns if names_exactly(folder, patterns, group) else sorted(paths))


def through_date(name: str) -> str:
    """Return a path up to the file or folder in which its date ends."""
    found = date_in(name)
    end = name.find("/", found[1]) if found else -1
    return name if end < 0 else name[:end]


def globs(names: Sequence[str], others: Collection[str]) -> Iterator[str]:
    """Yield globs that match all names and none of the others, such as 2026-01-[0-2]*.csv."""
    prefix = common_prefix(names)
    if len(names) == 1:
        yield glob.escape(names[0])
        return
    suffix = glob.escape(common_suffix(names))
    if not starts_any(prefix, others):
        yield f"{glob.escape(prefix)}*{suffix}"
        return
    branches: dict[str, list[str]] = {}
    for name in names:
        branches.setdefault(name[len(prefix) : len(prefix) + 1], []).append(name)
    digits = [first for first in branches if first.isdecimal() and not starts_any(prefix + first, others)]
    if len(digits) > 1:
        is_range = len(digits) > 2 and int(digits[-1]) - int(digits[0]) == len(digits) - 1
        yield f"{glob.escape(prefix)}[{f'{digits[0]}-{digits[-1]}' if is_range else ''.join(digits)}]*{suffix}"
    for first, branch in branches.items():
        if len(digits) < 2 or first not in digits:
            yield from globs(branch, others)


def starts_any(prefix: str, names: Iterable[str]) -> bool:
    """Return whether a name starts with a prefix."""
    return any(name.startswith(prefix) for name in names)


def common_suffix(names: Iterable[str]) -> str:
    """Return the longest common suffix of the parts of the names after their dates, such as .csv.gz."""
    ends = [name[found[1] :][::-1] for name in names if (found := date_in(name))]
    return common_prefix(ends)[::-1]


def common_prefix(names: Sequence[str]) -> str:
    """Return the longest common prefix, compared character by character."""
    return commonprefix(names)  # noqa: RUF071


def names_exactly(folder: Path, patterns: Sequence[str], group: Sequence[Source]) -> bool:
    """Return whether paths and globs name these files and no others."""
    try:
        found = find_files(folder, patterns, "")
    except ValueError:  # a file is named twice
        return False
    return {source.path for source in found} == {source.path for source in group}
