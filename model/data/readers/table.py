"""The reader for your own log: parquet, CSV or tab-separated files whose columns the experiment declares."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from contract.schema import Field, Side
from model.data.readers.files import Source, find_files, reject_shared_files
from model.data.readers.log import FILE, SPLITS, Log, LogFile, check_rows_read, position, with_missing
from model.data.readers.scan import Part, join_parts, log_files, open_parts, rename_columns
from model.data.readers.split import split_rows
from model.data_config import Data, SplitAtRandom, SplitByTime

HINT = "Paths in the experiment file are relative to DIR/<data.folder>, where DIR is --data or $CTR_DATA."


def read(folder: Path, data: Data) -> Log:
    """Return the log in the files that `data` specifies.

    The extension of a file determines its format: .parquet, .csv, or .tsv and .txt for tab-separated text. Text files
    may also end in .gz or .zst. Text has no types: categorical values are kept unchanged, so "0017" keeps its zeros,
    and "1.0" and "1" are different tokens. Numeric fields are parsed.

    Raises:
        ValueError: If a file or column is missing, or a line does not have all columns.
    """
    patterns = {"files": data.files} if data.files else {split: getattr(data, split) for split in SPLITS}
    listed = {key: (value,) if isinstance(value, str) else value for key, value in patterns.items()}
    fields = declared_fields(data)
    sources = {key: find_files(folder, value, HINT) for key, value in listed.items()}
    reject_shared_files(sources)
    parts = open_parts(
        [source for group in sources.values() for source in group], data.delimiter, data.quote, data.columns
    )
    if data.rename:
        parts = [rename_columns(part, data.rename) for part in parts]
    files = log_files(parts)
    frames: Mapping[str, pl.LazyFrame] = join_groups(sources, parts, fields, data)
    names = {key: group_name(folder, listed[key], sources[key]) for key in sources}
    whole = True
    if data.files:
        whole = not (isinstance(data.split, SplitByTime) and (data.split.gap or data.split.train))
        if not whole:
            check_all_rows(frames["files"], data.label, files)
        frames = split_rows(frames["files"], data, lambda file, line: position(files[file].name, line))
        names = dict.fromkeys(SPLITS, names["files"])
    return Log(
        fields,
        data.label,
        frames,
        names,
        files,
        weight=data.weight,
        unit=data.unit,
        request=data.request,
        position_column=data.position,
        time=data.time if isinstance(data.split, SplitByTime) else "",
        positive=data.positive,
        missing=data.missing,
        whole=whole,
    )


def declared_fields(data: Data) -> tuple[Field, ...]:
    """Return the fields in the order of `context` and `candidate`, then of [[data.fields]].

    An entry of [[data.fields]] may also describe a field in these lists.
    """
    sides: list[tuple[Side, tuple[str, ...]]] = [("context", data.context), ("candidate", data.candidate)]
    fields = {
        name: Field(name, side, "numeric" if name in data.numeric else "categorical")
        for side, names in sides
        for name in names
    }
    for spec in data.fields:
        fields[spec.name] = spec.apply(fields.get(spec.name) or Field(spec.name, spec.side or "context"))
    return tuple(with_missing(field, data.missing) for field in fields.values())


def join_groups(
    sources: Mapping[str, Sequence[Source]], parts: Sequence[Part], fields: Sequence[Field], data: Data
) -> dict[str, pl.LazyFrame]:
    """Return one frame for each group of files, with all columns that ctr-prepare needs."""
    by_unit = data.split.unit if isinstance(data.split, SplitAtRandom) else ""
    others = filter(None, (data.time, data.weight, data.unit, data.request, data.position, by_unit))
    columns = list(dict.fromkeys((data.label, *(field.reads for field in fields), *others)))
    numbers = {data.label, data.weight, data.position, *(field.reads for field in fields if field.kind == "numeric")}
    numbers -= {field.reads for field in fields if field.kind == "categorical"}
    frames, first = {}, 0
    for key, group in sources.items():
        frames[key] = join_parts(parts[first : first + len(group)], columns, numbers=numbers, first=first)
        first += len(group)
    return frames


def group_name(folder: Path, patterns: Sequence[str], sources: Sequence[Source]) -> str:
    """Return the name of a group of files, for errors about the whole group."""
    if len(patterns) == 1:
        return patterns[0] if "://" in patterns[0] else str(folder / patterns[0])
    others = len(sources) - 1
    return sources[0].name + (f" and {others} other file{'s' * (others > 1)}" if others else "")


def check_all_rows(frame: pl.LazyFrame, label: str, files: Sequence[LogFile]) -> None:
    """Check that polars reads every row, before a split leaves some out.

    Raises:
        ValueError: If rows are missing.
    """
    counts = frame.group_by(FILE).agg(pl.col(label).len().alias("rows")).collect(engine="streaming")
    found = dict(counts.iter_rows())
    check_rows_read(files, [found.get(number, 0) for number in range(len(files))])
