"""Read a period of a joined log, and score its rows with two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.encode import Encoder, ModelInput
from contract.reader import Features, Lookup
from contract.vocabulary import UNKNOWN
from export.predict.predict import bad_row
from export.predict.rows import Batch, count_rows, kept_name, read_batches, sent_values
from export.predict.scorer import Scorer
from model.data.readers.files import Source
from model.data.readers.log import LINE, position, require_columns
from model.data.readers.scan import Part, open_parts, with_later_columns
from model.loop.match import HOUR_MS, hour_of
from model.loop.output import HOURS, hour_name, read_settings
from model.loop.table import Names

DAY_MS = 24 * HOUR_MS
SECOND_MS = 1000
MAX_VALUES = 10_000  # of a segment field
MAX_WEIGHT = 1e100  # Sums of squares of larger weights would overflow.
COLD = "cold ads"  # the segment of rows with unknown ids
COLUMNS = ("unit", "score_id", "click", "weight")  # of the join, which every row needs

Drawn = Literal["unit", "request", "row"]


@dataclass(frozen=True)
class Period:
    """A period of a joined log.

    Attributes:
        folder: The joined log.
        since_ms: The first moment of the period, in milliseconds since 1970.
        until_ms: The first moment after the period.
        frames: The rows of each file, with LINE, the columns that the models read, and kept columns (see kept_name()).
        columns: The names of the columns of the join, which `ctr-join --rename` may have changed.
        by: The columns whose values are segments.
    """

    folder: Path
    since_ms: int
    until_ms: int
    frames: Mapping[Path, pl.LazyFrame]
    columns: Mapping[str, str]
    by: Sequence[str]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return count_rows(self.frames)


@dataclass(frozen=True)
class Segments:
    """The segments of a field.

    Attributes:
        names: The values.
        codes: The number of each row's value, (rows), or -1 for rows in no segment.
    """

    names: Sequence[str]
    codes: NDArray[np.int64]


@dataclass(frozen=True)
class ScoredRows:
    """Rows with their labels and the probabilities of both models.

    Attributes:
        labels: 0 or 1, float64 (rows).
        weights: The weight of each row, float64 (rows).
        new: The new model's probabilities, float64 (rows).
        old: The old model's probabilities, float64 (rows).
        clusters: The number of each row's cluster, int64 (rows). The bootstrap draws clusters. Units come first, then
            the requests of rows without a unit, then rows with neither.
        drawn: What most clusters are.
        units: The number of clusters that are units.
        segments: The segments of each field.
    """

    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    new: NDArray[np.float64]
    old: NDArray[np.float64]
    clusters: NDArray[np.int64]
    drawn: Drawn
    units: int
    segments: Mapping[str, Segments]


class UnknownAds(Encoder):
    """An encoder that also remembers which rows have an unknown id on the candidate's side."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer.schema)
        self._parts: list[NDArray[np.bool_]] = []

    def rows(self, contexts: Sequence[Features], candidates: Sequence[Features], lookup: Lookup) -> ModelInput:
        """Encode rows as Encoder.rows() does."""
        encoded = super().rows(contexts, candidates, lookup)
        self._parts.append((encoded.candidate_ids == UNKNOWN).any(axis=1))
        return encoded

    def unknown(self) -> NDArray[np.bool_]:
        """Return whether each row that was encoded has an unknown id, (rows)."""
        return np.concatenate(self._parts)


