"""The limit on requests in flight drops when requests have to wait, and recovers afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Overloaded
from service.scoring.admission import MIN_LIMIT, MIN_WINDOW_S, Admission

MAX_IN_FLIGHT = 200


class Simulated:
    """A simulated server that processes one request at a time, and needs `work_s` for each."""

    def __init__(self, work_s: float) -> None:
        self.now = 0.0
        self.work_s = work_s
        self.admission = Admission(MAX_IN_FLIGHT, 0.01, 1000, lambda: self.now)
        self.waits: list[float] = []
        self._queue: list[float] = []

    def run(self, seconds: float, rate: float) -> tuple[int, int]:
        """Send `rate` requests/s at even intervals. Return how many were answered and how many were refused."""
        answered = refused = 0
        end_s, next_s = self.now + seconds, self.now
        while self.now < end_s:
            while next_s <= self.now:
                next_s += 1 / rate
                if self.admission.has_room():
                    self.admission.enter()
                    self._queue.append(self.now)
                else:
                    refused += 1
            if not self._queue:
                self.now = next_s
                continue
            waited_s = self.now - self._queue.pop(0)
            self.now += self.work_s
            self.admission.record_wait(waited_s)
            self.admission.leave()
            self.waits.append(waited_s)
            answered += 1
        return answered, refused


def test_at_three_times_its_capacity_a_server_keeps_its_throughput_and_waits_stay_short() -> None:
    server = Simulated(work_s=0.001)
    server.run(5, rate=3000)
    server.waits.clear()
    answered, refused = server.run(10, rate=3000)
    assert answered >= 0.99 * 10 * 1000
    assert refused > 15_000
    assert max(server.waits) < 0.04


def test_below_capacity_no_request_is_refused() -> None:
    server = Simulated(work_s=0.001)
    assert server.run(20, rate=900)[1] == 0


def test_the_limit_recovers_after_an_overload() -> None:
    server = Simulated(work_s=0.001)
    server.run(5, rate=3000)
    low = server.admission.limit
    server.run(60, rate=500)
    assert server.admission.limit > 3 * low
    assert server.run(10, rate=500)[1] == 0


def test_a_long_wait_of_a_few_requests_does_not_lower_the_limit() -> None:
    server = Simulated(work_s=0.001)
    for _ in range(9):
        server.now += MIN_WINDOW_S
        server.admission.record_wait(0.5)
    assert server.admission.limit == MAX_IN_FLIGHT


@given(st.lists(st.floats(0, 2), min_size=1, max_size=300))
def test_the_limit_stays_within_its_bounds(waits: list[float]) -> None:
    now = [0.0]
    admission = Admission(MAX_IN_FLIGHT, 0.01, 1000, lambda: now[0])
    for waited_s in waits:
        now[0] += 0.05
        admission.has_room()
        admission.record_wait(waited_s)
        assert MIN_LIMIT <= admission.limit <= MAX_IN_FLIGHT


@given(st.lists(st.integers(0, 400), max_size=20))
def test_buffered_bytes_are_released_even_after_an_error(sizes: list[int]) -> None:
    admission = Admission(MAX_IN_FLIGHT, 0.01, 1000)
    for size in sizes:
        with pytest.raises(Overloaded), admission.buffer() as hold:  # noqa: PT012
            hold(size)
            hold(1001)
    with admission.buffer() as hold:
        hold(1000)
