"""Your own log: parquet, CSV or tab-separated files, with the columns that the experiment names."""

from pathlib import Path

import polars as pl

from contract.schema import Field, Side
from model.data.readers.log import LINE, Log, require_columns, scan_parquet, scan_text
from model.data_config import Data

WAY_OUT = "The paths in the experiment file are relative to DIR/<data.folder>, with DIR from --data or CTR_DATA"
SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t", ".txt": "\t", ".txt.gz": "\t"}


def read(folder: Path, data: Data) -> Log:
    """Scans the three files that `data` names, by their ending: .parquet, .csv, or .tsv and .txt with tabs; also .gz.

    A text file has no types: a categorical value stays the text that it is, character by character
    (an id "0017" keeps its zeros, and "1.0" is another token than "1"); numeric fields are parsed.

    Raises:
        ValueError: naming file and column, or line, for a missing file or column, or a line without all columns.
    """
    files = {"train": data.train, "valid": data.valid, "test": data.test}
    paths = {split: folder / file for split, file in files.items()}
    fields = _fields(data)
    if data.label in (field.name for field in fields):
        raise ValueError(f"the label {data.label!r} is also a field: a model that sees it predicts nothing else")
    columns = [data.label, *(field.name for field in fields)]
    return Log(fields, data.label, {split: _scan(path, columns, data) for split, path in paths.items()}, paths)


def _fields(data: Data) -> tuple[Field, ...]:
    """In the order of the lists, then of [[data.fields]], which may also say more of a field in the lists."""
    sides: list[tuple[Side, tuple[str, ...]]] = [("context", data.context), ("candidate", data.candidate)]
    fields = {
        name: Field(name, side, "numeric" if name in data.numeric else "categorical")
        for side, names in sides
        for name in names
    }
    for spec in data.fields:
        fields[spec.name] = spec.apply(fields.get(spec.name) or Field(spec.name, spec.side or "context"))
    return tuple(fields.values())


def _scan(path: Path, columns: list[str], data: Data) -> pl.LazyFrame:
    if path.name.endswith(".parquet"):
        return scan_parquet(path, columns, WAY_OUT)
    for ending, separator in SEPARATORS.items():
        if path.name.endswith(ending):
            frame = scan_text(path, separator=separator, names=data.columns or None, way_out=WAY_OUT)
            require_columns(path, columns, (name for name in frame.collect_schema() if name != LINE))
            return frame.select(LINE, *columns)
    raise ValueError(f"{path}: a log ends in .parquet, .csv, .tsv or .txt, the last three also in .gz")
