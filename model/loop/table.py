"""The joined log as tables: one row for each impression, and one for each late event."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from msgspec import UNSET

from contract.request_log import LoggedCandidate, LogLine
from contract.tokens import token
from model.loop.match import Impression, LateEvent

MILLISECONDS = pl.Datetime("ms", "UTC")
COLUMNS: Mapping[str, Any] = {
    "time": MILLISECONDS,
    "unit": pl.String,
    "score_id": pl.String,
    "candidate": pl.Int64,
    "candidate_id": pl.String,
    "click": pl.Int8,
    "click_delay_s": pl.Float64,
    "position": pl.Int64,
    "propensity": pl.Float64,
    "weight": pl.Float64,
    "model": pl.String,
    "version": pl.String,
    "ctr": pl.Float64,
    "logit": pl.Float64,
    "conversions": pl.Int64,
    "value": pl.Float64,
}
LATE_COLUMNS: Mapping[str, Any] = {
    "received": MILLISECONDS,
    "type": pl.String,
    "event_id": pl.String,
    "score_id": pl.String,
    "candidate": pl.Int64,
    "time": MILLISECONDS,
    "impression_time": MILLISECONDS,
    "value": pl.Float64,
}
SORT = ("time", "score_id", "candidate")
LATE_SORT = ("received", "score_id", "candidate", "type", "event_id")
ROW_GROUP = 100_000  # rows

_PLACES = {name: place for place, name in enumerate(COLUMNS)}
_encode = msgspec.json.Encoder(order="sorted").encode

# The columns of the join, in the order of COLUMNS, and the features as text.
Row = tuple[tuple[Any, ...], dict[str, str | None]]


class Names:
    """The names of the columns, of which the user may have changed some."""

    def __init__(self, changed: Mapping[str, str]) -> None:
        """Set the names.

        Args:
            changed: The new names, keyed by a column of the join such as "time", or by "context.NAME" or
                "candidate.NAME" for a feature.

        Raises:
            ValueError: If a key names nothing, or two columns of the join would have the same name.
        """
        for old in changed:
            if old not in COLUMNS and not old.startswith(("context.", "candidate.")):
                raise ValueError(
                    f'--rename {old}={changed[old]}: "{old}" is not a column of the join ({", ".join(COLUMNS)}). '
                    "To rename a feature, write context.NAME or candidate.NAME."
                )
        self._changed = changed
        self.columns = {changed.get(name, name): dtype for name, dtype in COLUMNS.items()}
        if len(self.columns) < len(COLUMNS):
            raise ValueError("--rename gives two columns of the join the same name. Choose other names.")

    def of(self, column: str) -> str:
        """Return the name of a column of the join."""
        return self._changed.get(column, column)

    def tokens(self, side: str, features: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the values of one side as text, keyed by column.

        Raises:
            ValueError: If a feature has the name of a column of the join.
        """
        found = {}
        for name, value in features.items():
            column = self._changed.get(f"{side}.{name}", name)
            if column in self.columns:
                raise ValueError(
                    f'a feature and a column of the join are both called "{column}". Rename the column of the join, '
                    f"for example with --rename {column}=joined_{column}, or the feature, with --rename "
                    f"{side}.{name}={side}_{name}."
                )
            if column in found:
                raise ValueError(f'--rename gives two features of a {side} the name "{column}". Choose other names.')
            found[column] = value_text(value)
        return found


def value_text(value: Any) -> str | None:
    """Return the token of a value, or its JSON if it is a list or an object. None means missing.

    Text has the same type in all hours, whatever the values. `[data]` reads it as the server read the value:
    categorical fields get the same token, and numeric fields the same number.
    """
    try:
        text = token(value)
    except ValueError:
        return _encode(value).decode()
    # ctr-prepare refuses NUL, because no vocabulary can contain it. To the server, such a value is unknown.
    return text.replace("\0", "\ufffd") if text and "\0" in text else text