def open_period(
    folder: Path, models: Sequence[Scorer], by: Sequence[str], since_ms: int | None, until_ms: int | None
) -> Period:
    """Find the rows of a period.

    Args:
        folder: The folder of a joined log.
        models: The models whose fields are read.
        by: The columns whose values are segments.
        since_ms: The first moment of the period, in milliseconds since 1970. None for 24 hours before its end.
        until_ms: The first moment after the period. None for the end of the log.

    Raises:
        ValueError: If the folder is not a joined log, the period has no rows, or a column is missing.
    """
    files = sorted((folder / HOURS).glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no {HOURS}/*.parquet. Name the folder that ctr-join writes.")
    for path in files:
        if not path.is_file():  # Opening a named pipe would block forever.
            raise ValueError(f"{path} is not a file. Remove it, or restore the hour.")
    if COLD in by:
        raise ValueError(f'--by "{COLD}": this is the name of the segment of rows with unknown ids. Rename the column.')
    names = column_names(files)
    if until_ms is None:
        # As in ctr-prepare, which counts back from the second of the newest row.
        until_ms = last_ms(files[-1], names["time"]) // SECOND_MS * SECOND_MS + SECOND_MS
    if since_ms is None:
        since_ms = until_ms - DAY_MS
    first, last = hour_name(hour_of(since_ms)), hour_name(hour_of(until_ms - 1))
    inside = [path for path in files if first <= path.stem <= last]
    text = f"{time_text(since_ms)} to {time_text(until_ms)}"
    if since_ms >= until_ms or not inside:
        hours = f"{files[0].stem} to {files[-1].stem}"
        raise ValueError(f"{folder} has no rows from {text}; its hours are {hours}. Change --since and --until.")
    features = list(dict.fromkeys(field.reads for model in models for field in model.schema.fields))
    kept = list(dict.fromkeys([*(names[name] for name in COLUMNS), *by]))
    parts = with_later_columns(open_parts(Source(str(path), path) for path in inside), [*features, *by])
    for part in parts:
        check_types(part, names, by)
    moment = pl.col(names["time"])
    in_period = (moment >= from_ms(since_ms)) & (moment < from_ms(until_ms))
    frames = {part.source.path: frame_of(part, features, kept).filter(in_period) for part in parts}
    selected = [LINE, *features, *(kept_name(name) for name in kept)]
    period = Period(folder, since_ms, until_ms, {p: f.select(selected) for p, f in frames.items()}, names, tuple(by))
    if not period.rows:
        raise ValueError(f"{folder} has no rows from {text}. Change --since and --until.")
    return period


def column_names(files: Sequence[Path]) -> dict[str, str]:
    """Return the name of each column of the join that the gate reads, from the settings in the files."""
    settings = next(filter(None, map(read_settings, files)), None)
    names = Names({} if settings is None else settings.rename)
    return {name: names.of(name) for name in ("time", *COLUMNS)}


def last_ms(path: Path, time: str) -> int:
    """Return the time of the newest row of a file, in milliseconds since 1970.

    Raises:
        ValueError: The file does not have such a column, or no row has a time.
    """
    frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    check_time(path, frame.collect_schema(), time)
    latest = frame.select(pl.col(time).max().dt.timestamp("ms")).collect().item()
    if not isinstance(latest, int):
        raise ValueError(
            f'{path}: no row has a value in the column "{time}". Write the hour again with ctr-join, or set --until.'
        )
    return latest


def check_time(path: Path, columns: Mapping[str, pl.DataType], time: str) -> None:
    """Check that a file has a column of times as ctr-join writes it. Raises ValueError if it does not."""
    if time not in columns:
        raise ValueError(f'{path}: no column "{time}". The file has {", ".join(columns)}.')
    dtype = columns[time]
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone != "UTC":
        raise ValueError(
            f'{path}: the column "{time}" has the type {dtype}; expected a Datetime in UTC. Write the hour again with '
            "ctr-join."
        )


def check_types(part: Part, names: Mapping[str, str], by: Sequence[str]) -> None:
    """Check that the columns of a file that are not features have types that can be read.

    Raises:
        ValueError: If one does not. The message names the file and the column.
    """
    columns = part.frame.collect_schema()
    check_time(part.source.path, columns, names["time"])
    for name in (names["click"], names["weight"], *by):
        dtype = columns.get(name)
        if dtype is not None and (dtype.is_nested() or dtype in (pl.Binary, pl.Object)):
            raise ValueError(
                f'{part.source.path}: the column "{name}" has the type {dtype}; expected text or numbers. Write the '
                "hour again with ctr-join, or choose another --by."
            )


def from_ms(moment_ms: int) -> datetime:
    """Return a moment in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC)


def time_text(moment_ms: int) -> str:
    """Return a moment as ISO 8601 text, such as 2026-11-30T20:00:00Z."""
    return from_ms(moment_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z").replace(".000Z", "Z")


def frame_of(part: Part, features: Sequence[str], kept: Sequence[str]) -> pl.LazyFrame:
    """Return the rows of a file, in which kept columns also have the names of kept_name().

    Raises:
        ValueError: If the file does not have all columns.
    """
    advice = "Name a log of the requests that these models score, or another --by."
    require_columns(part.source.name, [*features, *kept], part.columns, advice=advice)
    return part.frame.with_columns(pl.col(name).alias(kept_name(name)) for name in kept)


def score_period(
    period: Period, new: Scorer, old: Scorer, on_rows: Callable[[int], None] = lambda rows: None
) -> ScoredRows:
    """Score all rows of a period with both models.

    Args:
        period: The rows.
        new: The new model.
        old: The old model.
        on_rows: Called after each batch with its number of rows.

    Raises:
        ValueError: If a row cannot be scored, or its label or weight is invalid. The message names the file and line.
    """
    encoders = UnknownAds(new), Encoder(old.schema)
    kept: list[pl.DataFrame] = []
    scores: list[list[NDArray[np.float64]]] = [[], []]
    for batch in read_batches(period.frames):
        check_batch(batch, period)
        for scorer, encoder, found in zip((new, old), encoders, scores, strict=True):
            found.append(score_batch(scorer, encoder, batch))
        wanted = dict.fromkeys([*(period.columns[name] for name in COLUMNS), *period.by])
        kept.append(batch.rows.select(pl.col(kept_name(name)).alias(name) for name in wanted))
        on_rows(len(batch.rows))
    rows = pl.concat(kept, how="vertical_relaxed")
    columns = period.columns
    clusters, drawn, units = clusters_of(rows[columns["unit"]], rows[columns["score_id"]])
    cold = Segments(("unknown ids",), np.where(encoders[0].unknown(), 0, -1))
    return ScoredRows(
        labels=rows[columns["click"]].cast(pl.Float64).to_numpy(),
        weights=rows[columns["weight"]].cast(pl.Float64).to_numpy(),
        new=np.concatenate(scores[0]),
        old=np.concatenate(scores[1]),
        clusters=clusters,
        drawn=drawn,
        units=units,
        segments={COLD: cold, **{name: segments_of(name, rows[name]) for name in period.by}},
    )


def check_batch(batch: Batch, period: Period) -> None:
    """Check the labels and weights of a batch.

    Raises:
        ValueError: If one is invalid. The message names the file and line.
    """
    for name, expected in (("click", "0 or 1"), ("weight", f"a number above 0 and at most {MAX_WEIGHT:g}")):
        column = batch.rows[kept_name(period.columns[name])]
        numbers = column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        good = np.isin(numbers, (0, 1)) if name == "click" else (numbers > 0) & (numbers <= MAX_WEIGHT)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            where = position(str(batch.path), batch.rows[LINE][row])
            raise ValueError(
                f'{where}: column "{period.columns[name]}" holds {column[row]!r}; expected {expected}. Write the hour '
                "again with ctr-join."
            )


def score_batch(scorer: Scorer, encoder: Encoder, batch: Batch) -> NDArray[np.float64]:
    """Return the probability of each row of a batch, (rows).

    Raises:
        ValueError: If a row cannot be scored. The message names the file and line.
    """
    rows = sent_values(batch.rows, scorer.schema)
    try:
        return scorer.score(encoder, rows)
    except ValueError:
        errors = encoder.row_errors(rows)
        if not errors:
            raise
        index, error = next(iter(errors.items()))
        message = bad_row(batch, index, error, rows[index], encoder)
        raise ValueError(f"{message}. {scorer.folder} cannot score this row. Choose another period.") from error


def clusters_of(units: pl.Series, requests: pl.Series) -> tuple[NDArray[np.int64], Drawn, int]:
    """Return the cluster of each row, what most clusters are, and the number of units.

    Args:
        units: The unit of each row, or null.
        requests: The request of each row, or null.
    """
    unit, request = dense_codes(units), dense_codes(requests)
    count = int(unit.max(initial=-1)) + 1
    without = unit < 0
    with_request = without & (request >= 0)
    clusters = unit.copy()
    clusters[with_request] = count + np.unique(request[with_request], return_inverse=True)[1]
    rest = without & (request < 0)
    clusters[rest] = int(clusters.max(initial=-1)) + 1 + np.arange(np.count_nonzero(rest))
    drawn: Drawn = "unit" if count else "request" if with_request.any() else "row"
    return clusters, drawn, count


def dense_codes(column: pl.Series) -> NDArray[np.int64]:
    """Return a code for each distinct value of a column, from 0 in ascending order, and -1 for null. (rows)"""
    ranks: Any = column.rank("dense").cast(pl.Int64).fill_null(0)
    codes: NDArray[np.int64] = ranks.to_numpy() - 1
    return codes


def segments_of(name: str, column: pl.Series) -> Segments:
    """Return the segments of a column. Rows without a value are a segment, too.

    Raises:
        ValueError: If the column has too many values.
    """
    text = column.cast(pl.String).fill_null("(missing)")
    names = text.unique().sort().to_list()
    if len(names) > MAX_VALUES:
        raise ValueError(f"--by {name}: {len(names):,} values; expected at most {MAX_VALUES:,}. Choose another field.")
    return Segments(names, dense_codes(text))
