"""The reader for your own log: parquet, CSV or tab-separated files whose columns the experiment declares."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from contract.schema import Field, Side
from model.data.readers.log import LINE, Log, require_columns, scan_parquet, scan_text
from model.data_config import Data

HINT = "Paths in the experiment file are relative to DIR/<data.folder>, where DIR is --data or $CTR_DATA."
SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": "\t", ".txt.gz": "\t"}


def read(folder: Path, data: Data) -> Log:
    """Return the log in the three files that `data` specifies.

    The extension of a file determines its format: .parquet, .csv, or .tsv and .txt for tab-separated text. Text files
    may also end in .gz. Text has no types: categorical values are kept unchanged, so "0017" keeps its zeros, and "1.0"
    and "1" are different tokens. Numeric fields are parsed.

    Raises:
        ValueError: If a file or column is missing, or a line does not have all columns.
    """
    files = {"train": data.train, "valid": data.valid, "test": data.test}
    paths = {split: folder / str(file) for split, file in files.items()}
    fields = declared_fields(data)
    if data.label in (field.reads for field in fields):
        raise ValueError(f'the label "{data.label}" is also a field. Remove the field: the model would only copy it.')
    log = Log(fields, data.label, {}, paths, weight=data.weight, unit=data.unit, request=data.request)
    return replace(log, splits={split: scan(path, list(log.columns), data) for split, path in paths.items()})


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
    return tuple(fields.values())


def scan(path: Path, columns: list[str], data: Data) -> pl.LazyFrame:
    """Return the given columns of one file, with LINE."""
    if path.name.endswith(".parquet"):
        return scan_parquet(path, columns, HINT)
    for ending, separator in SEPARATORS.items():
        if path.name.endswith(ending):
            frame = scan_text(path, separator=separator, names=data.columns or None, hint=HINT)
            require_columns(path, columns, (name for name in frame.collect_schema() if name != LINE))
            return frame.select(LINE, *columns)
    raise ValueError(f"{path}: unknown format. Use .parquet, .csv, .tsv or .txt; the last three also with .gz.")