def rows_of(request: LogLine, impressions: Sequence[Impression], names: Names) -> list[Row]:
    """Return one row for each impression of an answer.

    Raises:
        ValueError: If a feature's name is not available. The message names the request.
    """
    if not impressions:
        return []
    by_position = {candidate.candidate: candidate for candidate in request.candidates or ()}
    try:
        context = names.tokens("context", request.context or {})
        rows = []
        for impression in impressions:
            candidate = by_position[impression.event.stored.candidate]
            features = names.tokens("candidate", candidate.features)
            if both := context.keys() & features.keys():
                raise ValueError(
                    f'the context and a candidate both have a feature called "{min(both)}". Rename one of them, for '
                    f"example with --rename context.{min(both)}=context_{min(both)}."
                )
            rows.append((_join_columns(request, candidate, impression), context | features))
    except ValueError as error:
        raise ValueError(f"request {request.score_id}: {error}") from error
    return rows


def values_of(row: Row, columns: Sequence[str]) -> list[Any]:
    """Return the values of columns of the join."""
    return [row[0][_PLACES[column]] for column in columns]


def _join_columns(request: LogLine, candidate: LoggedCandidate, impression: Impression) -> tuple[Any, ...]:
    shown, click = impression.event, impression.click
    values = [event.stored.value for event in impression.conversions if event.stored.value is not UNSET]
    return (
        shown.time_ms,
        request.unit,
        request.score_id,
        candidate.candidate,
        value_text(candidate.id),
        int(click is not None),
        None if click is None else max(0, click.time_ms - shown.time_ms) / 1000,
        None if shown.stored.position is UNSET else shown.stored.position,
        None if shown.stored.propensity is UNSET else shown.stored.propensity,
        1 / candidate.inclusion,
        request.model,
        request.version,
        candidate.ctr,
        candidate.logit,
        len(impression.conversions),
        _sum_of(values),
    )


def _sum_of(values: Sequence[float]) -> float:
    """Return the exact sum, rounded. A sum that no number can hold becomes the largest number of its sign."""
    largest = Fraction(sys.float_info.max)
    try:
        return math.fsum(values)
    except OverflowError:  # Clients choose the values, and one client must not stop the join.
        return float(max(-largest, min(largest, sum(map(Fraction, values), Fraction(0)))))


def frame_of(rows: Sequence[Row], names: Names) -> pl.DataFrame:
    """Return rows as a table: the columns of the join, then the features."""
    joined = pl.DataFrame([columns for columns, _ in rows], _physical(names.columns), orient="row")
    features = sorted({name for _, features in rows for name in features})
    return joined.cast(names.columns).hstack(  # type: ignore[arg-type]
        [pl.Series(name, [row.get(name) for _, row in rows], pl.String) for name in features]
    )


def late_frame(late: Iterable[LateEvent]) -> pl.DataFrame:
    """Return late events as a table."""
    rows = [
        (
            event.received_ms,
            event.stored.type,
            event.stored.event_id,
            event.stored.score_id,
            event.stored.candidate,
            event.time_ms,
            impression.time_ms,
            None if event.stored.value is UNSET else event.stored.value,
        )
        for event, impression in ((row.event, row.impression) for row in late)
    ]
    return pl.DataFrame(rows, _physical(LATE_COLUMNS), orient="row").cast(LATE_COLUMNS)  # type: ignore[arg-type]


def concatenate(files: Sequence[Path], leading: Iterable[str], sort: Sequence[str]) -> pl.DataFrame:
    """Return the rows of several tables, sorted. The columns are the leading ones, then all others by name."""
    # read_ipc() would read a path with brackets as a pattern.
    tables = [pl.scan_ipc(file, glob=False, hive_partitioning=False).collect() for file in files]
    table = pl.concat(tables, how="diagonal")
    leading = list(leading)
    others = sorted(set(table.columns) - set(leading))
    return table.select(*leading, *others).sort(*sort)


def _physical(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return types that accept times in milliseconds as integers."""
    return {name: pl.Int64 if dtype == MILLISECONDS else dtype for name, dtype in columns.items()}
