"""The rows to calibrate with: the last days of a joined log, or of other files with a label and a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from contract.encode import Encoder, join
from contract.pseudonyms import Pseudonymizer, check_pseudonym_key
from contract.vocabulary import UNKNOWN
from export.calibrate.rows import Floats, Rows, join_rows
from export.calibrate.source import Source, check_segment_field, finite, weights_digest
from export.predict.predict import bad_row
from export.predict.rows import Batch, kept_name, open_files, read_batches, select_columns, sent_values
from export.predict.scorer import RUN_ROWS, Scorer, open_run_scorer
from model.data.prepare.columns import BadValueError, label_column
from model.data.prepare.row_columns import weight_column
from model.data.readers.log import LINE, position, require_columns
from model.data.readers.named import find_named_files
from model.data.readers.scan import Part
from model.data.readers.split import iso
from model.data.timestamps import EXPECTED_TIME, unix_seconds
from model.data_config import Data
from model.loop.output import HOURS, read_settings
from model.loop.table import Names

LABEL_ADVICE = "ctr-join writes it. For other files, set label, time and weight in the [data] section of the run."


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are not features.

    Attributes:
        label: The column with the clicks.
        time: The column with the times.
        weight: The column with the weights, or "".
        positive: The labels that are clicks, or () if the labels are 0 and 1.
        missing: The labels that mean "missing".
    """

    label: str = "click"
    time: str = "time"
    weight: str = ""
    positive: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return [name for name in (self.label, self.time, self.weight) if name]


@dataclass(frozen=True)
class Lengths:
    """The lengths of valid and test in seconds, counted back from the newest row."""

    valid_s: int
    test_s: int


def read_joined_log(
    run: Path,
    files: Sequence[str],
    lengths: Lengths,
    by: str | None,
    negative_rate: float = 1.0,
    pseudonyms: Pseudonymizer | None = None,
) -> Source:
    """Score the last part of a log as test, and the part before it as valid.

    Args:
        run: The run folder.
        files: The folder of a joined log, or files, folders and globs.
        lengths: The lengths of valid and test.
        by: The segment field, or None.
        negative_rate: The share of the negatives that the log kept.
        pseudonyms: The key for fields with pseudonyms. A joined log contains the pseudonyms, and needs no key.

    Raises:
        ValueError: If a file cannot be read, a value is not valid, or valid or test has no rows.
    """
    weights = weights_digest(run)
    scorer = open_run_scorer(run, use_calibration=False)
    check_segment_field(scorer.schema, by)
    check_pseudonym_key(scorer.schema, pseudonyms)
    frames, columns = open_log(scorer, files)
    latest = newest(frames, columns.time)
    last = max(latest.values())
    test_start = last - lengths.test_s
    valid_start = test_start - lengths.valid_s
    frames = {path: frame for path, frame in frames.items() if latest.get(path, 0) > valid_start}
    encoder = Encoder(scorer.schema, pseudonyms=pseudonyms)
    parts: dict[str, list[Rows]] = {"valid": [], "test": []}
    for batch in read_batches(frames):
        seconds = times(batch, columns.time)
        for name, start, end in (("valid", valid_start, test_start), ("test", test_start, last)):
            rows = batch.rows.filter((seconds > start) & (seconds <= end))
            if len(rows):
                scored = score_batch(scorer, encoder, replace(batch, rows=rows), columns, by)
                parts[name].append(replace(scored, negative_rate=negative_rate))
    bounds = {"valid": f"{iso(valid_start)} to {iso(test_start)}", "test": f"{iso(test_start)} to {iso(last)}"}
    for name, found in parts.items():
        if not found:
            raise ValueError(
                f"{', '.join(files)}: no rows for {name}, from {bounds[name]}. Use longer --valid and --test, or more "
                "days."
            )
    valid, test = (join_rows(found) for found in parts.values())
    return Source(valid, test, (bounds["valid"], bounds["test"]), weights)


def open_log(scorer: Scorer, files: Sequence[str]) -> tuple[dict[Path, pl.LazyFrame], Columns]:
    """Open the files of a log with the run's [data] section.

    Raises:
        ValueError: If a file cannot be read or does not have a column.
    """
    parts = open_files(find_named_files([*map(hours_of, files)]).sources, scorer.data)
    columns = columns_of(scorer.data, parts)
    features = dict.fromkeys(field.reads for field in scorer.schema.fields)
    for part in parts:
        require_columns(part.source.name, columns.names, part.columns, advice=LABEL_ADVICE)
    return select_columns(parts, list(features), columns.names, scorer.data), columns


