"""The counts in a soak's report, and the capacity search."""

import numpy as np

from loadtest.openloop import records as read
from loadtest.openloop.load import Load, Outcome
from loadtest.scenarios.capacity import find_capacity
from loadtest.scenarios.soak_report import late_requests, of_killed_worker
from tests.support.records import record, records

KILLED_S = 10.0


def test_only_requests_lost_at_the_time_of_the_kill_belong_to_the_killed_worker() -> None:
    found = records(
        record(9.99, took_s=0.02, status=0),  # in flight
        record(10.01, took_s=0.01, status=0),  # sent before the client noticed the worker's death
        record(8, took_s=0.1, status=0),
        record(12, status=0),
        record(9.99, took_s=0.02, status=200),
    )
    assert of_killed_worker(found, KILLED_S).tolist() == [True, True, False, False, False]


def test_requests_are_late_after_the_deadline_or_without_an_answer() -> None:
    found = records(
        record(1, took_s=0.06),  # within the tolerance of 20 ms
        record(2, took_s=0.08),
        record(3, took_s=0.08, status=504),
        record(4, status=0),
        record(9.99, took_s=0.02, status=0),  # lost with the killed worker
    )
    assert late_requests(found, read.from_sent_ms(found), KILLED_S) == 3


def test_the_capacity_is_the_highest_goodput_over_rising_rates() -> None:
    def offer(rate: float) -> Outcome:
        """Simulate a server that answers up to 300 requests/s, and fewer than that if it is overloaded."""
        answers = int(rate if rate <= 300 else 300 - (rate - 300) / 4)
        rows = [record(status=200)] * answers + [record(status=429)] * (int(rate) - answers)
        return Outcome(Load("", rate, 1.0), records(*rows), 0.0, 0.0, 1, [])

    capacity, steps = find_capacity(offer, 100)
    assert 240 <= capacity <= 300
    assert steps[-1].offered > 300
    assert capacity == np.max([step.goodput for step in steps])
