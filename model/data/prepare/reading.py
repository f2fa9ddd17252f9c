"""The one pass over a log: each split, batch by batch, into a file for every column.

Categorical values become codes (counting.Values), numbers float64. What cannot be read ends it, and is named with its
file, line and column.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import Field
from model.data.prepare.columns import BadValueError, label_column, number_column, text_column
from model.data.prepare.counting import Values
from model.data.prepare.writing import GrowingArray
from model.data.readers.log import LINE, Log

BATCH = 200_000  # rows: 40 columns of them are about 100 MB


def column_file(folder: Path, split: str, name: str) -> Path:
    """Where read_split() leaves a field's codes or numbers."""
    return folder / f"{split}.{name}.column.npy"


def read_split(log: Log, split: str, values: Mapping[str, Values], folder: Path, pool: Executor) -> None:
    """Writes the column files of a split, and <split>.labels.npy, uint8.

    values: of the categorical fields.

    Raises:
        ValueError: naming file, line, column and value.
    """
    path, clicks = log.paths[split], 0
    with ExitStack() as stack:
        labels = stack.enter_context(GrowingArray(folder / f"{split}.labels.npy", np.uint8))
        files = [stack.enter_context(_column_array(folder, split, field)) for field in log.fields]
        for batch in _batches(log, split):
            read, columns = _read(path, batch, log, values, pool)
            labels.append(read)
            for file, column in zip(files, columns, strict=True):
                file.append(column)
            clicks += int(read.sum())
    _check_labels(path, split, log.label, labels.rows, clicks)


def _batches(log: Log, split: str) -> Iterator[pl.DataFrame]:
    frame = log.splits[split].select(LINE, log.label, *(field.name for field in log.fields))
    try:
        yield from frame.collect_batches(engine="streaming", chunk_size=BATCH, maintain_order=True)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{log.paths[split]}: cannot be read: {error}") from error


def _column_array(folder: Path, split: str, field: Field) -> GrowingArray:
    kind = np.int32 if field.kind == "categorical" else np.float64
    return GrowingArray(column_file(folder, split, field.name), kind)


def _read(
    path: Path, batch: pl.DataFrame, log: Log, values: Mapping[str, Values], pool: Executor
) -> tuple[NDArray[np.uint8], list[NDArray[Any]]]:
    """Labels, and one array for each field."""
    try:
        labels = label_column(batch[log.label])
        given = [batch[field.name] for field in log.fields]
        return labels, list(pool.map(_column, given, log.fields, repeat(values)))
    except BadValueError as error:
        raise ValueError(_told(path, batch, error)) from error


def find_line(log: Log, column: str, value: str) -> str:
    """File and line of the first row that holds this text."""
    for split, frame in log.splits.items():
        found = frame.filter(pl.col(column).cast(pl.String) == value).select(LINE).head(1).collect(engine="streaming")
        if len(found):
            return f"{log.paths[split]}: {_place(log.paths[split], found.item())}"
    return f"{log.paths['train']}"


def _column(column: pl.Series, field: Field, values: Mapping[str, Values]) -> NDArray[Any]:
    if field.name in values:
        return values[field.name].codes(text_column(column))
    return number_column(column, field)


def _told(path: Path, batch: pl.DataFrame, error: BadValueError) -> str:
    if error.row is None:
        return f"{path}: column {error.column!r} {error.reason}"
    value = batch[error.column][error.row]
    place = _place(path, batch[LINE][error.row])
    return (
        f"{path}: {place}: column {error.column!r} holds {'nothing' if value is None else repr(value)}: {error.reason}"
    )


def _place(path: Path, line: int) -> str:
    return f"{'row' if path.suffix == '.parquet' else 'line'} {line}"


def _check_labels(path: Path, split: str, label: str, rows: int, clicks: int) -> None:
    if not rows:
        raise ValueError(f"{path}: has no rows for {split}")
    if clicks in (0, rows):
        only = int(clicks > 0)
        raise ValueError(
            f"{path}: column {label!r} is {only} in all {rows} rows of {split}: {split} needs both 0 and 1"
        )
