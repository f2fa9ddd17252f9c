"""The figures of a gate, compared with the metrics of training and with a bootstrap over the rows themselves."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.gate.figures import calibration, deciles, measure, segment_figures
from export.gate.rows import ScoredRows, Segments
from export.gate.verdict import segment_verdict
from model.experiments.bootstrap import bootstrap_auc, resample, resampled_sums
from model.training.metrics import evaluate
from tests.support.examples import examples


def drawn_rows(seed: int, count: int = 3000, units: int = 300, scale: float = 1.0, **others: Any) -> ScoredRows:
    """Draw rows with weights and ties. The true probabilities are those of the new model divided by `scale`."""
    random = np.random.default_rng(seed)
    unit = np.r_[np.arange(units), random.integers(units, size=count - units)]
    logit = random.normal(-1.5, 1, count) + random.normal(0, 0.7, units)[unit]
    new = 1 / (1 + np.exp(-logit))
    old = np.round(1 / (1 + np.exp(-logit - random.normal(0, 0.5, units)[unit])), 2).clip(0.01, 0.99)
    labels = (random.random(count) < new / scale).astype(np.float64)
    weights = random.integers(1, 4, count).astype(np.float64)
    rows: dict[str, Any] = {"weights": weights, "drawn": "unit", "units": units, "segments": {}} | others
    return ScoredRows(labels=labels, new=new, old=old, clusters=unit, **rows)


def test_metrics_equal_those_of_training() -> None:
    rows = drawn_rows(1)
    figures = measure(rows, draws=20)
    for ctr, found in ((rows.new, figures.new), (rows.old, figures.old)):
        expected = evaluate(rows.labels, ctr, rows.weights, rows.clusters)
        assert found.auc == pytest.approx(expected.auc)
        assert found.gauc == pytest.approx(expected.gauc)
        assert found.logloss == pytest.approx(expected.logloss)
        assert found.normalized_entropy == pytest.approx(expected.normalized_entropy)
        assert found.predicted_over_observed.value == pytest.approx(expected.predicted_over_observed)
    assert figures.auc.value == pytest.approx(figures.new.auc - figures.old.auc)
    assert figures.auc_relative.value == pytest.approx(figures.new.auc / figures.old.auc - 1)
    assert figures.auc_relaimpr is not None
    assert figures.auc_relaimpr.value == pytest.approx((figures.new.auc - 0.5) / (figures.old.auc - 0.5) - 1)
    expected_change = figures.new.normalized_entropy / figures.old.normalized_entropy - 1
    assert figures.normalized_entropy.value == pytest.approx(expected_change)


def test_the_interval_of_auc_is_close_to_that_of_a_bootstrap_over_all_rows() -> None:
    rows = drawn_rows(2)
    found = measure(rows, draws=1000).auc
    value, low, high, _ = bootstrap_auc(
        rows.labels, rows.new, rows.old, 1000, weights=rows.weights, clusters=rows.clusters
    )
    assert found.value == pytest.approx(value)
    width = high - low
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * width)


@settings(max_examples=examples(20))
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 60), st.integers(1, 4))
def test_sums_of_resamples_do_not_depend_on_the_chunks(seed: int, clusters: int, draws: int, columns: int) -> None:
    sums = np.random.default_rng(seed).normal(size=(clusters, columns))
    expected = np.array([counts @ sums for counts in resample(clusters, draws, seed)])
    assert resampled_sums(sums, draws, seed) == pytest.approx(expected)
    counts = resampled_sums(np.ones((clusters, 1)), draws, seed)
    assert (counts == clusters).all()


def test_equal_rows_of_a_unit_count_as_one_row() -> None:
    rows = drawn_rows(3)
    fourfold = {name: np.repeat(getattr(rows, name), 4) for name in ("labels", "weights", "new", "old")}
    once = ScoredRows(**{**vars(rows), "clusters": np.arange(3000)})
    by_unit = ScoredRows(**{**vars(rows), **fourfold, "clusters": np.repeat(np.arange(3000), 4)})
    by_row = ScoredRows(**{**vars(rows), **fourfold, "clusters": np.arange(12_000)})
    expected, right, wrong = (measure(each, 400).normalized_entropy.error for each in (once, by_unit, by_row))
    assert right == pytest.approx(expected)
    assert wrong == pytest.approx(expected / 2, rel=0.15)


def segment_rows(seed: int, scale: float = 1.0) -> tuple[ScoredRows, Segments]:
    random = np.random.default_rng(seed)
    segments = Segments(("few", "many", "none"), random.choice([0, 1], 6000, p=[0.01, 0.99]).astype(np.int64))
    return drawn_rows(seed, 6000, 600, scale, segments={"size": segments}), segments


def test_segments_without_rows_are_left_out_and_others_have_their_own_ratio() -> None:
    rows, segments = segment_rows(4)
    found = {segment.name: segment for segment in measure(rows, 20).segments["size"]}
    assert found.keys() == {"few", "many"}
    inside = segments.codes == 1
    expected = (rows.weights * rows.new)[inside].sum() / (rows.weights * rows.labels)[inside].sum()
    assert found["many"].ratio == pytest.approx(expected)
    assert (found["many"].rows, found["many"].clicks) == (inside.sum(), rows.labels[inside].sum())
    few, many = found["few"], found["many"]
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert few.high - few.low > 5 * (many.high - many.low)


def test_the_interval_of_a_segment_contains_the_true_ratio_in_99_percent_of_cases() -> None:
    inside = 0
    for seed in range(200):
        rows = drawn_rows(seed, 2000, 200)
        (found,) = calibration(Segments(("all",), np.zeros(2000, np.int64)), rows, rows.new, 0.99)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 1 <= found.high
    assert inside >= 200 * 0.99 - 2 * math.sqrt(200 * 0.99 * 0.01)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_calibrated_model_fails_in_none_of_a_thousand_small_segments(share: float) -> None:
    """`share` of the rows belong to units of two rows, whose clicks are equal. All others are units of their own."""
    segments, failed, runs = 1000, 0, 10
    for seed in range(runs):
        random = np.random.default_rng(seed)
        count = segments * 5  # 0.1 clicks in each segment
        code, ctr = random.integers(segments, size=count), np.full(count, 0.02)
        labels, clusters = (random.random(count) < ctr).astype(np.float64), np.arange(count)
        pairs = int(share * count) // 2
        for column in (code, labels, clusters):
            column[pairs : 2 * pairs] = column[:pairs]
        rows = ScoredRows(labels, np.ones(count), ctr, ctr, dense(clusters), "unit", count - pairs, {})
        found = segment_figures(Segments([str(number) for number in range(segments)], code), rows)
        failed += any(segment_verdict(segment, 0.05) == "fail" for segment in found)
    assert failed <= 1


def dense(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(clusters, return_inverse=True)[1]


def test_a_small_segment_with_far_too_few_clicks_fails() -> None:
    labels = np.zeros(4000)
    labels[:8] = 1
    rows = ScoredRows(labels, np.ones(4000), np.full(4000, 0.01), np.full(4000, 0.01), np.arange(4000), "row", 0, {})
    (found,) = segment_figures(Segments(("small",), np.zeros(4000, np.int64)), rows)
    assert found.ratio == pytest.approx(5)
    assert segment_verdict(found, 0.05) == "fail"


@pytest.mark.parametrize(("predicted", "low"), [(0.001, 0.2), (0.5, 100.0)])
def test_a_segment_without_clicks_has_only_a_lower_bound(predicted: float, low: float) -> None:
    rows = ScoredRows(
        labels=np.zeros(1200),
        weights=np.ones(1200),
        new=np.full(1200, predicted),
        old=np.full(1200, predicted),
        clusters=np.arange(1200),
        drawn="row",
        units=0,
        segments={},
    )
    (found,) = calibration(Segments(("all",), np.zeros(1200, np.int64)), rows, rows.new, 0.99)
    assert found.ratio is None
    assert found.high is None
    assert found.low is not None
    assert found.low == pytest.approx(1200 * predicted / -math.log(0.005))
    assert found.low > low


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.9]), min_size=1, max_size=50))
def test_equal_predictions_share_a_decile(values: list[float]) -> None:
    ctr: NDArray[np.float64] = np.array(values)
    segments = deciles(ctr, np.ones(len(ctr)))
    by_value = {value: set(segments.codes[ctr == value].tolist()) for value in set(values)}
    assert all(len(codes) == 1 for codes in by_value.values())
    assert set(segments.codes.tolist()) == set(range(len(segments.names)))


def test_rows_without_clicks_are_an_error() -> None:
    rows = drawn_rows(5)
    with pytest.raises(ValueError, match="0 of 3,000 rows have a click"):
        measure(ScoredRows(**{**vars(rows), "labels": np.zeros(3000)}))
    with pytest.raises(ValueError, match="all rows belong to the same unit"):
        measure(ScoredRows(**{**vars(rows), "clusters": np.zeros(3000, np.int64), "units": 1}))


def test_without_units_there_is_no_auc_within_units() -> None:
    figures = measure(ScoredRows(**{**vars(drawn_rows(6)), "units": 0, "drawn": "request"}), draws=20)
    assert figures.gauc is None
    assert figures.new.gauc is None
