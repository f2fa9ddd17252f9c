"""Reading a log in a single pass: each split, batch by batch, into one file per column.

Categorical values become codes (see counting.DistinctValues), and numbers become float64. Timestamps become codes of
tokens, such as hours, because a log has too many distinct timestamps to give each a code. The first unreadable value
stops the pass with an error that names its file, line and column.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import TIME_TRANSFORMS, Field
from contract.tokens import marked_numbers
from model.data.prepare.columns import BadValueError, label_column, number_column, text_column, time_column
from model.data.prepare.counting import DistinctValues
from model.data.prepare.row_columns import RowColumns
from model.data.prepare.writing import GrowingArray
from model.data.readers.log import FILE, LINE, Log
from model.data.timestamps import unix_seconds

BATCH_ROWS = 200_000  # about 100 MB with 40 columns


class SplitRead(NamedTuple):
    """What was read of a split.

    Attributes:
        rows: The number of rows from each file, int64 (files).
        period: The oldest and the newest time in Unix seconds, if Log.time is set.
    """

    rows: NDArray[np.int64]
    period: tuple[int, int] | None


def column_file(folder: Path, split: str, name: str) -> Path:
    """Return the file that read_split() writes a field's codes or numbers to."""
    return folder / f"{split}.{name}.column.npy"


def read_split(
    log: Log,
    split: str,
    values: Mapping[str, DistinctValues],
    row_values: Mapping[str, DistinctValues],
    folder: Path,
    pool: Executor,
) -> SplitRead:
    """Write the column files of a split, its labels (uint8) to <split>.labels.npy, and its weights, units and requests.

    Args:
        log: The log.
        split: A name in SPLITS.
        values: The distinct values of each categorical field. New values are added.
        row_values: The distinct units and requests (see row_columns.distinct_row_values). New values are added.
        folder: The folder to write to.
        pool: The pool that converts the columns of a batch in parallel.

    Raises:
        ValueError: If a value cannot be read, or the labels are all 0 or all 1. The message names the file.
    """
    path, clicks, times = log.paths[split], 0, list[int]()
    rows = np.zeros(len(log.files), np.int64)
    with ExitStack() as stack:
        labels = stack.enter_context(GrowingArray(folder / f"{split}.labels.npy", np.uint8))
        files = []
        for field in log.fields:
            dtype = np.int32 if field.kind == "categorical" else np.float64
            files.append(stack.enter_context(GrowingArray(column_file(folder, split, field.name), dtype)))
        row_columns = stack.enter_context(RowColumns(folder, split, log, row_values))
        for batch in read_batches(log, split):
            try:
                batch_labels = label_column(batch[log.label], log.positive, log.missing)
                columns = list(pool.map(convert, (batch[f.reads] for f in log.fields), log.fields, repeat(values)))
                row_columns.append(batch)
            except BadValueError as error:
                where = path if error.row is None else log.position(batch[FILE][error.row], batch[LINE][error.row])
                raise ValueError(f'{where}: column "{error.column}" {error.reason}') from error
            labels.append(batch_labels)
            for file, column in zip(files, columns, strict=True):
                file.append(column)
            clicks += int(batch_labels.sum())
            rows += np.bincount(batch[FILE].to_numpy(), minlength=len(rows))
            if log.time:
                seconds = unix_seconds(batch[log.time]).to_numpy()
                times += [int(seconds.min()), int(seconds.max())]
        try:
            row_columns.check()
        except BadValueError as error:
            raise ValueError(f'{path}: column "{error.column}" {error.reason}') from error
    if not labels.rows:
        raise ValueError(f"{path}: no rows for {split}")
    if clicks in (0, labels.rows):
        only = int(clicks > 0)
        meaning = f" (1 is a label in positive = {json.dumps(log.positive, ensure_ascii=False)})" * bool(log.positive)
        raise ValueError(
            f'{path}: column "{log.label}" is {only} in all {labels.rows} rows of {split}; {split} needs both 0 and '
            f"1{meaning}"
        )
    return SplitRead(rows, (min(times), max(times)) if times else None)


def read_batches(log: Log, split: str) -> Iterator[pl.DataFrame]:
    """Yield the rows of a split in order, BATCH_ROWS at a time.

    Raises:
        ValueError: If polars cannot read the file.
    """
    frame, where = log.splits[split].select(FILE, LINE, *log.columns), ""
    try:
        for batch in frame.collect_batches(engine="streaming", chunk_size=BATCH_ROWS, maintain_order=True):
            yield batch
            where = f" after {log.position(batch[FILE][-1], batch[LINE][-1])}"
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{log.paths[split]}: cannot be read{where}: {error}") from error


def convert(column: pl.Series, field: Field, values: Mapping[str, DistinctValues]) -> NDArray[Any]:
    """Return a field's codes, int32 (rows), or its numbers, float64 (rows)."""
    if field.transform in TIME_TRANSFORMS:
        return values[field.name].codes(time_column(column, field))
    if field.name in values:
        return values[field.name].codes(text_column(column, marked_numbers(field.missing or ())))
    return number_column(column, field)


def find_value(log: Log, column: str, value: str) -> str:
    """Return the position of the first row with this value, formatted for an error message."""
    for frame in log.splits.values():
        found = frame.filter(pl.col(column).cast(pl.String) == value).select(FILE, LINE).head(1)
        for file, line in found.collect(engine="streaming").iter_rows():
            return log.position(file, line)
    return log.paths["train"]
