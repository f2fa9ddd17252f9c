"""What a simulation knows: the rows that a join of its logs must contain, and what must become of each event."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import numpy as np
import polars as pl
from msgspec import UNSET

from contract.events import StoredEvent
from contract.score_ids import is_logged, score_time_s
from contract.tokens import token
from model.data.readers.generated import CANDIDATE, CONTEXT, NUMERIC
from model.data.synthetic.generate import NAMES
from model.data.synthetic.traffic import REPLACED, Requests, later_name
from model.data.synthetic.traffic_events import Answers, SentEvent, Shown

MAX_SKEW_MS = 300_000  # ctr-join replaces times that are further ahead, and drops events this long before the answer
HOUR_MS = 3_600_000
# The code of a missing value is one more than those of the others, which gives null.
TOKENS = {name: pl.Series([token(value) for value in (*values, None)]) for name, values in NAMES.items()}
JOINED = (
    *("time", "unit", "score_id", "candidate", "candidate_id", "click", "click_delay_s", "position", "version"),
    *("ctr", "conversions", "value"),
)
KEY = ("score_id", "candidate")


@dataclass
class Truth:
    """The requests of a simulation with their answers, and what happened to them."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    sent: list[SentEvent] = field(default_factory=list)

    def add(self, requests: Requests, answers: Answers, shown: Shown, sent: Sequence[SentEvent]) -> None:
        """Add requests. All arguments belong to the same requests."""
        self.frames.append(impressions(requests, answers, shown))
        self.sent += sent

    def impressions(self) -> pl.DataFrame:
        """Return one row per candidate that was shown, in the order of the requests and positions."""
        return pl.concat(self.frames).sort("request", "position")

    def events(self, window_s: float, lateness_s: float, requests: Collection[str] | None = None) -> pl.DataFrame:
        """Return one row per event that was sent, with its category once all hours are final.

        Args:
            window_s: The join's window.
            lateness_s: The join's lateness.
            requests: The score_id of each request in the log. Default: no sampled request is missing in it.
        """
        events = sent_events(self.sent)
        is_first, is_impression = pl.col("what") == "original", pl.col("type") == "impression"
        is_unknown = pl.col("what") == "foreign"
        if requests is not None:
            is_unknown |= ~pl.col("score_id").is_in(list(requests))
        window_ms = round(window_s * 1000)
        closing_ms = HOUR_MS + window_ms + round(lateness_s * 1000)

        def is_late(impression_ms: pl.Expr) -> pl.Expr:
            return pl.col("received_ms") >= impression_ms // HOUR_MS * HOUR_MS + closing_ms

        on_time = events.filter(is_impression & is_first & ~pl.col("too_early") & ~is_late(pl.col("time_ms")))
        events = events.join(
            on_time.select(*KEY, impression_ms="time_ms"), KEY, "left", maintain_order="left"
        ).with_columns(impression_ms=pl.when(is_impression).then("time_ms").otherwise("impression_ms"))
        delay_ms = pl.col("time_ms") - pl.col("impression_ms")
        return events.with_columns(
            category=pl.when("too_early")
            .then(pl.lit("invalid"))
            .when(~pl.col("logged"))
            .then(pl.lit("not sampled"))
            .when(is_unknown)
            .then(pl.lit("without request"))
            .when(pl.col("what") == "invalid")
            .then(pl.lit("invalid"))
            .when(pl.col("impression_ms").is_null())
            .then(pl.lit("without impression"))
            .when(~delay_ms.is_between(-MAX_SKEW_MS, window_ms))
            .then(pl.lit("outside window"))
            .when(~is_first)
            .then(pl.lit("duplicate"))
            .when(is_late(pl.col("impression_ms")))
            .then(pl.lit("late"))
            .otherwise(pl.lit("joined"))
        )

    def joined(self, events: pl.DataFrame) -> pl.DataFrame:
        """Return the rows that the joined log must have in its final hours, sorted by score_id and candidate.

        Args:
            events: The result of events().
        """
        used = events.filter(category="joined")
        impression, click, conversion = (used.filter(type=name) for name in ("impression", "click", "conversion"))
        values = conversion.group_by(KEY).agg(conversions=pl.len().cast(pl.Int64), value=pl.col("value").sum())
        rows = (
            self.impressions()
            .join(impression.select(*KEY, "time_ms"), KEY, "inner")
            .join(click.select(*KEY, click_ms="time_ms"), KEY, "left")
            .join(values, KEY, "left")
            .sort(KEY)
        )
        return rows.with_columns(
            pl.col("conversions", "value").fill_null(0),
            *(pl.Series(name, list(map(token, rows[name].to_list())), pl.String) for name in NUMERIC),
            time=pl.col("time_ms").cast(pl.Datetime("ms", "UTC")),
            click=pl.col("click_ms").is_not_null().cast(pl.Int8),
            # Polars multiplies by 0.001 instead, which gives other digits.
            click_delay_s=pl.Series((rows["click_ms"] - rows["time_ms"]).clip(0).to_numpy() / 1000, nan_to_null=True),
        ).select(*JOINED, *CONTEXT, *CANDIDATE)


