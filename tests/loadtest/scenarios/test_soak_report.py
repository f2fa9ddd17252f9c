"""What a soak counts against whom, and where a capacity ends."""

import numpy as np

from loadtest.openloop.load import Load, Outcome
from loadtest.scenarios.capacity import capacity
from loadtest.scenarios.soak_report import late_ones, of_killed_worker
from tests.support.records import record, records

KILLED_S = 10.0


def test_only_what_was_lost_at_that_moment_was_the_killed_workers() -> None:
    found = records(
        record(9.99, took_s=0.02, status=0),  # on its way
        record(10.01, took_s=0.01, status=0),  # sent before its end was seen
        record(8, took_s=0.1, status=0),
        record(12, status=0),
        record(9.99, took_s=0.02, status=200),
    )
    assert of_killed_worker(found, KILLED_S).tolist() == [True, True, False, False, False]


def test_late_is_what_comes_after_the_deadline_or_never() -> None:
    found = records(
        record(1, took_s=0.06),  # within the 20 ms on top
        record(2, took_s=0.08),
        record(3, took_s=0.08, status=504),
        record(4, status=0),
        record(9.99, took_s=0.02, status=0),  # the killed worker's
    )
    assert late_ones(found, KILLED_S) == 3


def test_a_capacity_is_the_most_that_rising_rates_found() -> None:
    def offer(rate: float) -> Outcome:
        """A server that answers 300/s, and fewer where it is asked for more."""
        answers = int(rate if rate <= 300 else 300 - (rate - 300) / 4)
        rows = [record(status=200)] * answers + [record(status=429)] * (int(rate) - answers)
        return Outcome(Load("", rate, 1.0), records(*rows), 0.0, 0.0, 1, [])

    most, steps = capacity(offer, 100)
    assert 240 <= most <= 300
    assert steps[-1].offered > 300
    assert most == np.max([step.goodput for step in steps])
