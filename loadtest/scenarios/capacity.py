"""What a server can do: the most answers within their deadline, per second, over rising rates."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from loadtest.openloop import records as read
from loadtest.openloop.load import Outcome

STEP = 1.25
AGAIN = 2  # times that the best step is taken once more
MOST_WORSE = 2  # steps in a row that are no better than the best: one may be the machine's bad moment


@dataclass(frozen=True)
class Step:
    offered: float
    goodput: float
    client_cpu: float


def goodput(outcome: Outcome) -> float:
    """Scores within the deadline, per second, from the time when each was sent."""
    return read.good(read.scores(outcome.records)) / outcome.load.seconds


def capacity(offer: Callable[[float], Outcome], first: float) -> tuple[float, list[Step]]:
    """The highest goodput that is had again, and the steps to it. `first`: a rate in requests/s that is surely kept."""
    steps: list[Step] = []
    rate, best, best_rate, worse = first, 0.0, first, 0
    while worse < MOST_WORSE:
        steps.append(_step(offer(rate)))
        if steps[-1].goodput > best:
            best, best_rate, worse = steps[-1].goodput, rate, 0
        else:
            worse += 1
        rate *= STEP
    if not best:
        raise RuntimeError("the server answers nothing within the deadline: is it the right one?")
    # The best of many is a lucky one: what it brings again is what the server can do.
    again = [_step(offer(best_rate)) for _ in range(AGAIN)]
    return median(step.goodput for step in (*again, steps[-MOST_WORSE - 1])), [*steps, *again]


def _step(outcome: Outcome) -> Step:
    offered = len(read.scores(outcome.records)) / outcome.load.seconds
    return Step(offered, goodput(outcome), outcome.client_cpu)
