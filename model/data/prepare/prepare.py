"""ctr-prepare: a raw log -> schema, vocabulary and columns, as training reads them."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray
from rich.table import Table

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, Field, write_schema
from contract.tokens import Numbers
from contract.vocabulary import FIRST, MISSING, UNKNOWN, Vocabulary, open_vocabulary
from model.atomic_folder import check_replaceable, new_folder
from model.data.prepare.columns import measured
from model.data.prepare.counting import UnreadableError, Values, ids_in, number_tokens
from model.data.prepare.prepared import LOG, LogFacts, Prepared, SplitFacts, read_prepared
from model.data.prepare.reading import column_file, find_line, read_split
from model.data.prepare.writing import GrowingArray, chunks
from model.data.readers import avazu, criteo, frappe, generated, movielens, table
from model.data.readers.log import Log
from model.data_config import Data

CHUNK = 16_000  # rows: a block of 26 columns stays in a processor's cache

READERS: dict[str, Callable[[Path, Data], Log]] = {
    "avazu": avazu.read,
    "avazu_x1": avazu.read_x1,
    "criteo": criteo.read,
    "criteo_x1": criteo.read_x1,
    "frappe": frappe.read,
    "frappe_x1": frappe.read_x1,
    "generated": generated.read,
    "movielens_1m": movielens.read_1m,
    "movielens_latest_x1": movielens.read_latest_x1,
    "movielens_tag": movielens.read_tag,
    "table": table.read,
}

MOSTLY = 0.8  # a log split by time may lack most of its last day's ads, hardly all
CAPTION = "missing: in train; unknown: in test, not in the vocabulary\n"


def prepare(root: Path, data: Data) -> Prepared:
    """Reads the log at root/<data.folder> and writes root/<data.prepared>, whole or not at all.

    Raises:
        ValueError: naming file, split, field or value, for a log that cannot be read.
    """
    target, given = root / data.prepared, root / data.vocabulary if data.vocabulary else None
    check_replaceable(target, SCHEMA)  # before the long part
    if given and not given.is_dir():
        raise ValueError(f"{given}: there is no such folder: vocabulary = {data.vocabulary!r} names it below --data")
    log = READERS[data.reader](root / data.folder, data)
    write_prepared(target, log, data, given)
    return read_prepared(target)


def write_prepared(target: Path, log: Log, data: Data, given: Path | None = None) -> None:
    """given: a folder of vocabularies to use; without it they are counted."""
    try:
        with new_folder(target, marker=SCHEMA) as folder, TemporaryDirectory(dir=folder) as scratch:
            _write(folder, Path(scratch), log, data, given)
    except (OSError, RuntimeError) as error:  # marisa raises the second when it cannot write
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{target}: cannot be written: {reason}: nothing is left of it, make room and repeat"
        ) from error


def _write(folder: Path, scratch: Path, log: Log, data: Data, given: Path | None) -> None:
    categorical = [field for field in log.fields if field.kind == "categorical"]
    values = {field.name: Values() for field in categorical}
    (folder / VOCABULARY).mkdir()

    def number(field: Field) -> NDArray[np.int32]:
        vocabulary, ids = _number(field, values.pop(field.name), log, data, scratch, given)
        vocabulary.save(folder / VOCABULARY, field.name)
        return ids

    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        for split in log.splits:
            read_split(log, split, values, scratch, pool)
        ids = dict(zip((field.name for field in categorical), pool.map(number, categorical), strict=True))
        schema = FeatureSchema(tuple(pool.map(_measure, log.fields, repeat(scratch))))
        write_schema(schema, folder / SCHEMA)
        missing: dict[str, dict[str, float]] = {}
        splits: dict[str, SplitFacts] = {}
        for split in log.splits:
            jobs = [
                pool.submit(_write_ids, folder, scratch, split, schema, ids),
                pool.submit(_write_values, folder, scratch, split, schema),
            ]
            missing[split] = jobs[0].result() | jobs[1].result()
            splits[split] = _write_labels(folder, scratch, split)
    for name, column in _extra(log):
        np.save(folder / f"test.{name}.npy", column)
    facts = LogFacts(data, {field.name: missing["train"][field.name] for field in log.fields}, splits)
    (folder / LOG).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    if data.reader == "table" and (useless := useless_fields(read_prepared(folder))):
        raise ValueError(f"{log.paths['train']}: {useless[0]}")


def _number(
    field: Field, values: Values, log: Log, data: Data, scratch: Path, given: Path | None
) -> tuple[Vocabulary, NDArray[np.int32]]:
    """The vocabulary, and the id of each code."""
    distinct = values.distinct()
    rows = np.zeros(len(distinct) + 1, np.int64)
    for codes in chunks(column_file(scratch, "train", field.name), CHUNK):
        rows += np.bincount(codes, minlength=len(rows))
    try:
        if given:
            vocabulary = open_vocabulary(given, field.name)
            return vocabulary, ids_in(vocabulary, distinct, field)
        return number_tokens(distinct, rows, field, data.min_count_of(field.name))
    except UnreadableError as error:
        place = find_line(log, field.name, error.value)
        raise ValueError(f"{place}: column {field.name!r} holds {error.value!r}: {error.reason}") from error


def _write_labels(folder: Path, scratch: Path, split: str) -> SplitFacts:
    path = folder / f"{split}.labels.npy"
    (scratch / path.name).rename(path)
    labels = np.load(path)
    return SplitFacts(len(labels), float(labels.mean()))


def _measure(field: Field, scratch: Path) -> Field:
    if field.kind == "categorical":
        return field
    return measured(field, np.load(column_file(scratch, "train", field.name)))


def _write_ids(
    folder: Path, scratch: Path, split: str, schema: FeatureSchema, ids: Mapping[str, NDArray[np.int32]]
) -> dict[str, float]:
    """<split>.ids.npy, int32 [rows, categorical fields]. Returns the share of missing values by field."""
    names = [field.name for field in schema.select("categorical")]
    missing = np.zeros(len(names))
    with GrowingArray(folder / f"{split}.ids.npy", np.int32, len(names)) as array:
        for codes in zip(*(chunks(column_file(scratch, split, name), CHUNK) for name in names), strict=True):
            columns = [ids[name][column] for name, column in zip(names, codes, strict=True)]
            missing += [np.count_nonzero(column == MISSING) for column in columns]
            array.append(np.stack(columns, axis=1))
    return dict(zip(names, (missing / array.rows).tolist(), strict=True))


def _write_values(folder: Path, scratch: Path, split: str, schema: FeatureSchema) -> dict[str, float]:
    """<split>.values.npy, float32 [rows, numeric fields]. Returns the share of missing values by field."""
    fields = schema.select("numeric")
    scale = Numbers(fields)
    missing = np.zeros(len(fields))
    with GrowingArray(folder / f"{split}.values.npy", np.float32, len(fields)) as array:
        if not fields:
            array.append(np.empty((_rows(scratch, split, schema), 0)))
        for columns in zip(*(chunks(column_file(scratch, split, f.name), CHUNK) for f in fields), strict=True):
            numbers = np.stack(columns, axis=1)
            missing += np.isnan(numbers).sum(0)
            array.append(scale.normalise(numbers))
    return dict(zip([field.name for field in fields], (missing / array.rows).tolist(), strict=True))


def _rows(scratch: Path, split: str, schema: FeatureSchema) -> int:
    return len(np.load(column_file(scratch, split, schema.select("categorical")[0].name), mmap_mode="r"))


def _extra(log: Log) -> Iterator[tuple[str, NDArray[Any]]]:
    if log.extra:
        frame = log.splits["test"].select(log.extra).collect(engine="streaming")
        yield from ((name, frame[name].to_numpy()) for name in log.extra)


def summary(prepared: Prepared) -> Table:
    """One line a field, for the reader's eye: a column that is all unknown or all missing shows here."""
    rows = ", ".join(
        f"{name} {f.rows:,} rows with {f.click_rate:.2%} clicks" for name, f in prepared.facts.splits.items()
    )
    lines = Table("field", "side", "kind", "values", "missing", "unknown", caption=CAPTION + rows)
    unknown = dict(zip(_names(prepared), _unknown(prepared), strict=True))
    sizes = dict(zip(_names(prepared), prepared.vocabulary_sizes, strict=True))
    for field in prepared.schema.fields:
        missing = f"{prepared.facts.missing[field.name]:.1%}"
        if field.kind == "categorical":
            values, strange = f"{sizes[field.name] - FIRST:,} tokens", f"{unknown[field.name]:.2%}"
        else:
            values, strange = f"{field.mean:.4g} ± {field.std:.4g}", ""
        lines.add_row(field.name, field.side, field.kind, values, missing, strange)
    return lines