def sent_events(sent: Sequence[SentEvent]) -> pl.DataFrame:
    """Return one row per event. Its time is that of arrival if the client's clock is more than MAX_SKEW_MS ahead.

    Copies of an event that arrived in the same millisecond are one event, because they cannot be told apart.
    """
    score_ids = [event.score_id for _, event, _ in sent]
    frame = pl.DataFrame(
        {
            "event_id": [event.event_id for _, event, _ in sent],
            "type": [event.type for _, event, _ in sent],
            "score_id": score_ids,
            "candidate": [event.candidate for _, event, _ in sent],
            "what": [what for _, _, what in sent],
            "value": [None if event.value is UNSET else event.value for _, event, _ in sent],
            "sent_ms": pl.Series([event.time for _, event, _ in sent]).str.to_datetime(time_zone="UTC"),
            "received_ms": [round(send_s * 1000) for send_s, _, _ in sent],
            "answered_ms": [round(score_time_s(score_id) * 1000) for score_id in score_ids],
            "logged": [is_logged(score_id) for score_id in score_ids],
        },
        schema_overrides={"value": pl.Float64},
    ).with_columns(pl.col("sent_ms").dt.epoch("ms"))
    frame = frame.unique(["event_id", "received_ms"], keep="first", maintain_order=True)
    is_ahead = pl.col("sent_ms") > pl.col("received_ms") + MAX_SKEW_MS
    return frame.with_columns(
        time_ms=pl.when(is_ahead).then("received_ms").otherwise("sent_ms"),
    ).with_columns(too_early=pl.col("time_ms") < pl.col("answered_ms") - MAX_SKEW_MS)


def impressions(requests: Requests, answers: Answers, shown: Shown) -> pl.DataFrame:
    """Return one row per candidate that was shown. The features are tokens, as in a joined log."""
    count, positions = shown.candidate.shape
    row, candidate = np.repeat(np.arange(count), positions), shown.candidate.ravel()
    columns = {
        name: column[row] if column.ndim == 1 else column[row, candidate]
        for name, column in (requests.codes | requests.numbers).items()
    }
    features: dict[str, pl.Series] = {name: TOKENS[name].gather(columns[name]) for name in requests.codes}
    generation = requests.generation[row, candidate].tolist()
    for name in REPLACED:
        names = zip(features[name].to_list(), generation, strict=True)
        features[name] = pl.Series([later_name(*pair) for pair in names])
    features |= {name: pl.Series(columns[name], nan_to_null=True) for name in NUMERIC}
    features["session_depth"] = features["session_depth"].cast(pl.Int64)
    features["user"] = pl.Series(requests.unit[row].tolist())
    return pl.DataFrame(
        {
            "request": requests.number[row],
            "unit": features["user"],
            "score_id": pl.Series(answers.score_id).gather(row),
            "candidate": candidate,
            "candidate_id": features["ad"],
            "position": np.tile(np.arange(positions), count),
            "version": pl.Series(answers.version).gather(row),
            "ctr": answers.ctr[row, candidate],
            "probability": shown.probability.ravel(),
            "clicked": shown.clicked.ravel(),
            "true_click_delay_s": shown.click_delay_s.ravel(),
        }
        | {name: features[name] for name in (*CONTEXT, *CANDIDATE)}
    )


def balance(events: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Return the number of events of each type in each category, as in join.json. Categories without events are absent.

    Args:
        events: The result of Truth.events().
    """
    counts: dict[str, dict[str, int]] = {}
    for name, category, number in events.group_by("type", "category").len().sort("type", "category").rows():
        counts.setdefault(f"{name}s", {})[category] = number
    return counts


def received(sent: Sequence[SentEvent], lines: Iterable[bytes]) -> list[SentEvent]:
    """Return the events that ctr-collect stored, with the time at which it received them as `send_s`.

    An event that was stored several times, because the client sent it again, counts as "resent" after the first time.

    Args:
        sent: The events that were sent.
        lines: The lines that ctr-collect wrote, in any order.

    Raises:
        ValueError: If an event was not sent.
    """
    whats = {event.event_id: what for _, event, what in sent if what != "resent"}
    decode = msgspec.json.Decoder(StoredEvent).decode
    stored = sorted(map(decode, set(lines)), key=lambda event: event.received)
    seen, result = set[str](), list[SentEvent]()
    for event in stored:
        if event.event_id not in whats:
            raise ValueError(f"ctr-collect stored the event {event.event_id}, which was not sent")
        what = whats[event.event_id]
        again = event.event_id in seen and what == "original"
        seen.add(event.event_id)
        received_s = datetime.fromisoformat(event.received).timestamp()
        result.append(SentEvent(received_s, event, "resent" if again else what))
    return result
