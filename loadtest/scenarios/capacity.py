"""Raise the rate to find a server's capacity: its highest number of answers per second within the deadline."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from loadtest.openloop import records as read
from loadtest.openloop.load import Outcome

STEP = 1.25
REPEATS = 2  # how many times to repeat the best rate
MAX_WORSE = 2  # consecutive rates no better than the best one; a single one may be noise


@dataclass(frozen=True)
class Step:
    """One rate: requests/s offered, answers/s within their deadline, and CPU seconds of the client per second."""

    offered: float
    goodput: float
    client_cpu: float


def goodput(outcome: Outcome) -> float:
    """Return the number of 200s per second that arrived within the deadline, counted from the sent time."""
    return read.good(read.scores(outcome.records)) / outcome.load.seconds


def find_capacity(offer: Callable[[float], Outcome], first: float) -> tuple[float, list[Step]]:
    """Raise the rate until the goodput falls.

    Args:
        offer: Runs a load at a rate in requests/s.
        first: The first rate to try. The server must be able to handle it.

    Returns:
        The capacity in requests/s, and all rates that were tried. The best of many results is partly luck, so the best
        rate is repeated, and the capacity is the median.

    Raises:
        RuntimeError: No request was answered within its deadline.
    """

    def step(rate: float) -> Step:
        outcome = offer(rate)
        offered = len(read.scores(outcome.records)) / outcome.load.seconds
        return Step(offered, goodput(outcome), outcome.client_cpu)

    steps: list[Step] = []
    rate, best, best_rate, worse = first, 0.0, first, 0
    while worse < MAX_WORSE:
        steps.append(step(rate))
        if steps[-1].goodput > best:
            best, best_rate, worse = steps[-1].goodput, rate, 0
        else:
            worse += 1
        rate *= STEP
    if not best:
        raise RuntimeError("the server answered no request within the deadline: check its URL and model")
    repeated = [step(best_rate) for _ in range(REPEATS)]
    return median(found.goodput for found in (*repeated, steps[-MAX_WORSE - 1])), [*steps, *repeated]
