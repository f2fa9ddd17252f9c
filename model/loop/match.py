"""Joining the events of one answer: which impression, click and conversions each candidate has.

The result depends only on the answer's line in the request log and on its events, in any order. An hour of impressions
is final once all events that may still belong to it would be late. From then on, no later event changes its rows: an
event that is late never decides about one that is not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from contract.events import EVENT_TYPES
from contract.request_log import LogLine
from contract.score_ids import is_logged
from model.loop.lines import MAX_SKEW_MS, Event

HOUR_MS = 3_600_000

# What becomes of an event. docs/loop.md describes each category.
Category = Literal[
    "joined",
    "duplicate",
    "not sampled",
    "without request",
    "without impression",
    "outside window",
    "invalid",
    "late",
    "pending",
]


@dataclass(frozen=True)
class Rules:
    """The parameters of a join. Times and durations are in milliseconds.

    Attributes:
        window_ms: How long after an impression its click may happen.
        lateness_ms: How long after the end of the window events may arrive.
        watermark_ms: All events that were received before this time are among the inputs.
    """

    window_ms: int
    lateness_ms: int
    watermark_ms: int

    def deadline(self, time_ms: int) -> int:
        """Return when the hour of an impression becomes final. Events that are received then or later are late."""
        return hour_of(time_ms) + HOUR_MS + self.window_ms + self.lateness_ms

    def is_final(self, time_ms: int) -> bool:
        """Return whether the hour of an impression is final."""
        return self.watermark_ms >= self.deadline(time_ms)


@dataclass(frozen=True)
class Impression:
    """An impression with its click and conversions.

    Attributes:
        event: The impression's event.
        click: The first click within the window, if any.
        conversions: All conversions within the window, oldest first.
    """

    event: Event
    click: Event | None
    conversions: Sequence[Event]


@dataclass(frozen=True)
class LateEvent:
    """An event that arrived after its hour was final.

    Attributes:
        event: The event.
        impression: Its impression. For an impression, the event itself.
    """

    event: Event
    impression: Event


@dataclass
class Matched:
    """The result for one answer.

    Attributes:
        impressions: The impressions of final hours.
        late: The late events.
        outcomes: The category of each event.
        click_delays_ms: The delay of the first click of each impression in a final hour, including clicks after the
            window.
    """

    impressions: list[Impression] = field(default_factory=list)
    late: list[LateEvent] = field(default_factory=list)
    outcomes: list[tuple[Event, Category]] = field(default_factory=list)
    click_delays_ms: list[int] = field(default_factory=list)

    def add(self, events: Iterable[Event], category: Category) -> None:
        """Record the category of some events."""
        self.outcomes.extend((event, category) for event in events)


def hour_of(time_ms: int) -> int:
    """Return the beginning of the hour, in milliseconds since 1970."""
    return time_ms // HOUR_MS * HOUR_MS


def match(request: LogLine | None, events: Sequence[Event], rules: Rules) -> Matched:
    """Join the events of one answer.

    Args:
        request: The answer's line in the request log, or None if there is none.
        events: All valid events with the answer's score id.
        rules: The parameters of the join.
    """
    result = Matched()
    logged = frozenset(candidate.candidate for candidate in (request and request.candidates) or ())
    by_candidate: dict[int, list[Event]] = {}
    for event in sorted(events, key=lambda event: event.order):
        category = _why_unmatched(event, request, logged, rules)
        if category is None:
            by_candidate.setdefault(event.stored.candidate, []).append(event)
        else:
            result.add([event], category)
    for candidate in sorted(by_candidate):
        _match_candidate(by_candidate[candidate], rules, result)
    return result


def _why_unmatched(event: Event, request: LogLine | None, logged: frozenset[int], rules: Rules) -> Category | None:
    """Return the category of an event that belongs to no logged candidate, or None if it belongs to one."""
    if request is None:
        if not is_logged(event.stored.score_id):
            return "not sampled"
        return "without request" if rules.is_final(event.time_ms) else "pending"
    if event.stored.candidate >= request.candidate_count:
        return "invalid"
    return None if event.stored.candidate in logged else "not sampled"


def _match_candidate(events: Sequence[Event], rules: Rules, result: Matched) -> None:
    """Join the events of one candidate, which are sorted by their order."""
    shown, clicks, conversions = ([event for event in events if event.stored.type == name] for name in EVENT_TYPES)
    impression = _first_impression(shown, rules, result)
    if impression is None:
        for event in (*clicks, *conversions):
            result.add([event], "without impression" if rules.is_final(event.time_ms) else "pending")
        return
    joined_clicks = _followers(clicks, impression, rules, result, lambda _: "")
    joined_conversions = _followers(conversions, impression, rules, result, lambda event: event.stored.event_id)
    if not rules.is_final(impression.time_ms):
        return
    click = joined_clicks[0] if joined_clicks else None
    result.impressions.append(Impression(impression, click, joined_conversions))
    after_window = [event for event in clicks if event.time_ms - impression.time_ms > rules.window_ms]
    if first_clicks := joined_clicks or after_window:
        result.click_delays_ms.append(max(0, first_clicks[0].time_ms - impression.time_ms))


def _first_impression(shown: Sequence[Event], rules: Rules, result: Matched) -> Event | None:
    """Return the first impression that is on time."""
    on_time: list[Event] = []
    late: list[Event] = []
    for event in shown:
        (on_time if event.received_ms < rules.deadline(event.time_ms) else late).append(event)
    if on_time:
        result.add(on_time[:1], "joined" if rules.is_final(on_time[0].time_ms) else "pending")
        result.add(on_time[1:], "duplicate")
    late.sort(key=lambda event: event.received_ms)
    # An impression on time does not change a late one that arrived before it, which may be written already.
    earliest_ms = min((event.received_ms for event in on_time), default=None)
    is_new = bool(late) and (earliest_ms is None or late[0].received_ms < earliest_ms)
    if is_new:
        result.add(late[:1], "late")
        result.late.append(LateEvent(late[0], late[0]))
    result.add(late[is_new:], "duplicate")
    return on_time[0] if on_time else None


def _followers(
    events: Sequence[Event], impression: Event, rules: Rules, result: Matched, identity: Callable[[Event], str]
) -> list[Event]:
    """Return the clicks or conversions that belong to an impression, oldest first.

    Of several events with the same identity, the first one counts.
    """
    is_final, deadline = rules.is_final(impression.time_ms), rules.deadline(impression.time_ms)
    joined: dict[str, Event] = {}
    late = []
    for event in events:
        if not -MAX_SKEW_MS <= event.time_ms - impression.time_ms <= rules.window_ms:
            result.add([event], "outside window" if is_final else "pending")
        elif event.received_ms >= deadline:
            late.append(event)
        elif joined.setdefault(identity(event), event) is not event:
            result.add([event], "duplicate")
        else:
            result.add([event], "joined" if is_final else "pending")
    seen = set(joined)
    for event in sorted(late, key=lambda event: event.received_ms):
        if identity(event) in seen:
            result.add([event], "duplicate")
            continue
        seen.add(identity(event))
        result.add([event], "late")
        result.late.append(LateEvent(event, impression))
    return list(joined.values())
