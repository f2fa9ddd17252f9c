"""ctr-prepare: a raw log -> schema, vocabulary and columns, as training reads them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, Field, write_schema
from contract.tokens import normalise
from contract.vocabulary import FIRST, UNKNOWN, Vocabulary
from model.data import frappe, generated, table
from model.data.columns import (
    build_column_vocabulary,
    check_column,
    column_ids,
    column_numbers,
    mean_and_std,
    missing_share,
)
from model.data.folder import add_data_argument
from model.data.log import Log
from model.data.prepared import LOG, LogFacts, Prepared, SplitFacts, read_prepared
from model.experiment import Data, read_experiment
from model.folder import check_replaceable, new_folder

READERS: dict[str, Callable[[Path, Data], Log]] = {
    "frappe": frappe.read,
    "generated": generated.read,
    "table": table.read,
}

CAPTION = "missing: in train; unknown: in test, not in the vocabulary\n"


def prepare(root: Path, data: Data) -> Prepared:
    """Reads the log at root/<data.folder> and writes root/<data.prepared>, whole or not at all.

    Raises:
        ValueError: naming file, split, field or value, for a log that cannot be read.
    """
    target = root / data.prepared
    check_replaceable(target, SCHEMA)  # before the long part
    log = READERS[data.reader](root / data.folder, data)
    write_prepared(target, log, data)
    return read_prepared(target)


def write_prepared(target: Path, log: Log, data: Data) -> None:
    check_log(log)
    train = log.splits["train"]
    schema = FeatureSchema(tuple(_measure(field, train) for field in log.fields))
    vocabularies = [
        build_column_vocabulary(train[field.name], data.min_count) for field in schema.select("categorical")
    ]
    with new_folder(target, marker=SCHEMA) as folder:
        write_schema(schema, folder / SCHEMA)
        (folder / VOCABULARY).mkdir()
        for field, vocabulary in zip(schema.select("categorical"), vocabularies, strict=True):
            vocabulary.save(folder / VOCABULARY, field.name)
        for split, frame in log.splits.items():
            np.save(folder / f"{split}.ids.npy", _ids(frame, schema, vocabularies))
            np.save(folder / f"{split}.values.npy", _values(frame, schema))
            np.save(folder / f"{split}.labels.npy", frame[log.label].cast(pl.UInt8).to_numpy())
        for name in log.extra:
            np.save(folder / f"test.{name}.npy", log.splits["test"][name].to_numpy())
        (folder / LOG).write_bytes(msgspec.json.format(msgspec.json.encode(_facts(log, data))) + b"\n")


def check_log(log: Log) -> None:
    """Raises ValueError, naming split and field, for values that no field takes."""
    for split, frame in log.splits.items():
        for field in log.fields:
            try:
                check_column(frame[field.name], field)
            except ValueError as error:
                raise ValueError(f"{split}: {error}") from error


def _measure(field: Field, train: pl.DataFrame) -> Field:
    if field.kind == "categorical":
        return field
    mean, std = mean_and_std(column_numbers(train[field.name]))
    return msgspec.structs.replace(field, mean=mean, std=std)


def _ids(frame: pl.DataFrame, schema: FeatureSchema, vocabularies: list[Vocabulary]) -> NDArray[np.int32]:
    """int32 [rows, categorical fields]."""
    fields = schema.select("categorical")
    columns = [column_ids(frame[f.name], v) for f, v in zip(fields, vocabularies, strict=True)]
    return np.stack(columns, axis=1)


def _values(frame: pl.DataFrame, schema: FeatureSchema) -> NDArray[np.float32]:
    """float32 [rows, numeric fields]."""
    fields = schema.select("numeric")
    numbers = np.empty((len(frame), len(fields)))
    for column, field in enumerate(fields):
        numbers[:, column] = column_numbers(frame[field.name])
    return normalise(numbers, [f.mean for f in fields], [f.std for f in fields])


def _facts(log: Log, data: Data) -> LogFacts:
    rates = {
        split: SplitFacts(len(frame), float(frame[log.label].cast(pl.Float64).to_numpy().mean()))
        for split, frame in log.splits.items()
    }
    missing = {field.name: missing_share(log.splits["train"][field.name]) for field in log.fields}
    return LogFacts(data, missing, rates)


def summary(prepared: Prepared) -> Table:
    """One line a field, for the reader's eye: a column that is all unknown or all missing shows here."""
    rows = ", ".join(
        f"{name} {f.rows:,} rows with {f.click_rate:.2%} clicks" for name, f in prepared.facts.splits.items()
    )
    lines = Table("field", "side", "kind", "values", "missing", "unknown", caption=CAPTION + rows)
    unknown = dict(zip(_names(prepared), np.mean(prepared.split("test")[0] == UNKNOWN, axis=0), strict=True))
    sizes = dict(zip(_names(prepared), prepared.vocabulary_sizes, strict=True))
    for field in prepared.schema.fields:
        missing = f"{prepared.facts.missing[field.name]:.1%}"
        if field.kind == "categorical":
            values, strange = f"{sizes[field.name] - FIRST:,} tokens", f"{unknown[field.name]:.2%}"
        else:
            values, strange = f"{field.mean:.4g} ± {field.std:.4g}", ""
        lines.add_row(field.name, field.side, field.kind, values, missing, strange)
    return lines


def _names(prepared: Prepared) -> list[str]:
    return [field.name for field in prepared.schema.select("categorical")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ctr-prepare", description=__doc__)
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file")
    add_data_argument(parser)
    options = parser.parse_args(arguments)
    try:
        prepared = prepare(options.data, read_experiment(options.experiment).data)
    except (OSError, ValueError) as error:
        print(f"ctr-prepare: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(summary(prepared))
    console.print(f"wrote {prepared.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
