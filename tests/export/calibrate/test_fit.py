"""Fitting with segments: each one gets the shift that its clicks support, and the overall ratio stays 1."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from contract.calibration import MAX_SEGMENTS, sigmoid
from export.calibrate.fit import (
    ISOTONIC_CLICKS,
    MIN_CLICKS,
    PRIOR_CLICKS,
    Fit,
    Method,
    TooFewClicksError,
    curve,
    fit,
    segment_shift,
    shift_of_rows,
)
from export.calibrate.rows import Floats, Rows
from model.training.metrics import equal_mass_bins
from tests.support.calibration import make_rows, simulate

SHIFTS = (0.4, -0.3, 0.0, 0.1)


def tokens(ids: NDArray[np.int64]) -> Sequence[str | None]:
    return [None if number < 2 else f"t{number}" for number in ids.tolist()]


def calibrated(found: Fit, rows: Rows) -> Floats:
    """Return the probabilities of rows with segments."""
    assert rows.segment is not None
    return sigmoid(curve(found.knots, rows.logit) + shift_of_rows(found.segments, rows.segment))


@pytest.mark.parametrize("negative_rate", [1.0, 0.1])
def test_segments_with_many_clicks_become_calibrated_and_the_overall_ratio_stays_1(negative_rate: float) -> None:
    rows = simulate(1, 2_000_000, segment_shifts=SHIFTS, slope=1.3, negative_rate=negative_rate).rows
    found = fit(rows, None, tokens)
    ctr, weight = calibrated(found, rows), rows.weight
    assert np.dot(weight, ctr) / np.dot(weight, rows.label) == pytest.approx(1, abs=1e-9)
    assert [(segment.id, segment.value) for segment in found.segments] == [(0, None), (1, None), (2, "t2"), (3, "t3")]
    relative = np.array([segment.shift for segment in found.segments])
    np.testing.assert_allclose(relative - relative.mean(), np.array(SHIFTS) - np.mean(SHIFTS), atol=0.03)


def test_the_truth_is_found_with_a_tenth_of_the_non_clicks() -> None:
    """2,000,000 impressions: overall within 1% and segments within 3% of the true probability, on other rows.

    The standard errors are 0.5% overall and 1% in a segment.
    """
    planted = {"segment_shifts": SHIFTS, "slope": 0.7, "shift": 0.5, "negative_rate": 0.1}
    found = fit(simulate(2, 2_000_000, **planted).rows, None, tokens)  # type: ignore[arg-type]
    test = simulate(3, 1_000_000, **planted)  # type: ignore[arg-type]
    ctr, weight = calibrated(found, test.rows), test.rows.weight
    before = np.dot(weight, sigmoid(test.rows.logit)) / np.dot(weight, test.truth)
    assert abs(before - 1) > 0.2
    assert np.dot(weight, ctr) / np.dot(weight, test.truth) == pytest.approx(1, abs=0.01)
    for segment in range(len(SHIFTS)):
        chosen = test.rows.segment == segment
        ratio = np.dot(weight[chosen], ctr[chosen]) / np.dot(weight[chosen], test.truth[chosen])
        assert ratio == pytest.approx(1, abs=0.03), segment


def times_1_3(logit: Floats) -> Floats:
    """Return the logits of probabilities that are 1.3 times as large, at most 0.999."""
    ctr = (1.3 * sigmoid(logit)).clip(max=0.999)
    planted: Floats = np.log(ctr) - np.log1p(-ctr)
    return planted


@pytest.mark.parametrize("plant", [lambda logit: 1.3 * logit, times_1_3], ids=["logits", "probabilities"])
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_planted_factor_of_1_3_is_corrected(plant: Callable[[Floats], Floats], method: Method) -> None:
    """1,000,000 impressions: overall within 1% of the true probability, and each decile within 3 standard errors or 5%.

    Platt scaling cannot express a factor of the probabilities exactly.
    """
    rows, test = simulate(11, 1_000_000).rows, simulate(12, 500_000)
    found = fit(make_rows(plant(rows.logit), rows.label), method)
    planted = plant(test.rows.logit)
    before, after = sigmoid(planted), sigmoid(curve(found.knots, planted))
    assert abs(before.mean() / test.truth.mean() - 1) > 0.1
    assert after.mean() / test.truth.mean() == pytest.approx(1, abs=0.01)
    decile = equal_mass_bins(test.truth, None, 10)
    for number in range(10):
        true = test.truth[decile == number].mean()
        tolerance = max(0.05 if method == "isotonic" else 0.1, 3 / np.sqrt(len(rows) / 10 * true))
        assert after[decile == number].mean() / true == pytest.approx(1, abs=tolerance), number


def test_without_weights_for_the_dropped_non_clicks_the_rate_would_be_wrong() -> None:
    """The correction of the logits alone does not correct the labels of valid."""
    rows = simulate(4, 300_000, negative_rate=0.1).rows
    right, wrong = fit(rows, "platt"), fit(make_rows(rows.logit, rows.label), "platt")
    truth = simulate(5, 100_000)
    ratios = [sigmoid(curve(found.knots, truth.rows.logit)).mean() / truth.truth.mean() for found in (right, wrong)]
    assert ratios[0] == pytest.approx(1, abs=0.05)
    assert ratios[1] > 4


def test_row_weights_count() -> None:
    """Rows that were logged with a probability of 1/4 count four times."""
    simulation = simulate(6, 400_000)
    share = np.where(simulation.rows.logit > -3.5, 0.25, 1.0)
    kept = np.random.default_rng(6).random(len(share)) < share
    planted = simulation.rows.logit + 0.5
    found = fit(make_rows(planted, simulation.rows.label, 1 / share).select(kept), "platt")
    assert sigmoid(curve(found.knots, planted)).mean() / simulation.truth.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("clicks", [0, 5, 100, 2_000])
def test_a_shift_is_shrunk_by_its_clicks(clicks: int) -> None:
    """The model predicts half as many clicks as there are, but for the segment without clicks."""
    rate, rows = 0.02, clicks * 100 or 100
    shift = segment_shift(
        make_rows(np.zeros(rows), np.arange(rows) < clicks * 2), np.full(rows, np.log(rate / 2 / (1 - rate / 2)))
    )
    expected = rows * rate / 2
    whole = shift * (expected + PRIOR_CLICKS) / expected
    if clicks:
        assert sigmoid(np.log(rate / 2 / (1 - rate / 2)) + whole) == pytest.approx(2 * clicks / rows, rel=1e-6)
    else:
        assert -0.1 < shift < 0


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05])
def test_shifts_of_small_segments_do_not_make_a_calibrated_model_worse(rate: float) -> None:
    """In 1,000 segments without any deviation, the shifts add less than 5% of noise, whatever the click rate.

    If n counted rows instead of clicks, they would add more at a low click rate.
    """
    random = np.random.default_rng(7)
    noise: dict[str, list[float]] = {"clicks": [], "rows": []}
    for _ in range(1_000):
        rows = 1_000
        part = make_rows(np.zeros(rows), random.random(rows) < rate)
        shift = segment_shift(part, np.full(rows, np.log(rate / (1 - rate))))
        expected = rate * rows
        noise["clicks"].append(shift)
        noise["rows"].append(shift * (expected + PRIOR_CLICKS) / expected * rows / (rows + 1_000))
    assert np.std(noise["clicks"]) < 0.05
    assert rate > 0.02 or np.std(noise["rows"]) > 0.1


def test_a_segment_without_rows_of_one_kind_has_a_finite_shift() -> None:
    logit = np.zeros(50)
    for label in (np.zeros(50), np.ones(50)):
        assert np.isfinite(segment_shift(make_rows(logit, label), logit))
    assert np.isfinite(segment_shift(make_rows(logit[:1], np.ones(1)), logit[:1]))


def test_only_the_most_frequent_segments_get_a_shift() -> None:
    random = np.random.default_rng(8)
    rows = simulate(8, 60_000).rows
    ids = np.minimum(random.geometric(0.001, len(rows)), 1_500) + 1
    found = fit(make_rows(rows.logit, rows.label, segment=ids), "platt", tokens)
    counts = np.bincount(ids)
    assert len(found.segments) == MAX_SEGMENTS
    assert found.left_out == np.count_nonzero(counts) - MAX_SEGMENTS
    kept = {segment.id for segment in found.segments}
    assert [segment.id for segment in found.segments] == sorted(kept)
    others = [number for number in np.flatnonzero(counts) if number not in kept]
    assert counts[others].max() <= counts[[*kept]].min()


def test_the_number_of_clicks_chooses_the_method() -> None:
    few, many = simulate(9, 150_000).rows, simulate(9, 400_000).rows
    assert few.clicks < ISOTONIC_CLICKS <= many.clicks
    assert (fit(few, None).method, len(fit(few, None).knots)) == ("platt", 2)
    assert fit(many, None).method == "isotonic"
    assert fit(few, "isotonic").method == "isotonic"


@pytest.mark.parametrize(("clicks", "message"), [(99, "99 clicks are too few"), (1_901, "99 non-clicks are too few")])
def test_too_few_clicks_are_an_error(clicks: int, message: str) -> None:
    with pytest.raises(TooFewClicksError, match=f"{message}.*at least {MIN_CLICKS}"):
        fit(make_rows(np.linspace(-1, 1, 2_000), np.arange(2_000) < clicks), None)


def test_rows_with_weight_0_do_not_count() -> None:
    rows = simulate(10, 100_000).rows
    importance = (np.arange(len(rows)) % 2).astype(np.float64)
    half = make_rows(rows.logit, rows.label).select(importance > 0)
    assert fit(make_rows(rows.logit, rows.label, importance), "platt") == fit(half, "platt")
    with pytest.raises(TooFewClicksError, match="0 clicks"):
        fit(make_rows(rows.logit, rows.label, np.where(rows.label == 1, 0.0, 1.0)), "platt")
