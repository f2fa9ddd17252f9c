"""Tests of the metrics, mainly calibration."""

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from model.training.metrics import (
    BINS,
    Metrics,
    equal_mass_bins,
    evaluate,
    expected_calibration_error,
    grouped_auc,
    mean_ndcg,
    reliability,
)


def test_a_constant_prediction_of_the_click_rate_is_calibrated() -> None:
    labels = np.array([0.0, 1.0, 0.0, 0.0])
    metrics = evaluate(labels, np.full(4, 0.25))
    assert metrics.calibration_error == 0
    assert metrics.predicted_over_observed == 1
    assert metrics.auc == 0.5


def test_the_error_of_predicting_twice_the_click_rate_is_the_click_rate() -> None:
    labels = np.tile([0.0, 0.0, 0.0, 1.0], 1000)
    metrics = evaluate(labels, np.full(4000, 0.5))
    assert metrics.calibration_error == pytest.approx(0.25)
    assert metrics.predicted_over_observed == pytest.approx(2)


def test_errors_that_cancel_in_the_mean_still_increase_the_calibration_error() -> None:
    labels = np.repeat([0.0, 1.0], 500)
    ctr = np.repeat([0.2, 0.8], 500)
    metrics = evaluate(labels, ctr)
    assert metrics.predicted_over_observed == pytest.approx(1)
    assert metrics.calibration_error == pytest.approx(0.2)


def test_clicks_sampled_from_the_predictions_are_calibrated_in_bins_of_equal_size() -> None:
    random = np.random.default_rng(0)
    ctr = random.beta(1, 20, 60_000)
    labels = (random.random(60_000) < ctr).astype(float)
    bins = reliability(labels, ctr)
    assert [b.rows for b in bins] == [4000] * BINS
    assert expected_calibration_error(bins) < 0.004
    predicted = [b.predicted for b in bins]
    assert predicted == sorted(predicted)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), min_size=1, max_size=60))
def test_every_row_is_in_one_bin_and_equal_predictions_share_a_bin(rows: list[tuple[int, float]]) -> None:
    labels, ctr = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    bins = reliability(labels, ctr)
    assert sum(b.rows for b in bins) == len(rows)
    assert len(bins) <= len(set(ctr))
    assert sum(b.rows * b.observed for b in bins) == pytest.approx(labels.sum())
    assert sum(b.rows * b.predicted for b in bins) == pytest.approx(ctr.sum())
    assert 0 <= expected_calibration_error(bins) <= 1


def test_the_base_rate_is_the_entropy_of_the_click_rate_and_a_constant_has_a_normalized_entropy_of_1() -> None:
    labels = np.array([0.0, 1.0, 0.0, 0.0])
    metrics = evaluate(labels, np.full(4, 0.25))
    assert metrics.base_logloss == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))
    assert metrics.normalized_entropy == pytest.approx(1)
    assert evaluate(labels, np.full(4, 0.4)).normalized_entropy == pytest.approx(1.0887, abs=1e-4)


ROWS = st.tuples(
    st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 3), st.sampled_from(["u", "v", "w"])
)


@given(st.lists(ROWS, min_size=2, max_size=40))
def test_a_weight_counts_like_as_many_copies_of_the_row(rows: list[tuple[int, float, int, str]]) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    labels, ctr, weights, units = columns[0].astype(float), columns[1], columns[2].astype(float), columns[3]
    counted = labels[weights > 0]
    assume(len(counted) > 0 and counted.min() < counted.max())
    weighted = evaluate(labels, ctr, weights, units)
    copies = np.repeat(np.arange(len(rows)), columns[2])
    repeated = evaluate(labels[copies], ctr[copies], None, units[copies])
    for name in ("auc", "logloss", "predicted_over_observed", "base_logloss", "normalized_entropy", "gauc"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name)), name
    bins = reliability(labels, ctr, weights)
    assert sum(b.weight or 0 for b in bins) == pytest.approx(weights.sum())


@given(st.lists(ROWS, min_size=1, max_size=40))
def test_the_grouped_auc_is_the_mean_auc_of_the_units_weighted_by_their_rows(
    rows: list[tuple[int, float, int, str]],
) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    labels, ctr, units = columns[0].astype(float), columns[1], columns[3]
    aucs, sizes = [], []
    for unit in np.unique(units):
        mine = units == unit
        if labels[mine].min() < labels[mine].max():
            aucs.append(roc_auc_score(labels[mine], ctr[mine]))
            sizes.append(mine.sum())
    expected = float(np.average(aucs, weights=sizes)) if aucs else None
    assert grouped_auc(labels, ctr, None, units) == (None if expected is None else pytest.approx(expected))


@given(st.lists(ROWS, min_size=1, max_size=40), st.integers(1, 12))
def test_the_ndcg_is_the_mean_of_scikit_learn_over_the_requests_with_clicks_and_non_clicks(
    rows: list[tuple[int, float, int, str]], top: int
) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    labels, ctr, requests = columns[0].astype(float), columns[1], columns[3]
    scores = []
    for request in np.unique(requests):
        mine = requests == request
        if labels[mine].min() < labels[mine].max():
            scores.append(ndcg_score([labels[mine]], [ctr[mine]], k=top))
    expected = pytest.approx(np.mean(scores)) if scores else None
    assert mean_ndcg(labels, ctr, requests, top) == expected


def test_only_the_first_ten_rows_of_a_request_count() -> None:
    labels, ctr = np.zeros(12), np.linspace(0.9, 0.1, 12)
    labels[[1, 11]] = 1
    metrics = evaluate(labels, ctr, requests=np.ones(12))
    assert metrics.ndcg == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    assert evaluate(labels, ctr).ndcg is None
    assert evaluate(labels, ctr, requests=np.arange(12)).ndcg is None


def test_the_metrics_of_an_older_run_can_be_read() -> None:
    metrics = msgspec.json.decode(b'{"auc": 0.75, "logloss": 0.5}', type=Metrics)
    assert (metrics.auc, metrics.calibration_error) == (0.75, None)
    assert msgspec.json.decode(msgspec.json.encode(metrics), type=Metrics) == metrics


def test_a_single_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="only one"):
        evaluate(np.ones(3), np.full(3, 0.5))


def test_bins_have_equal_mass_and_share_no_predictions() -> None:
    random = np.random.default_rng(3)
    ctr, weights = random.random(10_000), random.choice([1.0, 10.0], 10_000)
    bins = equal_mass_bins(ctr, weights, 10)
    assert np.bincount(bins, weights) == pytest.approx(np.full(10, weights.sum() / 10), rel=0.01)
    assert all(ctr[bins == low].max() < ctr[bins == low + 1].min() for low in range(9))
    few = random.choice([0.1, 0.2], 100)
    assert np.unique(equal_mass_bins(few, None, 10)[few == 0.1]).size == 1
