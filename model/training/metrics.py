"""Prediction metrics: ranking quality (AUC), quality of the probabilities (logloss), and calibration.

All metrics describe the true traffic: rows are weighted, and a negative that was kept in a downsampled log
also counts for the negatives that were dropped (Split.metric_weights).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from model.training.batches import Split

NDCG_ROWS = 10  # the ranks that count in NDCG@10
BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Metrics:
    """The metrics of a split. None means that the run is older than the metric or that there are no units (gauc) or
    requests (ndcg).

    Attributes:
        auc: The AUC, 0 to 1.
        logloss: The mean over the rows, using the natural logarithm.
        calibration_error: The expected calibration error, 0 to 1: the mean over the rows of |predicted - observed| of
            the row's bin.
        predicted_over_observed: The mean prediction divided by the click rate; 1 if calibrated.
        base_logloss: The logloss of a constant prediction of the split's own click rate.
        normalized_entropy: logloss / base_logloss (He et al., Practical Lessons from Predicting Clicks on Ads at
            Facebook, ADKDD 2014). Below 1, the model is better than the base rate.
        gauc: The grouped AUC: the mean AUC of the units that have clicks and non-clicks, weighted by their rows (Zhu et
            al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017).
        ndcg: The mean NDCG@10 of the requests that have clicks and non-clicks, all with the same weight (Järvelin and
            Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, TOIS 2002). It is computed from the rows in
            the log: weights and negative_rate have no effect.
    """

    auc: float
    logloss: float
    calibration_error: float | None = None
    predicted_over_observed: float | None = None
    base_logloss: float | None = None
    normalized_entropy: float | None = None
    gauc: float | None = None
    ndcg: float | None = None


@dataclass(frozen=True)
class Bin:
    """Rows with similar predictions.

    Attributes:
        rows: The number of rows.
        predicted: The mean prediction.
        observed: The click rate.
        weight: The sum of the rows' weights, or None if all rows have the same weight.
    """

    rows: int
    predicted: float
    observed: float
    weight: float | None = None


def evaluate_split(split: Split, ctr: NDArray[np.floating]) -> Metrics:
    """Return the metrics of a split. `ctr` are the probabilities that predict() returns, (rows)."""
    return evaluate(split.labels, ctr, split.metric_weights(), split.units, split.requests)


def evaluate(
    labels: NDArray[np.floating],
    ctr: NDArray[np.floating],
    weights: NDArray[np.float64] | None = None,
    units: NDArray[Any] | None = None,
    requests: NDArray[Any] | None = None,
) -> Metrics:
    """Return the metrics of a split.

    Args:
        labels: 0 or 1, (rows).
        ctr: Probabilities, (rows).
        weights: The weight of each row, (rows), or None if all rows have the same weight.
        units: The unit of each row, (rows), or None.
        requests: The request of each row, (rows), or None.

    Raises:
        ValueError: If all labels are equal.
    """
    if labels.min() == labels.max():
        raise ValueError("AUC needs clicks and non-clicks; this split has only one of them")
    labels64, ctr64 = labels.astype(np.float64), ctr.astype(np.float64)
    logloss, base = float(log_loss(labels, ctr64, sample_weight=weights)), base_logloss(labels64, weights)
    return Metrics(
        auc=float(roc_auc_score(labels, ctr64, sample_weight=weights)),
        logloss=logloss,
        calibration_error=expected_calibration_error(reliability(labels64, ctr64, weights)),
        predicted_over_observed=predicted_over_observed(labels64, ctr64, weights),
        base_logloss=base,
        normalized_entropy=logloss / base,
        gauc=None if units is None else grouped_auc(labels64, ctr64, weights, units),
        ndcg=None if requests is None else mean_ndcg(labels64, ctr64, requests),
    )


def base_logloss(labels: NDArray[np.float64], weights: NDArray[np.float64] | None) -> float:
    """Return the logloss of a constant prediction of the click rate, which is the entropy of the click rate."""
    rate = float(np.average(labels, weights=weights))
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def logloss_by_row(labels: NDArray[np.floating], ctr: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logloss of each row, (rows). Probabilities are clipped as in scikit-learn."""
    smallest = np.finfo(np.float64).eps
    likelihood = np.where(labels > 0.5, ctr, 1 - ctr)
    losses: NDArray[np.float64] = -np.log(likelihood.clip(smallest))
    return losses


