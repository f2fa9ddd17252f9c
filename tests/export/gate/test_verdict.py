"""The rules of a gate, one figure at a time."""

from typing import Any

import msgspec
import numpy as np
import pytest

from export.gate.figures import Estimate, Figures, SegmentFigures, measure
from export.gate.verdict import ERRORS_TO_DECIDE, Limits, decide, reasons
from tests.export.gate.test_figures import drawn_rows

LIMITS = Limits()


def estimate(value: float, error: float) -> Estimate:
    """Return an estimate with a normal distribution."""
    return Estimate(
        value, value - 1.96 * error, value + 1.96 * error, error, value - 1.645 * error, value + 1.645 * error
    )


def figures(entropy: Estimate, ratio: Estimate, clicking: int = 5000, **segments: SegmentFigures) -> Figures:
    made = measure(drawn_rows(1), draws=20)
    new = msgspec.structs.replace(made.new, predicted_over_observed=ratio)
    return msgspec.structs.replace(
        made,
        normalized_entropy=entropy,
        new=new,
        clicking_clusters=clicking,
        segments={name: (segment,) for name, segment in segments.items()},
    )


def segment(ratio: float | None, low: float | None, high: float | None) -> SegmentFigures:
    return SegmentFigures("a", 1000, 100, 0.1, 0.1, ratio, low, high)


EQUAL, GOOD = estimate(0, 0.0003), estimate(1.005, 0.01)


@pytest.mark.parametrize(
    ("entropy", "ratio", "verdict", "words"),
    [
        (EQUAL, GOOD, "pass", ""),
        (estimate(-0.1, 0.05), GOOD, "pass", ""),  # much better, whatever the width
        (estimate(0.0008, 0.0003), GOOD, "fail", "An equal model would have passed in 80% of cases."),
        (estimate(0.02, 0.005), GOOD, "fail", "Even the lower bound, +1.177%, exceeds it."),
        (estimate(0.0, 0.001), GOOD, "not enough clicks", "with about 6.2 times as many units"),
        (estimate(0.002, 0.001), GOOD, "not enough clicks", "with about 6.2 times as many units"),
        (EQUAL, estimate(1.3, 0.01), "fail", "outside 1 ± 0.02. Calibrate the model again."),
        (EQUAL, estimate(0.9, 0.01), "fail", "outside 1 ± 0.02. Calibrate the model again."),
        (EQUAL, estimate(1.03, 0.01), "not enough clicks", "not within 1 ± 0.02, but its interval overlaps"),
        (EQUAL, estimate(1.0, 0.03), "not enough clicks", "the interval is not within 1 ± 0.05"),
        (estimate(0.02, 0.005), estimate(1.0, 0.03), "fail", "exceeds the margin"),
    ],
)
def test_the_verdict_follows_from_both_checks(entropy: Estimate, ratio: Estimate, verdict: str, words: str) -> None:
    found, checks = decide(figures(entropy, ratio), LIMITS)
    assert found == verdict
    why = reasons(checks, found)
    assert bool(why) == (verdict != "pass")
    assert words in " ".join(why)


def test_an_equal_model_passes_in_80_percent_of_cases_at_the_error_that_decides() -> None:
    error = LIMITS.margin / ERRORS_TO_DECIDE
    random = np.random.default_rng(1)
    passes = np.mean(random.normal(0, error, 20_000) + 1.645 * error <= LIMITS.margin)
    assert passes == pytest.approx(0.8, abs=0.01)


def test_too_few_clicking_units_decide_nothing_even_if_a_check_fails() -> None:
    found, checks = decide(figures(EQUAL, estimate(1.3, 0.01), clicking=99), LIMITS)
    assert found == "not enough clicks"
    assert reasons(checks, found) == ("99 units have a click; at least 100 are needed.",)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict"),
    [
        (1.0, 0.97, 1.04, "pass"),
        (1.2, 1.1, 1.3, "fail"),
        (0.8, 0.7, 0.94, "fail"),
        (1.2, 1.0, 1.4, "pass"),  # not enough clicks in a segment has no effect on the verdict
        (None, None, None, "pass"),
        (None, 3.0, None, "fail"),
        (None, 0.5, None, "pass"),
    ],
)
def test_a_segment_fails_only_if_its_whole_interval_is_outside(ratio: Any, low: Any, high: Any, verdict: str) -> None:
    found, checks = decide(figures(EQUAL, GOOD, country=segment(ratio, low, high)), LIMITS)
    assert found == verdict
    if verdict == "fail":
        assert 'country "a": ' in reasons(checks, found)[0]
