"""Simulate the traffic of an ad server: users who come back, the ads they are shown, and the events they cause.

The requests are valid for the bundle deploy/demo, because ads, users and effects are those of the generated log that
its model was trained on. On top of these effects, each user has a persistent effect, the effects of ads drift from day
to day, and lower positions get fewer clicks. So the probability of each click is known.

All random numbers are drawn with the requests. The same seed and the same answers give the same events, whatever the
order in which the answers arrive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.readers.generated import CANDIDATE, CONTEXT
from model.data.synthetic.click_model import Codes, Floats
from model.data.synthetic.drift import Drift, DriftStds
from model.data.synthetic.generate import CANDIDATES, HOURS, NAMES, draw
from model.data.synthetic.world import demo_world

DAY_S = 86_400
MIN_SKEW_S = 400.0  # more than ctr-join accepts
REPLACED = ("ad", "campaign")  # the fields whose values have new names after a campaign was replaced
NAMES_OF_CODES: dict[str, list[Any]] = {name: [*values, None] for name, values in NAMES.items()}


@dataclass(frozen=True)
class Behavior:
    """How users behave, and how their clients report it. All shares are probabilities.

    Attributes:
        users: The number of users.
        activity_tail: Exponent of the Pareto distribution of the users' activity. The smaller, the heavier its tail.
        user_std: Standard deviation of the users' effects on the logit of a click.
        drift_std: Standard deviation of the change of each ad category's effect from one day to the next.
        base_rate_std: Standard deviation of the change, from one day to the next, of an effect that all ads share.
        new_campaigns: Share of the campaigns that end each night. Each is replaced with a new one, whose campaign and
            ads have new names, such as ad-7-2. Its advertiser, category and so on are the same.
        campaign_std: Standard deviation of the effects of these new campaigns.
        shown: How many candidates are shown, in descending order of the answer's ctr.
        position_effect: Effect on the logit of each position further down.
        lift: The relative change of the click probability by the version of the model that answered.
        render_s: Mean seconds from the answer to the impression.
        click_s: Scale of the seconds from the impression to the click. Their distribution is Lomax with the exponent
            `click_tail`.
        click_tail: See click_s.
        conversion_share: Share of the clicks that lead to a conversion.
        conversion_s: Mean seconds from the click to the conversion.
        send_s: Mean seconds from an event until it is sent.
        resent_share: Events that are sent twice, with the same event_id.
        repeated_share: Impressions and clicks that are reported again, with another event_id.
        lost_share: Impressions that are not reported. Their clicks are.
        foreign_share: Impressions that are also reported with the score_id of an unknown request.
        invalid_share: Impressions that are also reported for a candidate that the request did not have.
        late_share: Events that are sent `late_s` seconds late, or up to twice that.
        late_s: See late_share.
        skewed_share: Users whose client has a wrong clock. It is wrong by MIN_SKEW_S or more.
        skew_s: Mean of the part of the error beyond MIN_SKEW_S. The errors of the other clocks are about
            0.2 seconds.
    """

    users: int = 5000
    activity_tail: float = 1.3
    user_std: float = 0.6
    drift_std: float = 0.1
    base_rate_std: float = 0.0
    new_campaigns: float = 0.0
    campaign_std: float = 0.0
    shown: int = 3
    position_effect: float = -0.3
    lift: Mapping[str, float] = field(default_factory=dict)
    render_s: float = 0.3
    click_s: float = 20.0
    click_tail: float = 1.1
    conversion_share: float = 0.1
    conversion_s: float = 120.0
    send_s: float = 0.5
    resent_share: float = 0.02
    repeated_share: float = 0.02
    lost_share: float = 0.01
    foreign_share: float = 0.005
    invalid_share: float = 0.005
    late_share: float = 0.01
    late_s: float = 2.0 * DAY_S
    skewed_share: float = 0.05
    skew_s: float = 600.0


@dataclass(frozen=True)
class Requests:
    """Requests before they are answered. N requests, C candidates.

    Attributes:
        number: The number of each request, (N).
        time_s: When each request is sent, in seconds since 1970, (N).
        user: The number of the user, (N).
        unit: The user's name, (N).
        codes: Codes of the categorical fields: (N) in the context, (N, C) in the candidates.
        numbers: Values of the numeric fields, in the same shapes. NaN means missing.
        logit: The true logit of a click at the first position, (N, C).
        log_logit: The part of it that a model can learn from the generated log: without the effects of this
            simulation, (N, C).
        generation: How often the candidate's campaign was replaced before, (N, C) (see Behavior.new_campaigns).
        draws: Random numbers in [0, 1) that decide what happens after the answer, (N, C, len(DRAWS)).
    """

    number: Codes
    time_s: Floats
    user: Codes
    unit: NDArray[np.str_]
    codes: dict[str, Codes]
    numbers: dict[str, Floats]
    logit: Floats
    log_logit: Floats
    generation: Codes
    draws: Floats

    def __len__(self) -> int:
        return len(self.number)

    def at(self, row: int) -> "Requests":
        """Return one of the requests."""
        here = slice(row, row + 1)
        return Requests(
            self.number[here],
            self.time_s[here],
            self.user[here],
            self.unit[here],
            {name: column[here] for name, column in self.codes.items()},
            {name: column[here] for name, column in self.numbers.items()},
            self.logit[here],
            self.log_logit[here],
            self.generation[here],
            self.draws[here],
        )

    def contexts(self) -> list[dict[str, Any]]:
        """Return the context of each request, as a client sends it."""
        columns = [self._values(name) for name in CONTEXT]
        return [dict(zip(CONTEXT, values, strict=True)) for values in zip(*columns, strict=True)]

    def features(self) -> list[list[dict[str, Any]]]:
        """Return the features of the candidates of each request, as a client sends them."""
        columns = [self._values(name) for name in CANDIDATE]
        rows = [dict(zip(CANDIDATE, values, strict=True)) for values in zip(*columns, strict=True)]
        count = self.logit.shape[1]
        return [rows[first : first + count] for first in range(0, len(rows), count)]

    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies of the requests to POST /v1/score."""
        return [
            {
                "unit": unit,
                "context": context,
                "candidates": [{"id": ad["ad"], "features": ad} for ad in ads],
            }
            for unit, context, ads in zip(self.unit.tolist(), self.contexts(), self.features(), strict=True)
        ]

    def _values(self, name: str) -> list[Any]:
        """Return a field's values: N in the context, N * C in the candidates."""
        if name == "user":
            return list(self.unit.tolist())
        if name == "session_depth":
            return [None if value != value else int(value) for value in self.numbers[name].tolist()]
        if name in self.numbers:
            return list(self.numbers[name].ravel().tolist())
        names = NAMES_OF_CODES[name]
        values = [names[code] for code in self.codes[name].ravel().tolist()]
        if name in REPLACED:
            return [later_name(*pair) for pair in zip(values, self.generation.ravel().tolist(), strict=True)]
        return values