def useless_fields(prepared: Prepared) -> list[str]:
    """What is wrong with each field that tells a model nothing. An own log has to leave it out; of a published one, a
    day or a sample may be like that."""
    said = []
    ids = prepared.split("train")[0]
    for column, (name, size) in enumerate(zip(_names(prepared), prepared.vocabulary_sizes, strict=True)):
        missing = prepared.facts.missing[name]
        if size == FIRST:
            why = (
                "it is missing in every row of train" if missing == 1 else "no value is there min_count times in train"
            )
            said.append(f"column {name!r} has no token: {why}: lower min_count, or remove the field")
        elif size == FIRST + 1 and not missing and not (ids[:, column] == UNKNOWN).any():
            ((token, _),) = open_vocabulary(prepared.vocabulary, name).items()
            said.append(f"column {name!r} holds {token!r} in every row of train: it tells a model nothing, remove it")
    for field in prepared.schema.select("numeric"):
        if field.seen is UNSET:
            said.append(f"column {field.name!r} has no number: it is missing in every row of train: remove the field")
        elif field.seen[0] == field.seen[1]:
            what = f"column {field.name!r} holds {field.seen[0]:g} wherever train has a number"
            said.append(f"{what}: no weight can be trained on it, remove it or make it categorical")
    return said


def warnings(prepared: Prepared) -> list[str]:
    """Of what need not be an error."""
    fields = zip(_names(prepared), prepared.vocabulary_sizes, _unknown(prepared), strict=True)
    lacking = [
        f"column {name!r}: the vocabulary lacks {share:.2%} of test's values: is it another log's?"
        for name, size, share in fields
        if size > FIRST and share > MOSTLY
    ]
    return [*useless_fields(prepared), *lacking]


def _unknown(prepared: Prepared) -> NDArray[np.float64]:
    """The share of unknown values in test, of each categorical field."""
    share: NDArray[np.float64] = np.mean(prepared.split("test")[0] == UNKNOWN, axis=0)
    return share


def _names(prepared: Prepared) -> list[str]:
    return [field.name for field in prepared.schema.select("categorical")]
