"""When requests come: evenly at random, in bursts, or as over a day.

Each profile is a Poisson process with a rate that varies and a mean that is the one asked for. It is drawn at a rate of
1 and then stretched: time is what the expected number of arrivals by then is inverted to (Lewis and Shedler 1979).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Profile = Literal["steady", "bursts", "day"]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Seconds, and how many seconds at the mean rate have as many arrivals as there are by then: both from 0 to the end."""

BURST = 5.0  # times the mean rate
BURST_SHARE = 0.1  # of the time
BURST_S = 0.2  # of one, on average
PEAK_TO_TROUGH = 3.0
STEPS = 10_000  # of a day


def arrival_times(
    profile: Profile, rate: float, seconds: float, random: np.random.Generator, shared: np.random.Generator
) -> NDArray[np.float64]:
    """Seconds from the start, rising, in [0, seconds).

    rate: arrivals/s on average. random: draws the arrivals. shared: draws when the bursts are; with equal ones, several
    processes have theirs together, and with several of `random` arrivals of their own.
    """
    at_s, mean_s = CURVES[profile](seconds, shared)
    unit = np.cumsum(random.exponential(1, int(rate * seconds * 1.5) + 100))
    times = np.interp(unit[unit < rate * seconds], rate * mean_s, at_s)
    return times[times < seconds]


def _steady(seconds: float, shared: np.random.Generator) -> Curve:
    ends = np.array([0.0, seconds])
    return ends, ends


def _bursts(seconds: float, shared: np.random.Generator) -> Curve:
    """A Markov-modulated Poisson process of two states, given how many bursts there are and that they take a tenth of
    the time: so that a short load has its mean rate, too."""
    number = max(1, round(seconds * BURST_SHARE / BURST_S))
    lengths_s = np.empty(2 * number + 1)
    lengths_s[1::2] = _scaled(shared.exponential(1, number), BURST_SHARE * seconds)
    lengths_s[::2] = _scaled(shared.exponential(1, number + 1), (1 - BURST_SHARE) * seconds)
    rates = np.full(len(lengths_s), (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE))
    rates[1::2] = BURST
    return _from_zero(lengths_s), _from_zero(lengths_s * rates)


def _day(seconds: float, shared: np.random.Generator) -> Curve:
    """A cosine, from one trough to the next."""
    swing = (PEAK_TO_TROUGH - 1) / (PEAK_TO_TROUGH + 1)
    at_s = np.linspace(0, seconds, STEPS + 1)
    turn = 2 * np.pi / seconds
    return at_s, at_s - swing * np.sin(turn * at_s) / turn


def _scaled(lengths: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    return np.asarray(lengths * (total / lengths.sum()))


def _from_zero(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(lengths)))


CURVES: dict[Profile, Callable[[float, np.random.Generator], Curve]] = {
    "steady": _steady,
    "bursts": _bursts,
    "day": _day,
}
