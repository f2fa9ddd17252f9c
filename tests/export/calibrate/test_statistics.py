"""The intervals of predicted / observed are exact without weights, and hold with weights and sampled non-clicks."""

import numpy as np
import pytest

from contract.calibration import sigmoid
from export.calibrate.statistics import effective_clicks, measure_ratio
from tests.support.calibration import make_rows, simulate


def test_a_ratio_has_the_interval_of_its_clicks() -> None:
    rows = make_rows(np.zeros(40), np.arange(40) < 10)
    ratio = measure_ratio(rows, np.full(40, 0.5))
    assert (ratio.rows, ratio.clicks, ratio.predicted, ratio.observed) == (40, 10, 0.5, 0.25)
    assert ratio.ratio == 2
    assert (ratio.low, ratio.high) == pytest.approx((20 / 18.39, 20 / 4.795), rel=1e-3)


def test_a_group_without_clicks_has_no_upper_bound() -> None:
    ratio = measure_ratio(make_rows(np.zeros(8), np.zeros(8)), np.full(8, 0.5))
    assert (ratio.ratio, ratio.high) == (None, None)
    assert ratio.low == pytest.approx(4 / 3.689, rel=1e-3)


def test_weights_that_are_all_equal_change_nothing() -> None:
    rows = simulate(1, 2_000).rows
    ctr = sigmoid(rows.logit)
    one, two = measure_ratio(rows, ctr), measure_ratio(make_rows(rows.logit, rows.label, np.full(len(rows), 2.0)), ctr)
    assert (two.ratio, two.low, two.high) == pytest.approx((one.ratio, one.low, one.high))


@pytest.mark.parametrize("kind", ["plain", "sampled", "weighted"])
def test_intervals_cover_the_truth_in_95_percent(kind: str) -> None:
    """The predictions are the true probabilities, so the true ratio is 1. The row weights are 1 / (kept share)."""
    random, covered, runs = np.random.default_rng(2), 0, 400
    for seed in range(runs):
        simulation = simulate(seed, 4_000, mean=-2.5, negative_rate=0.1 if kind == "sampled" else 1.0)
        rows, ctr = simulation.rows, simulation.truth
        if kind == "weighted":
            share = random.choice([0.25, 1.0], len(rows))
            kept = random.random(len(rows)) < share
            rows = make_rows(rows.logit, rows.label, 1 / share).select(kept)
            ctr = ctr[kept]
        ratio = measure_ratio(rows, ctr)
        covered += ratio.high is not None and ratio.low <= 1 <= ratio.high
    assert covered / runs >= 0.93


def test_effective_clicks_are_the_expected_clicks_of_an_unweighted_log() -> None:
    rows = make_rows(np.zeros(100), np.arange(100) < 3)
    assert effective_clicks(rows, np.full(100, 0.2)) == pytest.approx(20)


def test_effective_clicks_predict_the_variance_of_the_ratio() -> None:
    ratios, expected = [], []
    for seed in range(400):
        simulation = simulate(seed, 10_000, negative_rate=0.1)
        ratio = measure_ratio(simulation.rows, simulation.truth).ratio
        assert ratio is not None
        ratios.append(np.log(ratio))
        expected.append(1 / effective_clicks(simulation.rows, simulation.truth))
    # Poisson clicks vary a little more than Bernoulli ones.
    assert 0.7 * np.mean(expected) < np.var(ratios) < 1.1 * np.mean(expected)
