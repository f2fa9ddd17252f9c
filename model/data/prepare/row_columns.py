"""The weight, unit, request and position of each row, which training and metrics use in addition to the fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray

from contract.schema import Field
from contract.tokens import marked_numbers
from model.data.prepare.columns import BadValueError, holds, number_column, text_column
from model.data.prepare.counting import DistinctValues
from model.data.prepare.writing import GrowingArray
from model.data.readers.log import Log

WEIGHTS, UNITS, REQUESTS, POSITIONS = "weights", "units", "requests", "positions"
KINDS = (WEIGHTS, UNITS, REQUESTS, POSITIONS)
MISSING_POSITION = -1
MAX_POSITION = 2**31 - 1


def row_file(folder: Path, split: str, kind: str) -> Path:
    """Return the file of the weights, units, requests or positions of a split."""
    return folder / f"{split}.{kind}.npy"


def distinct_row_values() -> dict[str, DistinctValues]:
    """Return empty collections for the distinct units and requests, which all splits of a log share."""
    return {kind: DistinctValues() for kind in (UNITS, REQUESTS)}


class RowColumns:
    """The files with the weights, units, requests and positions of one split. Use it as a context manager."""

    def __init__(self, folder: Path, split: str, log: Log, values: Mapping[str, DistinctValues]) -> None:
        """Open the files of the columns that the log has.

        Args:
            folder: The folder to write to.
            split: The split.
            log: The log.
            values: See distinct_row_values().
        """
        named = {WEIGHTS: log.weight, UNITS: log.unit, REQUESTS: log.request, POSITIONS: log.position_column}
        self._columns = {kind: column for kind, column in named.items() if column}
        self._values, self._missing = values, log.missing
        self._split = split
        self._total_weight = 0.0
        self._has_position = False
        self._files = {
            kind: GrowingArray(row_file(folder, split, kind), np.float32 if kind == WEIGHTS else np.int32)
            for kind in self._columns
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.__exit__(kind, error, trace)

    def append(self, batch: pl.DataFrame) -> None:
        """Write the columns of a batch of rows.

        Raises:
            BadValueError: If a weight is not a finite number of at least 0, a position is not an integer of at least 0,
                or a unit or request cannot be read.
        """
        for kind, column in self._columns.items():
            file = self._files[kind]
            if kind == WEIGHTS:
                weights = weight_column(batch[column])
                self._total_weight += float(weights.sum(dtype=np.float64))
                file.append(weights)
            elif kind == POSITIONS:
                positions = read_positions(batch[column], self._missing)
                self._has_position |= bool((positions != MISSING_POSITION).any())
                file.append(positions)
            else:
                file.append(code_column(batch[column], self._values[kind], file.rows, self._missing))

    def check(self) -> None:
        """Check the weights and the positions of the whole split.

        Raises:
            BadValueError: If all weights are 0, or all positions of train are missing.
        """
        if WEIGHTS in self._columns and not self._total_weight:
            reason = f"is 0 in all rows of {self._split}. Weights must not all be 0; remove weight, or fix the file"
            raise BadValueError(self._columns[WEIGHTS], reason)
        if POSITIONS in self._columns and self._split == "train" and not self._has_position:
            raise BadValueError(
                self._columns[POSITIONS], "is missing in all rows of train. Remove position from [data]"
            )


def weight_column(column: pl.Series) -> NDArray[np.float32]:
    """Return a column as weights, float32 (rows).

    Raises:
        BadValueError: If a weight is missing, negative, or not finite as float32.
    """
    numbers = number_column(column, Field("weight", "context", "numeric"))
    with np.errstate(over="ignore"):
        weights = numbers.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        row = int(wrong[0])
        reason = f"{holds(column[row])}; expected a weight of at least 0. Fix the file, or write 0 to ignore the row."
        raise BadValueError(column.name, reason, row)
    return weights


def read_positions(column: pl.Series, missing: Sequence[str] = ()) -> NDArray[np.int32]:
    """Return a column as positions, int32 (rows). MISSING_POSITION means missing.

    Raises:
        BadValueError: If a position is not an integer from 0 to MAX_POSITION.
    """
    numbers = number_column(column, Field("position", "context", "numeric", missing=tuple(missing) or UNSET))
    is_missing = np.isnan(numbers)
    wrong = np.flatnonzero(~is_missing & ((numbers < 0) | (numbers > MAX_POSITION) | (numbers != np.floor(numbers))))
    if len(wrong):
        row = int(wrong[0])
        limits = "of at least 0" if numbers[row] <= MAX_POSITION else f"of at most {MAX_POSITION:,}"
        reason = f"{holds(column[row])}; expected an integer {limits}. Fix the file, or leave the position empty."
        raise BadValueError(column.name, reason, row)
    return np.where(is_missing, MISSING_POSITION, numbers).astype(np.int32)


def code_column(
    column: pl.Series, values: DistinctValues, first_row: int, missing: Sequence[str] = ()
) -> NDArray[np.int32]:
    """Return a column of units or requests as codes, int32 (rows). Equal values have the same code, of at least 1.

    A row whose value is null, blank or in `missing` is its own unit or request. Its code is -(row + 1), where `row` is
    its number in the split, counted from `first_row` for the column's first row.
    """
    text = text_column(column, marked_numbers(missing)).str.strip_chars()
    codes = values.codes(text.set(text.is_in(["", *missing]), None))
    rows = np.arange(first_row, first_row + len(codes), dtype=np.int32)
    return np.where(codes == 0, -1 - rows, codes)
