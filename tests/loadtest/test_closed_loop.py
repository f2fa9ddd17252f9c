"""Latencies of a closed-loop load: quantiles, merging across processes, and the check against an SLO."""

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


def test_tags_are_sorted_by_number_of_candidates() -> None:
    found = Latencies()
    for tag in ("candidates-100", "candidates-2", "candidates-10"):
        found.record(tag, 1)
    assert [line.partition(":")[0] for line in found.lines()] == [
        "all",
        "candidates-2",
        "candidates-10",
        "candidates-100",
    ]


def test_without_answers_the_line_has_no_quantiles() -> None:
    assert Latencies().lines() == ["all: answered 0 requests"]


def test_an_slo_that_passes_has_no_violations() -> None:
    assert latencies([1.0] * 100, failed=1).violations(Slo(p99_ms=1.01, failures=0.01)) == []
    assert latencies([]).violations(Slo()) == []


def test_a_violation_states_by_how_much_the_target_is_exceeded() -> None:
    p99, failures = latencies([1.5] * 90, failed=10).violations(Slo(p99_ms=1, failures=0.04))
    assert p99 == "SLO failed: p99 is 1.50 ms, 0.50 ms above the target of 1 ms"
    assert failures == (
        "SLO failed: 10 of 100 requests failed (10.000%), 6.000% of all requests above the target of 4.000%"
    )


@pytest.mark.parametrize("slo", [Slo(p99_ms=1000), Slo(failures=1.0), Slo(0.0, 0.0)])
def test_without_requests_every_slo_fails(slo: Slo) -> None:
    assert latencies([]).violations(slo) == ["SLO failed: no request was sent"]


def test_the_p99_target_fails_when_all_requests_failed() -> None:
    assert latencies([], failed=3).violations(Slo(p99_ms=1000)) == [
        "SLO failed: there is no p99, because all 3 requests failed"
    ]


def test_latencies_taken_from_one_process_are_added_in_another() -> None:
    first, second = latencies([1.0] * 10, failed=2), latencies([3.0] * 30, failed=1)
    taken = first.take()
    assert first.answered == first.failed == 0
    second.add(taken)
    second.add(first.take())
    assert (second.answered, second.failed) == (40, 3)
    assert "p50 3.00 ms" in second.lines()[0]
