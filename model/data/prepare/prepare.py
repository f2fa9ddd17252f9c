"""Preparing a log: converting a reader's frames to the schema, vocabularies and arrays that training reads."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray

from contract.bundle import SCHEMA, VOCABULARY
from contract.pseudonyms import HOW_TO_SET_A_KEY, Pseudonymizer, PseudonymKeyError
from contract.schema import FeatureSchema, Field, write_schema
from contract.vocabulary import Vocabulary, open_vocabulary
from model.atomic_folder import check_replaceable, new_folder
from model.data.prepare.columns import BadValueError, measure
from model.data.prepare.counting import DistinctValues, count_tokens, look_up_tokens
from model.data.prepare.negatives import write_kept
from model.data.prepare.prepared import LOG, LogFacts, Prepared, SplitFacts, read_prepared
from model.data.prepare.reading import column_file, find_value, read_split
from model.data.prepare.row_columns import KINDS, distinct_row_values, row_file
from model.data.prepare.summary import useless_fields
from model.data.prepare.writing import load_column, read_rows, write_column, write_ids, write_values
from model.data.readers import avazu, criteo, frappe, generated, movielens, table
from model.data.readers.log import Log, check_rows_read
from model.data.readers.split import iso
from model.data.sentinels import find_sentinels, without_codes
from model.data_config import Data

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


def prepare(root: Path, data: Data, pseudonyms: Pseudonymizer | None = None) -> Prepared:
    """Read the log in root/<data.folder> and write root/<data.prepared> atomically.

    Args:
        root: The base folder for the experiment's relative paths.
        data: The experiment's [data] section.
        pseudonyms: The key, which fields with pseudonyms need.

    Raises:
        ValueError: If a key is needed and missing, or the log cannot be read. The message names the file and, if
            applicable, the line and column.
    """
    target, vocabulary = root / data.prepared, root / data.vocabulary if data.vocabulary else None
    check_replaceable(target, SCHEMA)  # fail before the long part
    check_key_given(data, pseudonyms)
    if vocabulary and not vocabulary.is_dir():
        raise ValueError(f'{vocabulary}: no such folder. vocabulary = "{data.vocabulary}" is relative to --data.')
    log = READERS[data.reader](root / data.folder, data)
    write_prepared(target, log, data, vocabulary, pseudonyms)
    return read_prepared(target)


def check_key_given(data: Data, pseudonyms: Pseudonymizer | None) -> None:
    """Check that there is a key for pseudonyms if a field has them.

    Raises:
        PseudonymKeyError: If there is none. The message names the fields.
    """
    if data.has_pseudonyms and pseudonyms is None:
        fields = ", ".join(f'"{spec.name}"' for spec in data.fields if spec.pseudonym)
        raise PseudonymKeyError(
            f'pseudonym = "hmac" in {fields} needs a key. Add --pseudonym-key FILE, or {HOW_TO_SET_A_KEY}.'
        )


def write_prepared(
    target: Path, log: Log, data: Data, vocabulary: Path | None = None, pseudonyms: Pseudonymizer | None = None
) -> None:
    """Write a prepared log atomically.

    Args:
        target: The folder to write.
        log: The log.
        data: The [data] section that the log was read with.
        vocabulary: A folder of existing vocabularies to use, or None to count tokens.
        pseudonyms: The key, which fields with pseudonyms need.

    Raises:
        ValueError: If the log cannot be read or the folder cannot be written.
    """
    try:
        with new_folder(target, marker=SCHEMA) as folder, TemporaryDirectory(dir=folder) as scratch:
            fill_folder(folder, Path(scratch), log, data, vocabulary, pseudonyms)
    except (OSError, RuntimeError) as error:  # marisa raises RuntimeError when it cannot write
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{target}: cannot be written: {reason}. The partial output was removed.") from error


def fill_folder(
    folder: Path, scratch: Path, log: Log, data: Data, given: Path | None, pseudonyms: Pseudonymizer | None
) -> None:
    """Write all files of a prepared log.

    Args:
        folder: The prepared log.
        scratch: A folder for temporary files, which the caller removes.
        log: The log.
        data: The [data] section.
        given: A folder of existing vocabularies to use, or None to count tokens.
        pseudonyms: The key, which fields with pseudonyms need.
    """
    categorical = [field for field in log.fields if field.kind == "categorical"]
    values = {field.name: DistinctValues() for field in categorical}
    row_values = distinct_row_values()
    (folder / VOCABULARY).mkdir()
    kept: dict[str, Path] = {}  # which rows of a split are kept, if not all

    def number_values(field: Field) -> NDArray[np.int32]:
        """Write a field's vocabulary and return the id of each code."""
        # pop() frees the field's distinct values as soon as they are numbered.
        vocabulary, ids = make_vocabulary(
            field, values.pop(field.name), log, data, scratch, given, pseudonyms, kept.get("train")
        )
        vocabulary.save(folder / VOCABULARY, field.name)
        return ids

    def measured(field: Field) -> tuple[Field, dict[str, float]]:
        """Return a field with its mean, std and range, and its sentinels."""
        if field.kind == "categorical":
            return field, {}
        if data.has_missing_vector:
            field = msgspec.structs.replace(field, missing_vector=True)
        numbers = load_column(column_file(scratch, "train", field.name))
        found = find_sentinels(numbers)
        usual = without_codes(numbers, found) if data.clip_share else numbers
        return measure(field, usual, data.clip_share), found

    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        reads = {split: read_split(log, split, values, row_values, scratch, pool) for split in log.splits}
        if log.whole:
            check_rows_read(log.files, np.sum([read.rows for read in reads.values()], axis=0).tolist())
        if data.train_negative_rate < 1:
            kept["train"] = scratch / "train.kept.npy"
            write_kept(kept["train"], scratch / "train.labels.npy", data.train_negative_rate)
        ids = dict(zip((field.name for field in categorical), pool.map(number_values, categorical), strict=True))
        fields, sentinels = zip(*pool.map(measured, log.fields), strict=True)
        schema = FeatureSchema(
            fields, UNSET if pseudonyms is None or not data.has_pseudonyms else pseudonyms.fingerprint
        )
        write_schema(schema, folder / SCHEMA)
        missing: dict[str, dict[str, float]] = {}
        splits: dict[str, SplitFacts] = {}
        for split in log.splits:
            splits[split], missing[split] = write_split(folder, scratch, split, schema, ids, pool, kept.get(split))
            if (period := reads[split].period) is not None:
                splits[split] = msgspec.structs.replace(splits[split], period=(iso(period[0]), iso(period[1])))
    write_extra(folder, log)
    facts = LogFacts(
        data,
        {field.name: missing["train"][field.name] for field in log.fields},
        splits,
        {field.name: found for field, found in zip(fields, sentinels, strict=True) if found},
    )
    (folder / LOG).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    # A published log may have a useless field on some days or in a sample. In your own log, it is a mistake.
    if data.reader == "table" and (messages := useless_fields(read_prepared(folder))):
        raise ValueError(f"{log.paths['train']}: {messages[0]}")


