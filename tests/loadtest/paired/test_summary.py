"""The ratio of two checkouts: its interval, the order of the runs, and the conditions that fail a comparison."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from contract.bundle import open_bundle
from loadtest.openloop.message import Prepared
from loadtest.paired.__main__ import assign_cpus
from loadtest.paired.checkouts import Probe, Side
from loadtest.paired.runs import Plan, Run, Window
from loadtest.paired.summary import (
    Results,
    check_table,
    describe,
    problems_of,
    ratio_interval,
    ratio_table,
    schedule,
    stolen_share,
)
from loadtest.servers import Checkout
from tests.support.paths import DEMO

values = st.floats(1e-3, 1e6)
pairs_of_values = st.lists(st.tuples(values, values), min_size=2, max_size=40)


def unzip(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [this for this, _ in pairs], [other for _, other in pairs]


@given(pairs_of_values)
def test_the_interval_contains_the_geometric_mean_of_the_ratios(pairs: list[tuple[float, float]]) -> None:
    found = ratio_interval(*unzip(pairs))
    assert found.low <= found.ratio <= found.high
    mean = math.exp(sum(math.log(this / other) for this, other in pairs) / len(pairs))
    assert found.ratio == pytest.approx(mean)


@given(pairs_of_values)
def test_swapping_the_checkouts_gives_the_reciprocal(pairs: list[tuple[float, float]]) -> None:
    this, other = unzip(pairs)
    found, swapped = ratio_interval(this, other), ratio_interval(other, this)
    assert found.ratio * swapped.ratio == pytest.approx(1)
    assert found.low * swapped.high == pytest.approx(1)


@given(pairs_of_values, st.data())
def test_slowing_down_both_runs_of_a_pair_alike_has_no_effect(
    pairs: list[tuple[float, float]], data: st.DataObject
) -> None:
    factors = data.draw(st.lists(st.floats(0.1, 10), min_size=len(pairs), max_size=len(pairs)))
    slowed = [(this * f, other * f) for (this, other), f in zip(pairs, factors, strict=True)]
    found, expected = ratio_interval(*unzip(slowed)), ratio_interval(*unzip(pairs))
    assert found.ratio == pytest.approx(expected.ratio)
    assert math.log(found.high / found.low) == pytest.approx(math.log(expected.high / expected.low), abs=1e-9)


@given(st.floats(0.1, 10), st.lists(values, min_size=2, max_size=40))
def test_the_same_ratio_in_every_pair_gives_an_interval_of_zero_width(ratio: float, other: list[float]) -> None:
    found = ratio_interval([ratio * value for value in other], other)
    assert [found.low, found.ratio, found.high] == pytest.approx([ratio] * 3)


@given(st.lists(st.tuples(values, values), min_size=3, max_size=40))
def test_more_confidence_gives_a_wider_interval(pairs: list[tuple[float, float]]) -> None:
    narrow, wide = (ratio_interval(*unzip(pairs), confidence) for confidence in (0.8, 0.99))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_the_interval_matches_a_t_test() -> None:
    this, other = [1.10, 0.95, 1.02, 1.30], [1.00, 1.00, 1.05, 1.10]
    expected = stats.ttest_1samp(np.log(this) - np.log(other), 0).confidence_interval(0.95)
    found = ratio_interval(this, other)
    assert [found.low, found.high] == pytest.approx(np.exp([expected.low, expected.high]))


def test_nineteen_of_twenty_intervals_contain_the_true_ratio() -> None:
    random, true, pairs, contained = np.random.default_rng(1), 1.05, 6, 0
    for _ in range(1000):
        drift = random.normal(0, 0.5, pairs)  # shared by both runs of a pair
        this, other = (np.exp(drift + random.normal(0, 0.05, pairs)) for _ in range(2))
        found = ratio_interval((true * this).tolist(), other.tolist())
        contained += found.low <= true <= found.high
    assert 0.93 < contained / 1000 < 0.97


@pytest.mark.parametrize(
    ("this", "other", "message"),
    [
        ([1.0], [1.0], "2 or more"),
        ([1.0, 0.0], [1.0, 1.0], "two positive numbers"),
        ([1.0, 1.0], [1.0, math.nan], "two positive numbers"),
        ([1.0, math.inf], [1.0, 1.0], "two positive numbers"),
        ([1.0, 1.0], [1.0], "shorter"),
    ],
)
def test_a_ratio_requires_pairs_of_positive_numbers(this: list[float], other: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_interval(this, other)


@given(st.integers(1, 50))
def test_every_pair_has_both_checkouts_in_alternating_order(pairs: int) -> None:
    order = schedule(pairs)
    assert len(order) == pairs
    assert all(sorted(pair) == ["other", "this"] for pair in order)
    assert all(before != after for before, after in itertools.pairwise(order))


@given(st.integers(1, 20).map(lambda half: 2 * half), st.floats(-0.1, 0.1))
def test_a_steady_drift_of_the_machine_cancels(pairs: int, drift: float) -> None:
    logs: dict[str, list[float]] = {"this": [], "other": []}
    for run, name in enumerate(name for pair in schedule(pairs) for name in pair):
        logs[name].append(drift * run)
    this, other = ([math.exp(log) for log in logs[name]] for name in ("this", "other"))
    found = ratio_interval(this, other)
    assert found.ratio == pytest.approx(1)


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [
        ({0}, 1, ((), ())),
        ({0, 1}, 1, ((0,), (1,))),
        ({0, 1}, 2, ((0,), (1,))),
        ({2, 5, 3, 7}, 2, ((2, 3), (7,))),
    ],
)
def test_the_generator_has_its_own_cpu(
    cpus: set[int], workers: int, expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    assert assign_cpus(cpus, workers) == expected


def run(cpu_us: float = 1000.0, failed: int = 0, wrong: int = 0, stolen_s: float = 0.0) -> Run:
    problems = ["probabilities are off by 0.1"] if wrong else []
    window = Window(seconds=2.0, cpu_s=cpu_us / 1e6 * 600, busy_s=1.0, stolen_s=stolen_s)
    return Run(window, 600, 2.0, 9.0, 0.1, 0.05, 700, failed, wrong, problems)


def results(this: list[Run], other: list[Run], difference: float = 0.0) -> Results:
    checkout, versions = Checkout(Path("/nowhere"), Path("/nowhere/python")), {"Python": "3.11"}
    sides = {name: Side(checkout, name, Probe([], None, versions)) for name in ("this", "other")}
    plan = Plan(open_bundle(DEMO), [Prepared(b"", [1, 2], {})], 1, (0,), (1,), 2.0, 10.0, rate=300.0)
    return Results(sides, plan, {"this": 600.0, "other": 700.0}, difference, {"this": this, "other": other})  # type: ignore[arg-type]


def test_a_comparison_without_problems_passes() -> None:
    found = results([run(1000), run(1010)], [run(1000), run(1000)])
    assert problems_of(found, fail_above=None) == []
    assert problems_of(found, fail_above=1.5) == []


def test_failed_and_wrong_answers_are_reported_for_their_checkout() -> None:
    found = problems_of(results([run(failed=3), run()], [run(wrong=2), run(wrong=1)]), None)
    assert found == [
        "this: 3 requests were not answered with scores",
        "other: 3 answers were wrong. The first: probabilities are off by 0.1",
    ]


@pytest.mark.parametrize("difference", [2e-5, math.inf, math.nan])
def test_scores_that_differ_are_a_problem(difference: float) -> None:
    (found,) = problems_of(results([run(), run()], [run(), run()], difference), None)
    assert "more than 1e-05" in found


def test_fail_above_is_compared_with_the_upper_bound_of_the_cpu_ratio() -> None:
    found = results([run(1000), run(1100), run(1050)], [run(1000), run(1000), run(1000)])
    high = ratio_interval([1000, 1100, 1050], [1000, 1000, 1000]).high
    assert problems_of(found, high + 0.01) == []
    assert problems_of(found, high - 0.01) == [
        f"the upper bound of the CPU ratio is {high:.3f}, above --fail-above {high - 0.01:g}"
    ]


def test_the_tables_contain_the_means_the_ratios_and_the_checks() -> None:
    found = results([run(800), run(1250)], [run(1000), run(1000)])
    cpu, per_s, _, _ = ratio_table(found).rows
    assert cpu[:4] == ["CPU µs/request", "1,000", "1,000", "1.000"]
    assert per_s == ["requests/s", "300.0", "300.0", "1.000", "1.000 to 1.000"]
    rows = {row[0]: row[1:] for row in check_table(found).rows}
    assert rows["CPU s per s: server"] == ("0.31", "0.30")
    assert rows["CPU s per s: other processes"] == ("0.14", "0.15")  # 1 s in 2 s, without server and generator
    assert rows["answers checked"] == ("1,400", "1,400")
    assert rows["capacity, requests/s"] == ("600", "700")
    assert rows["commit"] == ("this", "other")


def test_the_description_states_the_load_and_the_versions_that_differ() -> None:
    found = results([run(), run()], [run(), run()], difference=3e-7)
    assert "Poisson arrivals at 300 requests/s" in describe(found)
    assert "same versions" in describe(found)
    assert "differ by at most 3e-07 over 2 candidates" in describe(found)
    newer = replace(found.sides["other"], probe=Probe([], None, {"Python": "3.12"}))
    closed = replace(found, sides={**found.sides, "other": newer}, plan=replace(found.plan, rate=None))
    assert "closed loop of 8 connections" in describe(closed)
    assert "`other` runs Python 3.12." in describe(closed)


def test_the_stolen_share_is_relative_to_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert stolen_share([run(stolen_s=0.4), run()]) == pytest.approx(0.4 / 4 / 4)
