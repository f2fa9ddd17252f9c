"""Your own log: parquet or CSV files, with the columns that the experiment names."""

from pathlib import Path

import polars as pl

from contract.schema import Field, Side
from model.data.log import Log, check_label, read_parquet, require_columns
from model.experiment import Data

WAY_OUT = "The paths in the experiment file are relative to DIR/<data.folder>, with DIR from --data or CTR_DATA"


def read(folder: Path, data: Data) -> Log:
    """Reads the three files that `data` names, by their ending: .parquet, .csv or .csv.gz.

    A CSV file has no types: a categorical value stays the text that it is, character by character
    (an id "0017" keeps its zeros, and "1.0" is another token than "1"); numeric fields are parsed.

    Raises:
        ValueError: naming file and column (and value) for a missing file or column, a label that is
            not 0 or 1, a numeric field with text in it.
    """
    paths = {"train": data.train, "valid": data.valid, "test": data.test}
    splits = {split: _read(folder / path, data) for split, path in paths.items()}
    return Log(_fields(data), data.label, splits)


def _fields(data: Data) -> tuple[Field, ...]:
    sides: list[tuple[Side, tuple[str, ...]]] = [("context", data.context), ("candidate", data.candidate)]
    return tuple(
        Field(name, side, "numeric" if name in data.numeric else "categorical")
        for side, names in sides
        for name in names
    )


def _read(path: Path, data: Data) -> pl.DataFrame:
    columns = [data.label, *data.context, *data.candidate]
    if data.label in columns[1:]:
        raise ValueError(f"the label {data.label!r} is also a field: a model that sees it predicts nothing else")
    if path.name.endswith(".parquet"):
        frame = read_parquet(path, columns, WAY_OUT)
    elif path.name.endswith((".csv", ".csv.gz")):
        frame = _read_csv(path, columns, (data.label, *data.numeric))
    else:
        raise ValueError(f"{path}: a log ends in .parquet, .csv or .csv.gz")
    check_label(path, frame[data.label])
    return frame


def _read_csv(path: Path, columns: list[str], numeric: tuple[str, ...]) -> pl.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path}: no such file. {WAY_OUT}")
    try:
        # Nothing is inferred: a hashed id that happens to look like a number must keep its zeros.
        frame = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: is no readable CSV file: {error}") from error
    require_columns(path, columns, frame.columns)
    return frame.select(columns).with_columns(_parse(path, frame[name]) for name in numeric)


def _parse(path: Path, text: pl.Series) -> pl.Series:
    bare = text.str.strip_chars()
    parsed = bare.cast(pl.Float64, strict=False)
    wrong = text.filter(parsed.is_null() & bare.is_not_null() & (bare != ""))
    if len(wrong):
        raise ValueError(f"{path}: column {text.name!r} holds {wrong[0]!r} in {len(wrong)} rows: it takes numbers")
    return parsed
