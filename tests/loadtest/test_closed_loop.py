"""A closed loop's latencies, and what is said of its promises."""

import pytest

from loadtest.closed_loop import Latencies, Slo


def latencies(answered_ms: list[float], failed: int = 0, tag: str = "candidates-10") -> Latencies:
    found = Latencies()
    for ms in answered_ms:
        found.record(tag, ms)
    for _ in range(failed):
        found.record_failure()
    return found


def test_quantiles_are_finer_than_a_millisecond() -> None:
    lines = latencies([0.11] * 60 + [0.37] * 35 + [1.25] * 5).lines()
    assert lines[0] == "all: answered 100 requests: p50 0.11 ms, p90 0.37 ms, p99 1.25 ms, p99.9 1.25 ms"
    assert lines[1].startswith("candidates-10: answered 100 requests")


def test_tags_come_by_size() -> None:
    found = Latencies()
    for tag in ("candidates-100", "candidates-2", "candidates-10"):
        found.record(tag, 1)
    assert [line.partition(":")[0] for line in found.lines()] == [
        "all",
        "candidates-2",
        "candidates-10",
        "candidates-100",
    ]


def test_of_no_answers_there_are_no_quantiles() -> None:
    assert Latencies().lines() == ["all: answered 0 requests"]


def test_a_promise_that_is_kept_is_not_mentioned() -> None:
    assert latencies([1.0] * 100, failed=1).missed(Slo(p99_ms=1.01, failures=0.01)) == []
    assert latencies([]).missed(Slo()) == []


def test_a_missed_promise_is_missed_by_so_much() -> None:
    p99, failures = latencies([1.5] * 90, failed=10).missed(Slo(p99_ms=1, failures=0.04))
    assert p99 == "SLO missed: p99 was 1.50 ms, 0.50 ms above the 1 ms promised"
    assert failures == ("SLO missed: 10 of 100 requests failed, 10.000%: 6.000% of all above the 4.000% promised")


@pytest.mark.parametrize("slo", [Slo(p99_ms=1000), Slo(failures=1.0), Slo(0.0, 0.0)])
def test_without_requests_every_promise_is_missed(slo: Slo) -> None:
    assert latencies([]).missed(slo) == ["SLO missed: there were no requests at all"]


def test_where_all_fail_there_is_no_p99_to_keep() -> None:
    assert latencies([], failed=3).missed(Slo(p99_ms=1000)) == ["SLO missed: there is no p99, as all 3 requests failed"]


def test_what_one_process_takes_another_adds() -> None:
    first, second = latencies([1.0] * 10, failed=2), latencies([3.0] * 30, failed=1)
    taken = first.take()
    assert first.answered == first.failed == 0
    second.add(taken)
    second.add(first.take())
    assert (second.answered, second.failed) == (40, 3)
    assert "p50 3.00 ms" in second.lines()[0]
