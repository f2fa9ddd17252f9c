"""What became of every line: the balance of a join."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from contract.events import EVENT_TYPES, EventType
from contract.segments import EVENTS, REQUESTS
from model.loop.lines import MAX_SKEW_MS, Event
from model.loop.match import Category, Matched

CATEGORIES: tuple[Category, ...] = get_args(Category)
MAX_EXAMPLES = 3
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass
class Balance:
    """Counts of distinct lines: identical lines count once.

    Attributes:
        lines: The number of lines of each kind.
        problems: The number of lines of each kind with each problem. Invalid events are in `outcomes` instead.
        repeated_requests: Lines of the request log with the score id of another line.
        requests: Usable lines of the request log.
        events: The number of events of each type.
        outcomes: The number of events of each type in each category.
        impossible: The first events whose candidate does not exist.
        rows: The impressions, clicks and conversions in the rows of the joined log.
        ahead: Events whose time is after they were received, by more than MAX_SKEW_MS.
        behind: Events whose time is before they were received, by more than MAX_SKEW_MS.
        reused_event_ids: Event ids that different events of an answer share.
        click_delays_ms: See Matched.
        digests: SHA-256 of the sorted lines of each kind.
    """

    lines: Counter[str] = field(default_factory=Counter)
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)
    repeated_requests: int = 0
    requests: int = 0
    events: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    impossible: list[Event] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    ahead: int = 0
    behind: int = 0
    reused_event_ids: int = 0
    click_delays_ms: "array[int]" = field(default_factory=lambda: array("q"))
    digests: dict[str, Any] = field(default_factory=lambda: {kind: hashlib.sha256() for kind in (REQUESTS, EVENTS)})

    def add_lines(self, kind: str, lines: Sequence[bytes]) -> None:
        """Count distinct lines."""
        self.lines[kind] += len(lines)
        for line in lines:
            self.digests[kind].update(line + b"\n")

    def add_event(self, event: Event) -> None:
        """Count a valid event."""
        self.events[event.stored.type] += 1
        self.ahead += event.sent_ms > event.received_ms + MAX_SKEW_MS
        self.behind += event.sent_ms < event.received_ms - MAX_SKEW_MS

    def add_invalid(self, event_type: EventType) -> None:
        """Count an event that cannot be read, but whose type is known."""
        self.events[event_type] += 1
        self.outcomes[event_type, "invalid"] += 1

    def add_matched(self, events: Sequence[Event], matched: Matched) -> None:
        """Count the result for the events of an answer."""
        self.outcomes.update((event.stored.type, category) for event, category in matched.outcomes)
        if len(self.impossible) < MAX_EXAMPLES:
            self.impossible += [event for event, category in matched.outcomes if category == "invalid"]
        self.rows["impression"] += len(matched.impressions)
        self.rows["click"] += sum(impression.click is not None for impression in matched.impressions)
        self.rows["conversion"] += sum(len(impression.conversions) for impression in matched.impressions)
        self.click_delays_ms.extend(matched.click_delays_ms)
        keys = {(event.stored.event_id, event.stored.candidate, event.stored.type) for event in events}
        self.reused_event_ids += len(keys) - len({event_id for event_id, _, _ in keys})

    def check(self) -> None:
        """Check that every line is in exactly one category, and that the joined ones are in the joined log.

        Raises:
            AssertionError: If not. This is a bug.
        """
        sums = {name: sum(self.outcomes[name, category] for category in CATEGORIES) for name in EVENT_TYPES}
        expected = {name: self.events[name] for name in EVENT_TYPES}
        joined = {name: self.outcomes[name, "joined"] for name in EVENT_TYPES}
        rows = {name: self.rows[name] for name in EVENT_TYPES}
        unusable = {kind: sum(n for (of, _), n in self.problems.items() if of == kind) for kind in (REQUESTS, EVENTS)}
        lines = {
            REQUESTS: self.requests + self.repeated_requests + unusable[REQUESTS],
            EVENTS: sum(expected.values()) + unusable[EVENTS],
        }
        if sums != expected or joined != rows or lines != {kind: self.lines[kind] for kind in lines}:
            raise AssertionError(
                f"the balance is violated, which is a bug: {expected} events are {sums} in categories, {joined} joined "
                f"events are {rows} in the joined log, and {dict(self.lines)} lines are {lines} in categories"
            )

    def click_delays(self, window_ms: int) -> dict[str, float] | None:
        """Return quantiles of the click delay in seconds, and the share of clicks after the window, if any clicked."""
        if not self.click_delays_ms:
            return None
        delays = np.frombuffer(self.click_delays_ms, np.int64)
        found = np.quantile(delays, list(QUANTILES.values()), method="inverted_cdf") / 1000
        after = float((delays > window_ms).mean())
        return dict(zip(QUANTILES, map(float, found), strict=True)) | {"after_window": round(after, 6)}

    def as_json(self, window_ms: int) -> dict[str, Any]:
        """Return the balance for join.json."""
        problems = {
            kind: {problem: n for (of, problem), n in sorted(self.problems.items()) if of == kind}
            for kind in (REQUESTS, EVENTS)
        }
        return {
            "requests": {
                "lines": self.lines[REQUESTS],
                "sha256": self.digests[REQUESTS].hexdigest(),
                "usable": self.requests,
                "repeated": self.repeated_requests,
                **problems[REQUESTS],
            },
            "events": {
                "lines": self.lines[EVENTS],
                "sha256": self.digests[EVENTS].hexdigest(),
                **problems[EVENTS],
                "clock_ahead": self.ahead,
                "clock_behind": self.behind,
                "reused_event_ids": self.reused_event_ids,
            },
            "balance": {
                f"{name}s": {"total": self.events[name]}
                | {category: self.outcomes[name, category] for category in CATEGORIES}
                for name in EVENT_TYPES
            },
            "click_delay_s": self.click_delays(window_ms),
        }