def predicted_over_observed(
    labels: NDArray[np.float64], ctr: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> float:
    """Return the mean prediction divided by the click rate."""
    return float(np.average(ctr, weights=weights) / np.average(labels, weights=weights))


def grouped_auc(
    labels: NDArray[np.float64], ctr: NDArray[np.float64], weights: NDArray[np.float64] | None, units: NDArray[Any]
) -> float | None:
    """Return the mean AUC of the units with clicks and non-clicks, weighted by their rows, or None without such units.

    Args:
        labels: 0 or 1, (rows).
        ctr: Probabilities, (rows).
        weights: The weight of each row, (rows), or None.
        units: The unit of each row, (rows).
    """
    weights = np.ones(len(labels)) if weights is None else weights
    aucs, mass = auc_by_unit(labels, ctr, weights, np.unique(units, return_inverse=True)[1])
    both = ~np.isnan(aucs)
    return float(np.average(aucs[both], weights=mass[both])) if both.any() else None


def auc_by_unit(
    labels: NDArray[np.float64], ctr: NDArray[np.float64], weights: NDArray[np.float64], unit: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the AUC of each unit, or NaN without clicks or non-clicks, and the weight of its rows. Shapes: (units).

    Args:
        labels: 0 or 1, (rows).
        ctr: Probabilities, (rows).
        weights: The weight of each row, (rows).
        unit: The number of each row's unit, from 0, (rows). Every unit has a row.
    """
    order = np.lexsort((ctr, unit))
    unit, ctr = unit[order], ctr[order]
    clicks, others = (labels * weights)[order], ((1 - labels) * weights)[order]
    # Each tie is a run of rows of a unit with the same prediction. A click wins against all non-clicks of its unit with
    # lower predictions, and against half of those in its tie.
    ties = np.flatnonzero(np.r_[True, (np.diff(unit) != 0) | (np.diff(ctr) != 0)])
    tie_unit, tie_clicks, tie_others = unit[ties], np.add.reduceat(clicks, ties), np.add.reduceat(others, ties)
    unit_clicks, unit_others = np.bincount(tie_unit, tie_clicks), np.bincount(tie_unit, tie_others)
    before_unit = np.cumsum(unit_others) - unit_others
    lower = np.cumsum(tie_others) - tie_others - before_unit[tie_unit]
    wins = np.bincount(tie_unit, tie_clicks * (lower + tie_others / 2))
    both = (unit_clicks > 0) & (unit_others > 0)
    aucs = np.full(len(both), np.nan)
    aucs[both] = wins[both] / (unit_clicks[both] * unit_others[both])
    mass = (unit_clicks + unit_others).astype(np.float64)
    return aucs, mass


def mean_ndcg(
    labels: NDArray[np.float64], ctr: NDArray[np.float64], requests: NDArray[Any], top: int = NDCG_ROWS
) -> float | None:
    """Return the mean NDCG of the requests with clicks and non-clicks, or None if there are none.

    The gain of a click is 1. Rows with equal predictions share the gains of their ranks, as in scikit-learn.

    Args:
        labels: 0 or 1, (rows).
        ctr: Probabilities, (rows).
        requests: The request of each row, (rows).
        top: The number of ranks that count.
    """
    _, request = np.unique(requests, return_inverse=True)
    order = np.lexsort((-ctr, request))
    request, ctr, labels = request[order], ctr[order], labels[order]
    sizes, clicks = np.bincount(request), np.bincount(request, labels)
    rank = np.arange(len(request)) - (np.cumsum(sizes) - sizes)[request]
    discount = np.where(rank < top, 1 / np.log2(rank + 2), 0)
    ties = np.flatnonzero(np.r_[True, (np.diff(request) != 0) | (np.diff(ctr) != 0)])
    rows = np.diff(np.r_[ties, len(request)])
    gains = np.add.reduceat(labels, ties) / rows * np.add.reduceat(discount, ties)
    found = np.bincount(request[ties], gains)
    best = np.r_[0, np.cumsum(1 / np.log2(np.arange(top) + 2))]
    both = (clicks > 0) & (clicks < sizes)
    if not both.any():
        return None
    return float(np.mean(found[both] / best[np.minimum(clicks[both], top).astype(np.int64)]))


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean over the rows of |predicted - observed| of the row's bin."""
    weights = [b.rows if b.weight is None else b.weight for b in bins]
    return sum(w * abs(b.predicted - b.observed) for w, b in zip(weights, bins, strict=True)) / sum(weights)


def equal_mass_bins(ctr: NDArray[Any], weights: NDArray[np.float64] | None, count: int) -> NDArray[np.int64]:
    """Return the bin of each row, (rows): `count` bins of equal mass, lowest predictions first.

    Equal predictions share a bin, so some bins may be empty.

    Args:
        ctr: Probabilities or logits, (rows).
        weights: The weight of each row, (rows), or None if all rows have the same weight.
        count: The number of bins.
    """
    shares = np.linspace(0, 1, count + 1)[1:-1]
    if weights is None:
        edges = np.unique(np.quantile(ctr, shares))
    else:  # of all methods, only this one supports weights
        edges = np.unique(np.quantile(ctr, shares, weights=weights, method="inverted_cdf"))
    return np.searchsorted(edges, ctr, side="left")


def reliability(
    labels: NDArray[np.floating], ctr: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> list[Bin]:
    """Return up to BINS bins of equal mass, lowest predictions first. Equal predictions share a bin.

    The bins have equal mass (Nixon et al., Measuring Calibration in Deep Learning, 2019) instead of equal width. Most
    click probabilities are close to zero, so most bins of equal width would be empty.
    """
    bins = equal_mass_bins(ctr, weights, BINS)
    rows = np.bincount(bins)
    mass = rows if weights is None else np.bincount(bins, weights=weights)
    counted = 1.0 if weights is None else weights
    predicted, observed = np.bincount(bins, weights=counted * ctr), np.bincount(bins, weights=counted * labels)
    return [
        Bin(int(n), float(p / m), float(o / m), None if weights is None else float(m))
        for n, m, p, o in zip(rows, mass, predicted, observed, strict=True)
        if m
    ]
