"""The circuit breaker, against every order of events that hypothesis finds."""

from hypothesis import given
from hypothesis import strategies as st

from service.vocabulary.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened() -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.allows()
        breaker.failed()
    return breaker, clock


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(Clock())
    for _ in range(20):
        for _ in range(FAILURES - 1):
            assert not breaker.failed()
        breaker.succeeded()
    assert breaker.is_closed
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert not breaker.allows()


def test_what_fails_for_good_opens_it_at_once() -> None:
    breaker = Breaker(Clock())
    assert breaker.failed(for_good=True)
    assert not breaker.allows()


def test_after_a_pause_one_may_try_and_its_success_closes_it() -> None:
    breaker, clock = opened()
    clock.now = PAUSE_S * 0.99
    assert not breaker.allows()
    clock.now = PAUSE_S
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.succeeded()
    assert all(breaker.allows() for _ in range(5))


def test_a_probe_that_fails_makes_the_next_pause_longer_up_to_a_limit() -> None:
    breaker, clock = opened()
    pauses = []
    for _ in range(6):
        start_s = clock.now
        while not breaker.allows():
            clock.now += 0.125
        pauses.append(clock.now - start_s)
        breaker.failed()
    assert pauses == [PAUSE_S, 2.0, 4.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_what_was_begun_before_it_opened_does_not_close_it() -> None:
    breaker, _ = opened()
    assert not breaker.succeeded()
    assert not breaker.is_closed


@given(st.lists(st.sampled_from(["try", "good", "bad", "wait"]), max_size=200))
def test_while_it_is_open_there_is_at_most_one_probe_and_it_never_stays_open(events: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
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
            breaker.succeeded() if event == "good" else breaker.failed()
        if was_closed and not breaker.is_closed:
            out = 0  # what is still under way does not count any more
    if not breaker.is_closed:
        breaker.failed()  # whatever probe there is
        clock.now += LONGEST_PAUSE_S
        assert breaker.allows()
        assert breaker.succeeded()
