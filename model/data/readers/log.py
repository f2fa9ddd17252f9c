"""The result of a reader: a log as lazy frames, which are never fully in memory, and its fields."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import polars as pl
from msgspec import UNSET

from contract.schema import FeatureSchema, Field
from model.data_config import Data

SPLITS = ("train", "valid", "test")
# The line number of a row in a text file, or its row number in a parquet file. Both start at 1; a header counts as a
# line.
LINE = "__line__"
# The number of a row's file, which is its position in `Log.files`.
FILE = "__file__"


@dataclass(frozen=True)
class LogFile:
    """A file of a log.

    Attributes:
        name: The path or URL, as shown in errors.
        rows: The number of rows counted when the file was checked, or None if the format has its own checks.
    """

    name: str
    rows: int | None = None


@dataclass(frozen=True)
class Log:
    """Three lazy frames with the same columns, each with FILE and LINE.

    Attributes:
        fields: The fields in the schema's order. Their mean and std are not measured yet.
        label: The label column.
        splits: The frame of each split (see SPLITS).
        paths: The file or folder of each split, as shown in errors.
        files: All files, in the order of FILE.
        extra: Columns of `test` that are not features but are kept for later checks.
        weight: The column with the weight of each row, or "" if all weights are 1.
        unit: The column with the unit of each row, or "".
        request: The column with the request of each row, or "".
        position_column: The column with the position at which each row was shown, or "".
        time: The column with the time of each row, if the log is split by time, or "".
        positive: The labels that are clicks, or () if the labels are 0 and 1.
        missing: The labels, units and requests that mean "missing".
        whole: Whether every row of every file is in one of the splits.
    """

    fields: tuple[Field, ...]
    label: str
    splits: Mapping[str, pl.LazyFrame]
    paths: Mapping[str, str]
    files: tuple[LogFile, ...]
    extra: tuple[str, ...] = ()
    weight: str = ""
    unit: str = ""
    request: str = ""
    position_column: str = ""
    time: str = ""
    positive: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    whole: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read from every split: the label, the sources of the fields, and others."""
        others = filter(None, (self.weight, self.unit, self.request, self.position_column, self.time))
        return tuple(dict.fromkeys((self.label, *(field.reads for field in self.fields), *others)))

    def position(self, file: int, line: int) -> str:
        """Format the position of a row for an error message: `train.csv:17` or `train.parquet, row 17`."""
        return position(self.files[file].name, line)


def position(name: str, line: int) -> str:
    """Format the position of a row of a file for an error message: `train.csv:17` or `train.parquet, row 17`."""
    return f"{name}, row {line}" if name.lower().endswith(".parquet") else f"{name}:{line}"


def require_columns(
    name: str,
    columns: Iterable[str],
    present: Iterable[str],
    *,
    section: str = "[data]",
    advice: str = "Fix the experiment file.",
) -> None:
    """Check that a file has all required columns.

    Args:
        name: The name of the file.
        columns: The required columns.
        present: The columns of the file.
        section: The section that describes the format of the file, for the error.
        advice: What to do if the format is right, for the error.

    Raises:
        ValueError: If a column is missing. The message lists the file's columns.
    """
    present = list(present)
    for column in columns:
        if column not in present:
            if len(present) == 1 and any(character in present[0] for character in ",;|\t"):
                advice = f"Set delimiter in {section} to the character between the columns."
            elif f'"{column}"' in present:
                advice = f"Set quote = '\"' in {section} to read names and values without their quotes."
            raise ValueError(f'{name}: no column "{column}". The file has {", ".join(present)}. {advice}')


def check_rows_read(files: Sequence[LogFile], rows: Iterable[int]) -> None:
    """Check that the number of rows read from each file is the number that was counted.

    Args:
        files: The files.
        rows: The number of rows that were read, in the same order.

    Raises:
        ValueError: If a number differs. The message names the file and both numbers.
    """
    for file, found in zip(files, rows, strict=True):
        if file.rows not in (None, found):
            raise ValueError(
                f"{file.name}: {found:,} rows were read, but the file has {file.rows:,}. This is a bug, unless another "
                "program changed the file: run ctr-prepare again. As a workaround, write the log as parquet."
            )


def apply_field_specs(fields: Sequence[Field], data: Data) -> tuple[Field, ...]:
    """Return a reader's fields with `missing` and the changes in [[data.fields]] applied.

    Raises:
        ValueError: If an entry names a field that the reader does not have, or the fields are not a valid schema.
    """
    specs = {spec.name: spec for spec in data.fields}
    if unknown := specs.keys() - {field.name for field in fields}:
        raise ValueError(f'field "{min(unknown)}" is not in this log, which has {", ".join(f.name for f in fields)}')
    changed = tuple(specs[field.name].apply(field) if field.name in specs else field for field in fields)
    return FeatureSchema(tuple(with_missing(field, data.missing) for field in changed)).fields


def with_missing(field: Field, missing: Sequence[str]) -> Field:
    """Return a field with additional values that mean "missing"."""
    values = tuple(dict.fromkeys((*(field.missing or ()), *missing)))
    return msgspec.structs.replace(field, missing=values or UNSET)
