"""Arrival times of requests at a steady rate, in bursts, or with a daily cycle.

Each profile is a Poisson process whose rate varies around the requested mean. To generate it, a process of rate 1 is
sampled and its times are mapped through the inverse of the expected number of arrivals (Lewis and Shedler 1979).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Profile = Literal["steady", "bursts", "day"]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Times, and for each time t the number of seconds at the mean rate that has as many expected arrivals as the interval
from 0 to t. Both increase from 0 to the end."""

BURST = 5.0  # times the mean rate
BURST_SHARE = 0.1  # share of the time
BURST_S = 0.2  # mean length of a burst
PEAK_TO_TROUGH = 3.0
STEPS = 10_000  # points of a day's curve


def arrival_times(
    profile: Profile, rate: float, seconds: float, random: np.random.Generator, shared: np.random.Generator
) -> NDArray[np.float64]:
    """Return arrival times in [0, seconds), in seconds from the start, in ascending order.

    Args:
        rate: Mean arrivals/s.
        random: Generator for the arrivals. Each process has its own.
        shared: Generator for the bursts. Processes whose generators have the same seed have bursts at the same times.
    """
    at_s, mean_s = CURVES[profile](seconds, shared)
    unit = np.cumsum(random.exponential(1, int(rate * seconds * 1.5) + 100))
    times = np.interp(unit[unit < rate * seconds], rate * mean_s, at_s)
    return times[times < seconds]


def steady(seconds: float, shared: np.random.Generator) -> Curve:
    """A constant rate."""
    ends = np.array([0.0, seconds])
    return ends, ends


def bursts(seconds: float, shared: np.random.Generator) -> Curve:
    """A Markov-modulated Poisson process with two states: bursts, and the time between them.

    The number of bursts and their share of the time are fixed, so that even a short load has the requested mean rate.
    """
    number = max(1, round(seconds * BURST_SHARE / BURST_S))
    within, between = shared.exponential(1, number), shared.exponential(1, number + 1)
    lengths_s = np.empty(2 * number + 1)
    lengths_s[1::2] = within * (BURST_SHARE * seconds / within.sum())
    lengths_s[::2] = between * ((1 - BURST_SHARE) * seconds / between.sum())
    rates = np.full(len(lengths_s), (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE))
    rates[1::2] = BURST
    at_s, mean_s = (np.concatenate(([0.0], np.cumsum(steps))) for steps in (lengths_s, lengths_s * rates))
    return at_s, mean_s


def day(seconds: float, shared: np.random.Generator) -> Curve:
    """A cosine from one trough to the next."""
    swing = (PEAK_TO_TROUGH - 1) / (PEAK_TO_TROUGH + 1)
    at_s = np.linspace(0, seconds, STEPS + 1)
    turn = 2 * np.pi / seconds
    return at_s, at_s - swing * np.sin(turn * at_s) / turn


CURVES: dict[Profile, Callable[[float, np.random.Generator], Curve]] = {"steady": steady, "bursts": bursts, "day": day}
