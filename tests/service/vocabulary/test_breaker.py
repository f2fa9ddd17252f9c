"""The circuit breaker, including random sequences of events."""

from hypothesis import given
from hypothesis import strategies as st

from service.vocabulary.breaker import FAILURES, MAX_PAUSE_S, PAUSE_S, CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.record_failure()
    return breaker, clock


def test_breaker_opens_only_after_consecutive_failures() -> None:
    breaker = CircuitBreaker(Clock())
    for _ in range(20):
        for _ in range(FAILURES - 1):
            assert not breaker.record_failure()
        breaker.record_success()
    assert breaker.is_closed
    assert [breaker.record_failure() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert not breaker.allows()


def test_permanent_failure_opens_the_breaker_immediately() -> None:
    breaker = CircuitBreaker(Clock())
    assert breaker.record_failure(permanent=True)
    assert not breaker.allows()


def test_after_a_pause_one_probe_is_allowed_and_its_success_closes_the_breaker() -> None:
    breaker, clock = opened()
    clock.now = PAUSE_S * 0.99
    assert not breaker.allows()
    clock.now = PAUSE_S
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.record_success()
    assert all(breaker.allows() for _ in range(5))


def test_failed_probe_doubles_the_pause_up_to_a_limit() -> None:
    breaker, clock = opened()
    pauses = []
    for _ in range(6):
        start_s = clock.now
        while not breaker.allows():
            clock.now += 0.125
        pauses.append(clock.now - start_s)
        breaker.record_failure()
    assert pauses == [PAUSE_S, 2.0, 4.0, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_call_that_started_before_the_breaker_opened_does_not_close_it() -> None:
    breaker, _ = opened()
    assert not breaker.record_success()
    assert not breaker.is_closed


@given(st.lists(st.sampled_from(["try", "good", "bad", "wait"]), max_size=200))
def test_open_breaker_allows_at_most_one_probe_and_can_always_close_again(events: list[str]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    out = 0
    for event in events:
        was_closed = breaker.is_closed
        if event == "try":
            allowed = breaker.allows()
            out += allowed
            assert was_closed or out <= 1 or not allowed
        elif event == "wait":
            clock.now += 0.7
        elif out:
            out -= 1
            breaker.record_success() if event == "good" else breaker.record_failure()
        if was_closed and not breaker.is_closed:
            out = 0  # Calls that are still in flight no longer count.
    if not breaker.is_closed:
        breaker.record_failure()  # A probe may still be in flight.
        clock.now += MAX_PAUSE_S
        assert breaker.allows()
        assert breaker.record_success()
