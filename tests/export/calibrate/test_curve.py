"""The curve rises everywhere, stays finite, and finds a planted error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.calibration import MAX_KNOTS, MIN_SLOPE, Calibration, Calibrator, FittedCalibration, sigmoid
from contract.schema import FeatureSchema, Field
from export.calibrate.curve import MIN_GAP, Knots, fit_isotonic, fit_platt, merge, merged_blocks, shift_to
from export.calibrate.fit import Fit, Method, fit
from export.calibrate.rows import Floats, Rows
from tests.support.calibration import make_rows, simulate

SCHEMA = FeatureSchema((Field("slot", "context"), Field("ad", "candidate")))
METHODS: list[Method] = ["platt", "isotonic"]


def calibrator(found: Fit) -> Calibrator:
    """Return the calibrator that serves a fit. It checks the knots."""
    fitted = FittedCalibration(weights="", method=found.method, knots=found.knots, rows=1, clicks=1)
    return Calibrator(Calibration(), fitted, SCHEMA)


def slopes_of(knots: Knots) -> Floats:
    """Return the slope of each piece of a curve."""
    x, y = np.array([*knots]).T
    slopes: Floats = np.diff(y) / np.diff(x)
    return slopes


@st.composite
def logs(draw: st.DrawFn) -> Rows:
    """Return logs with rare and frequent clicks, ties, weights, extreme logits and sampled non-clicks."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1_000, 20_000))
    base = random.normal(draw(st.floats(-4, 2)), draw(st.floats(0.3, 3)), count)
    label = (random.random(count) < sigmoid(base)).astype(np.float64)
    logit = draw(st.floats(0.1, 8)) * base + draw(st.floats(-20, 20))
    if draw(st.booleans()):
        logit = np.round(logit, draw(st.integers(0, 2)))  # ties
    importance = random.choice([0.5, 1.0, 4.0], count) if draw(st.booleans()) else None
    rate = draw(st.sampled_from([1.0, 0.1]))
    kept = (label == 1) | (random.random(count) < rate)
    return make_rows(logit, label, importance, rate).select(kept)


@given(logs(), st.sampled_from(METHODS), st.integers(0, 2**32 - 1))
def test_a_fitted_calibration_never_makes_two_logits_equal(rows: Rows, method: Method, seed: int) -> None:
    try:
        serve = calibrator(fit(rows, method))
    except ValueError as error:
        assert "too few" in str(error) or "almost the same" in str(error) or "slope" in str(error)  # noqa: PT017
        return
    random = np.random.default_rng(seed)
    low, high = rows.logit.min() - 5, rows.logit.max() + 5
    some = np.concatenate([random.uniform(low, high, 500), random.choice(rows.logit, 500)]).astype(np.float32)
    some = np.concatenate([some, np.nextafter(some, np.float32(np.inf))])
    some = np.unique(some[np.abs(some) > 1e-3])
    index = np.arange(len(some))
    calibrated = serve.calibrated(some, np.zeros((len(some), 1), np.int64), index)
    assert np.diff(calibrated).min() > 0
    probability = serve.ctr(some, np.zeros((len(some), 1), np.int64), index)
    # Above, the probabilities themselves are too close to 1 for float64.
    assert np.diff(probability[calibrated < 12]).min(initial=1) > 0


@given(logs(), st.sampled_from(METHODS))
def test_the_predicted_clicks_of_the_fitted_rows_are_the_observed_ones(rows: Rows, method: Method) -> None:
    try:
        serve = calibrator(fit(rows, method))
    except ValueError:
        return
    ctr = serve.ctr(rows.logit, np.zeros((len(rows), 1), np.int64), np.arange(len(rows)))
    assert np.dot(rows.weight, ctr) / np.dot(rows.weight, rows.label) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("slope", [0.6, 1.3])
def test_platt_scaling_finds_the_planted_line(slope: float) -> None:
    rows = simulate(1, 400_000, slope=slope, shift=0.4).rows
    (low, bottom), (high, top) = fit_platt(rows)
    found = (top - bottom) / (high - low)
    assert found == pytest.approx(1 / slope, rel=0.03)
    assert bottom - found * low == pytest.approx(-0.4 / slope, abs=0.1)