def write_extra(folder: Path, log: Log) -> None:
    """Write the columns of test that are kept although they are not features."""
    if log.extra:
        extra = log.splits["test"].select(log.extra).collect(engine="streaming")
        for name in log.extra:
            np.save(folder / f"test.{name}.npy", extra[name].to_numpy())


def make_vocabulary(
    field: Field,
    values: DistinctValues,
    log: Log,
    data: Data,
    scratch: Path,
    given: Path | None,
    pseudonyms: Pseudonymizer | None,
    kept: Path | None,
) -> tuple[Vocabulary, NDArray[np.int32]]:
    """Return a field's vocabulary, either given or counted in the training set, and the id of each code.

    All rows of train count, also those that Data.train_negative_rate drops. Otherwise, of two rare ads with the same
    number of rows, the one with clicks would more often reach min_count, and the unknown id would be trained mostly on
    ads without clicks. A token without a kept row gets the unknown id, because its embedding would not be trained.

    Args:
        field: The field.
        values: The distinct values of the field in all splits.
        log: The log.
        data: The [data] section.
        scratch: The folder with the column files.
        given: A folder of existing vocabularies to use, or None to count tokens.
        pseudonyms: The key, which fields with pseudonyms need.
        kept: The file that says which rows of train are kept, or None for all (see negatives.write_kept()).

    Raises:
        ValueError: If a value cannot be a token. The message names the file, line and column.
    """
    distinct, column = values.distinct(), column_file(scratch, "train", field.name)
    rows = count_codes(column, None, len(distinct))
    trained = None if kept is None else count_codes(column, kept, len(distinct))
    try:
        if given:
            vocabulary = open_vocabulary(given, field.name)
            return vocabulary, look_up_tokens(vocabulary, distinct, field)
        return count_tokens(distinct, rows, field, data.min_count_of(field.name), pseudonyms, trained)
    except BadValueError as error:
        where = log.paths["train"] if error.row is None else find_value(log, field.reads, distinct[error.row])
        raise ValueError(f'{where}: column "{field.reads}" {error.reason}') from error


def count_codes(column: Path, kept: Path | None, distinct: int) -> NDArray[np.int64]:
    """Return the number of rows with each code, int64 (1 + distinct). `kept` is as in writing.read_rows()."""
    rows = np.zeros(distinct + 1, np.int64)
    for (codes,) in read_rows([column], kept):
        rows += np.bincount(codes, minlength=len(rows))
    return rows


def write_split(
    folder: Path,
    scratch: Path,
    split: str,
    schema: FeatureSchema,
    ids: Mapping[str, NDArray[np.int32]],
    pool: Executor,
    kept: Path | None,
) -> tuple[SplitFacts, dict[str, float]]:
    """Write a split's ids, values, labels, weights, units and requests.

    Args:
        folder: The prepared log.
        scratch: The folder with the column files.
        split: The split.
        schema: The fields.
        ids: The ids of a field's codes, by field.
        pool: The pool in which ids and values are written in parallel.
        kept: The file that says which rows to write, or None for all.

    Returns:
        The facts about the split; the share of missing values by field.
    """
    path = folder / f"{split}.labels.npy"
    dropped = write_column(path, scratch / path.name, kept)
    for kind in KINDS:
        if (written := row_file(scratch, split, kind)).is_file():
            write_column(row_file(folder, split, kind), written, kept)
    labels = np.load(path)
    categorical, numeric = ([f.name for f in schema.select(kind)] for kind in ("categorical", "numeric"))
    files = {name: column_file(scratch, split, name) for name in (*categorical, *numeric)}
    codes, numbers = {name: files[name] for name in categorical}, [files[name] for name in numeric]
    missing_ids = pool.submit(write_ids, folder / f"{split}.ids.npy", codes, ids, kept)
    missing_values = pool.submit(
        write_values, folder / f"{split}.values.npy", numbers, schema.select("numeric"), len(labels), kept
    )
    return SplitFacts(len(labels), float(labels.mean()), dropped), missing_ids.result() | missing_values.result()