def hours_of(name: str) -> str:
    """Return the folder with the hours of a joined log. Its other folder contains events. Other names are unchanged."""
    return str(Path(name) / HOURS) if (Path(name) / HOURS).is_dir() else name


def columns_of(data: Data | None, parts: Sequence[Part]) -> Columns:
    """Return the columns that are not features: those of the run's [data] section, or else those of ctr-join."""
    join = names_of_join(parts)
    of_join = Columns() if join is None else Columns(join.of("click"), join.of("time"), join.of("weight"))
    if data is None or data.reader != "table":
        return of_join
    has_label = join is None or all(data.label in part.columns for part in parts)
    return replace(
        of_join,
        label=data.label if has_label else of_join.label,
        time=data.time or of_join.time,
        weight=data.weight or of_join.weight,
        positive=data.positive if has_label else (),
        missing=data.missing if has_label else (),
    )


def names_of_join(parts: Sequence[Part]) -> Names | None:
    """Return the names of the columns that ctr-join wrote, which --rename may have changed, or None for other files."""
    if not all(part.is_joined for part in parts):
        return None
    settings = read_settings(parts[0].source.path)
    assert settings is not None
    return Names(settings.rename)


def newest(frames: Mapping[Path, pl.LazyFrame], time: str) -> dict[Path, int]:
    """Return the time of the newest row of each file that has rows, in Unix seconds.

    Raises:
        ValueError: If a time is missing or cannot be read, or there are no rows.
    """
    found: dict[Path, int] = {}
    for path, frame in frames.items():
        for batch in read_batches({path: frame.select(LINE, kept_name(time))}):
            latest = times(batch, time).max()
            assert isinstance(latest, int)
            found[path] = max(latest, found.get(path, latest))
    if not found:
        raise ValueError(f"{', '.join(map(str, frames))}: no rows.")
    return found


def times(batch: Batch, time: str) -> pl.Series:
    """Return the time of each row in Unix seconds, (rows).

    Raises:
        ValueError: If a time is missing or cannot be read.
    """
    column = batch.rows[kept_name(time)]
    try:
        seconds = unix_seconds(column)
    except ValueError as error:
        raise ValueError(f'{batch.path}: column "{time}" {error}.') from error
    if seconds.null_count():
        row = int(seconds.is_null().arg_max() or 0)
        found = "is empty" if column[row] is None else f"holds {json.dumps(column[row], default=str)}"
        where = position(str(batch.path), batch.rows[LINE][row])
        raise ValueError(f'{where}: column "{time}" {found}; {EXPECTED_TIME}. Fix or remove the row.')
    return seconds


def score_batch(scorer: Scorer, encoder: Encoder, batch: Batch, columns: Columns, by: str | None) -> Rows:
    """Return the rows of a batch with the run's logits.

    Raises:
        ValueError: If a value is not valid. The message names the file, the line and the column.
    """
    label, importance = labels_and_weights(batch, columns)
    values = sent_values(batch.rows, scorer.schema)
    try:
        model_input = encoder.rows(values, values, scorer.vocabularies)
    except ValueError:
        # Reading whole columns does not show which row is bad. Check row by row to find it.
        for index, error in encoder.row_errors(values).items():
            raise ValueError(f"{bad_row(batch, index, error, values[index], encoder)}. Fix the row.") from error
        raise
    feed = join([model_input])
    logits = []
    for start in range(0, len(values), RUN_ROWS):
        part = {name: array[start : start + RUN_ROWS] for name, array in feed.items()}
        part["request_index"] = np.arange(len(part["candidate_ids"]), dtype=np.int64)
        logits.append(scorer.graph(part))
    logit = finite(scorer.calibrator.correction.corrected(np.concatenate(logits)))
    names = [field.name for field in scorer.schema.select("categorical", "context")]
    segment = None if by is None else model_input.context_ids[:, names.index(by)]
    return Rows(logit, label, importance, 1.0, (model_input.candidate_ids == UNKNOWN).any(axis=1), segment)


def labels_and_weights(batch: Batch, columns: Columns) -> tuple[Floats, Floats]:
    """Return the labels and the weights of a batch, (rows) each.

    Raises:
        ValueError: If a value is not valid.
    """

    def column(name: str) -> pl.Series:
        return batch.rows[kept_name(name)].alias(name)

    try:
        label = label_column(column(columns.label), columns.positive, columns.missing).astype(np.float64)
        if not columns.weight:
            return label, np.ones(len(label))
        return label, weight_column(column(columns.weight)).astype(np.float64)
    except BadValueError as error:
        where = str(batch.path) if error.row is None else position(str(batch.path), batch.rows[LINE][error.row])
        raise ValueError(f'{where}: column "{error.column}" {error.reason}') from error