def test_isotonic_regression_finds_a_curve_that_platt_scaling_cannot() -> None:
    simulation = simulate(2, 400_000)
    bent = np.where(simulation.rows.logit < -3.5, 2 * simulation.rows.logit + 3.5, simulation.rows.logit)
    rows = make_rows(bent, simulation.rows.label)
    errors = {}
    for method in METHODS:
        ctr = calibrator(fit(rows, method)).ctr(bent, np.zeros((len(bent), 1), np.int64), np.arange(len(bent)))
        errors[method] = float(np.mean(np.abs(ctr - simulation.truth) / simulation.truth))
    assert errors["isotonic"] < 0.06
    assert errors["platt"] > 3 * errors["isotonic"]


def test_blocks_without_clicks_do_not_give_an_infinite_logit() -> None:
    """The lower half has no clicks, and the top has only clicks."""
    logit = np.linspace(-6, 3, 30_000)
    label = np.where(logit < -2, 0.0, (np.arange(30_000) % 3 == 0) | (logit > 2.9)).astype(np.float64)
    knots = np.array([*fit_isotonic(make_rows(logit, label))])
    assert np.isfinite(knots).all()
    assert np.abs(knots[:, 1]).max() < 20


def test_many_clicks_give_at_most_the_allowed_number_of_knots() -> None:
    logit = np.linspace(-6, 40, 400_000)
    label = np.random.default_rng(3).random(len(logit)) < np.linspace(0.2, 0.8, len(logit))
    x, y, clicks = merged_blocks(make_rows(logit, label))
    assert len(x) <= MAX_KNOTS - 2
    assert np.diff(x).min() >= MIN_GAP
    assert np.diff(y).min() > 0
    assert clicks.sum() == label.sum()


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.floats(0.001, 0.5)).filter(
            lambda block: sum(block[:2]) > 0
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 200),
)
def test_merged_blocks_keep_all_rows_and_their_distance(blocks: list[tuple[int, int, float]], least: int) -> None:
    blocks = sorted(blocks, key=lambda block: block[2])
    columns = [(a + b, a, (a + b) * p, a, b) for a, b, p in blocks]
    merged = np.array(merge(np.array(columns, np.float64), least))
    np.testing.assert_allclose(merged.sum(0), np.sum(columns, axis=0))
    if len(merged) > 1:
        assert merged[:, 3:].min() >= least
        mean = merged[:, 2] / merged[:, 0]
        assert np.diff(np.log(mean / (1 - mean))).min() >= MIN_GAP * (1 - 1e-9)


def test_flat_regions_get_the_least_slope() -> None:
    logit = np.linspace(-6, 0, 200_000)
    rate = np.where(logit < -3, 0.02, 0.2)
    label = np.random.default_rng(4).random(len(logit)) < rate
    slopes = slopes_of(fit_isotonic(make_rows(logit, label)))
    assert slopes.min() >= MIN_SLOPE * (1 - 1e-9)


def test_the_ends_continue_with_the_slope_of_platt_scaling() -> None:
    rows = simulate(5, 200_000, slope=0.5).rows
    slopes = slopes_of(fit_isotonic(rows))
    assert slopes[[0, -1]] == pytest.approx([2, 2], rel=0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("slope", "message"), [(-1.0, "falls as the prediction rises"), (0.0, "hardly depends on")])
def test_a_model_that_does_not_rank_is_an_error(method: Method, slope: float, message: str) -> None:
    simulation = simulate(6, 50_000)
    noise = np.random.default_rng(7).normal(0, 1, len(simulation.truth))
    rows = make_rows(slope * simulation.rows.logit + (slope == 0) * noise, simulation.rows.label)
    with pytest.raises(ValueError, match=f"{message}.*Check that the labels are not swapped"):
        fit(rows, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_model_is_an_error(method: Method) -> None:
    label = np.arange(2_000) % 4 == 0
    with pytest.raises(ValueError, match="gives all 2,000 rows almost the same probability"):
        fit(make_rows(np.full(2_000, -2.0), label), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_knows_the_label_is_an_error(method: Method) -> None:
    label = np.arange(2_000) % 4 == 0
    with pytest.raises(ValueError, match="separates all clicks from all non-clicks"):
        fit(make_rows(np.where(label, 1.0, -1.0) + np.linspace(-0.5, 0.5, 2_000), label), method)


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.999), st.floats(0.1, 30))
def test_a_shift_gives_exactly_the_clicks(seed: int, share: float, std: float) -> None:
    random = np.random.default_rng(seed)
    logit, weight = random.normal(0, std, 200), random.uniform(0.1, 10, 200)
    clicks = share * float(weight.sum())
    shift = shift_to(logit, weight, clicks)
    assert np.dot(weight, sigmoid(logit + shift)) == pytest.approx(clicks, rel=1e-9)