def later_name(name: str, generation: int) -> str:
    """Return the name of an ad or a campaign whose campaign was replaced `generation` times before: ad-7, ad-7-2."""
    return f"{name}-{generation + 1}" if generation else name


# What the random numbers of a candidate decide. Each number is used once.
DRAWS = (
    *("render", "click", "click_delay", "conversion", "conversion_delay", "lost", "foreign", "invalid"),
    *(
        f"{event} {what}"
        for event in ("impression", "click", "conversion")
        for what in ("send", "resent", "resent_delay", "repeated", "repeated_delay", "late", "late_delay")
    ),
)


class Traffic:
    """The users of one simulation, and their requests."""

    def __init__(self, seed: int, start_s: float, behavior: Behavior | None = None) -> None:
        """Draw the users and the drift.

        Args:
            seed: The same seed gives the same users, drift and requests.
            start_s: When the simulation starts, in seconds since 1970. The drift is 0 on this day.
            behavior: How users behave.
        """
        self.seed = seed
        self.behavior = behavior or Behavior()
        self.world = demo_world()
        rng = np.random.default_rng([seed, 0])
        users, std = self.behavior.users, self.behavior.user_std
        self._unit = np.array([self.world.user_name(user) for user in range(users)])
        self._activity = np.cumsum(1 + rng.pareto(self.behavior.activity_tail, users))
        # The shift keeps the mean probability about the same, because small probabilities are nearly exp(logit).
        self.user_effect = rng.normal(-(std**2) / 2, std, users)
        wrong_s = rng.choice([-1, 1], users) * (MIN_SKEW_S + rng.exponential(self.behavior.skew_s, users))
        is_wrong = rng.random(users) < self.behavior.skewed_share
        self.clock_error_s = np.where(is_wrong, wrong_s, rng.normal(0, 0.2, users))
        self._first_day = int(start_s // DAY_S)
        rates = (self.behavior.base_rate_std, self.behavior.new_campaigns, self.behavior.campaign_std)
        self._drift = Drift(rng, seed, DriftStds(self.behavior.drift_std, *rates))

    def times(self, number: int, day: int) -> Floats:
        """Return the times of the requests of a day in ascending order, float64 (number): more of them in the evening.

        Args:
            number: How many requests.
            day: The day, counted from the day of the start.
        """
        rng = np.random.default_rng([self.seed, 1, day])
        hour = draw(rng, HOURS, number)
        times: Floats = np.sort((self._first_day + day) * DAY_S + 3600 * (hour + rng.random(number)))
        return times

    def requests(self, times_s: Floats, first: int = 0) -> Requests:
        """Draw requests.

        Args:
            times_s: When the requests are sent, in seconds since 1970, (N).
            first: The number of the first request. The same number and times give the same requests.
        """
        rng, count = np.random.default_rng([self.seed, 2, first]), len(times_s)
        world = self.world
        user = np.searchsorted(self._activity, rng.random(count) * self._activity[-1], side="right")
        hour = (times_s // 3600).astype(np.int64)
        day = hour // 24
        codes, session_depth = world.context(rng, user)
        codes |= {"hour": hour % 24, "weekday": (day + 3) % 7}  # 1970 began on a Thursday
        ads, bid = world.candidates(rng, count)
        numbers = {"session_depth": session_depth, "bid": bid}
        log_logit = world.logit(codes | ads, numbers)
        since = day - self._first_day
        drift = self._drift.effect(since, ads["category"], ads["campaign"])
        generation = self._drift.generation(since, ads["campaign"])
        logit = log_logit + self.user_effect[user][:, None] + drift
        draws = rng.random((count, CANDIDATES, len(DRAWS)))
        return Requests(
            first + np.arange(count),
            times_s,
            user,
            self._unit[user],
            codes | ads,
            numbers,
            logit,
            log_logit,
            generation,
            draws,
        )
