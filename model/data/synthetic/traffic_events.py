"""What users do with an answer, and the events by which their clients report it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.events import Event, EventType
from contract.score_ids import new_score_id
from model.data.synthetic.click_model import Codes, Floats, sigmoid
from model.data.synthetic.traffic import DRAWS, Requests, Traffic

Bools = NDArray[np.bool_]
What = Literal["original", "resent", "repeated", "foreign", "invalid"]


@dataclass(frozen=True)
class Answers:
    """The answers to N requests.

    Attributes:
        score_id: (N).
        version: The version of the model that answered, (N).
        time_s: When the answer reached the client, in seconds since 1970, (N).
        ctr: The probabilities in the order of the candidates, (N, C).
    """

    score_id: Sequence[str]
    version: Sequence[str]
    time_s: Floats
    ctr: Floats


@dataclass(frozen=True)
class Shown:
    """What happened to the candidates that were shown: N requests with S candidates each, (N, S) in all columns.

    Attributes:
        candidate: The candidate's position in its request.
        probability: The true probability of a click.
        clicked: Whether the user clicked.
        click_delay_s: Seconds from the impression to the click, if there is one.
    """

    candidate: Codes
    probability: Floats
    clicked: Bools
    click_delay_s: Floats


class SentEvent(NamedTuple):
    """An event, and when its client sends it.

    Attributes:
        send_s: In seconds since 1970. Clocks that are wrong do not affect it.
        event: The event.
        what: How the event came about. Behavior describes the kinds.
    """

    send_s: float
    event: Event
    what: What


def show(traffic: Traffic, requests: Requests, answers: Answers) -> tuple[Shown, list[SentEvent]]:
    """Show the best candidates of each answer to its user.

    Returns:
        What happened, and the events that report it, in the order in which they are sent.
    """
    behavior = traffic.behavior
    best = np.argsort(-answers.ctr, axis=1, kind="stable")[:, : behavior.shown]
    rows = np.arange(len(requests))[:, None]
    numbers = requests.draws[rows, best]
    draws = {what: numbers[:, :, column] for column, what in enumerate(DRAWS)}
    lift = np.array([behavior.lift.get(version, 0.0) for version in answers.version])[:, None]
    logit = requests.logit[rows, best] + behavior.position_effect * np.arange(best.shape[1])
    probability = np.minimum(1.0, sigmoid(logit) * (1 + lift))
    clicked = draws["click"] < probability
    shown_s = answers.time_s[:, None] + exponential(draws["render"], behavior.render_s)
    click_s = shown_s + lomax(draws["click_delay"], behavior.click_s, behavior.click_tail)
    conversion_s = click_s + exponential(draws["conversion_delay"], behavior.conversion_s)
    reports = Reports(traffic, requests, answers, best, draws)
    reports.add("impression", draws["lost"] >= behavior.lost_share, shown_s)
    reports.add("click", clicked, click_s)
    reports.add("conversion", clicked & (draws["conversion"] < behavior.conversion_share), conversion_s)
    reports.add_wrong("foreign", draws["foreign"] < behavior.foreign_share, shown_s)
    reports.add_wrong("invalid", draws["invalid"] < behavior.invalid_share, shown_s)
    shown = Shown(best, probability, clicked, click_s - shown_s)
    return shown, sorted(reports.sent, key=lambda sent: sent.send_s)


class Reports:
    """Collects the events about candidates that were shown. N requests, S candidates each."""

    def __init__(
        self, traffic: Traffic, requests: Requests, answers: Answers, candidate: Codes, draws: dict[str, Floats]
    ) -> None:
        self.sent: list[SentEvent] = []
        self._traffic = traffic
        self._requests = requests
        self._answers = answers
        self._candidate = candidate
        self._draws = draws
        self._clock_error_s = traffic.clock_error_s[requests.user][:, None]

    def add(self, kind: EventType, happened: Bools, time_s: Floats) -> None:
        """Add the events of one type, with those that are sent again or reported twice.

        Args:
            kind: The type.
            happened: Which candidates have such an event, (N, S).
            time_s: When it happened, in seconds since 1970, (N, S).
        """
        behavior = self._traffic.behavior
        draws = {name.removeprefix(f"{kind} "): column for name, column in self._draws.items() if name.startswith(kind)}
        late_s = np.where(draws["late"] < behavior.late_share, behavior.late_s * (1 + draws["late_delay"]), 0.0)
        send_s = time_s + exponential(draws["send"], behavior.send_s) + late_s
        self._append("original", kind, happened, time_s, send_s)
        resent = happened & (draws["resent"] < behavior.resent_share)
        self._append("resent", kind, resent, time_s, send_s + exponential(draws["resent_delay"], 4 * behavior.send_s))
        if kind != "conversion":  # a conversion with another id is another conversion
            repeated = happened & (draws["repeated"] < behavior.repeated_share)
            delay_s = 0.001 + exponential(draws["repeated_delay"], 4 * behavior.send_s)
            self._append("repeated", kind, repeated, time_s + delay_s, send_s + delay_s)

    def add_wrong(self, what: Literal["foreign", "invalid"], happened: Bools, time_s: Floats) -> None:
        """Add impressions that belong to no answer of this server, or to no candidate of the request."""
        self._append(what, "impression", happened, time_s, time_s)

    def _append(self, what: What, kind: EventType, happened: Bools, time_s: Floats, send_s: Floats) -> None:
        rows, positions = np.nonzero(happened)
        candidates = self._candidate[rows, positions]
        columns = (
            rows.tolist(),
            positions.tolist(),
            candidates.tolist(),
            self._requests.number[rows].tolist(),
            iso_times(milliseconds((time_s + self._clock_error_s)[rows, positions])),
            send_s[rows, positions].tolist(),
            np.round(10 * self._requests.numbers["bid"][rows, candidates], 2).tolist(),
        )
        first = "original" if what == "resent" else what  # an event that is sent again has the same id
        for row, position, candidate, number, time, send, value in zip(*columns, strict=True):
            event = Event(
                event_id=f"{self._traffic.seed}-{number}-{candidate}-{kind}-{first}",
                type=kind,
                score_id=self._answers.score_id[row],
                candidate=candidate,
                time=time,
            )
            if kind == "impression":
                event.position = position
            elif kind == "conversion":
                event.value = value
            if what == "foreign":
                event.score_id = new_score_id(send, True, random_bits(self._traffic.seed, number, candidate))
            elif what == "invalid":
                event.candidate += self._requests.logit.shape[1]
            self.sent.append(SentEvent(send, event, what))


def exponential(draws: Floats, mean: float) -> Floats:
    """Return exponentially distributed numbers for numbers in [0, 1)."""
    numbers: Floats = -mean * np.log1p(-draws)
    return numbers


def lomax(draws: Floats, scale: float, exponent: float) -> Floats:
    """Return numbers with the Lomax distribution, whose tail is a power law, for numbers in [0, 1)."""
    numbers: Floats = scale * np.expm1(-np.log1p(-draws) / exponent)
    return numbers


def milliseconds(seconds: Floats) -> Codes:
    """Return whole milliseconds."""
    return np.rint(seconds * 1000).astype(np.int64)


def iso_times(times_ms: Codes) -> list[str]:
    """Return times in ms since 1970 as ISO 8601 in UTC, with milliseconds."""
    texts: list[str] = np.datetime_as_string(times_ms.astype("M8[ms]"), timezone="UTC").tolist()
    return texts


def random_bits(*numbers: int) -> int:
    """Return 62 bits that depend on these numbers only."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 2
