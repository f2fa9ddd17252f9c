"""The paired bootstrap: whether model A is better than model B on the same rows.

Both models are evaluated on the same resamples, so that variation common to both cancels out. Rows of the same unit,
such as a user, are not independent, and neither are rows of the same request. Therefore, whole clusters of rows are
drawn, with replacement and from a seeded generator: all units, all requests if the log has no units, or all rows if it
has neither.

An Outcome consists of the difference on the original rows, the 2.5th and 97.5th percentiles of the resamples'
differences, and the two-sided p-value: twice the share of resamples on the rarer side of zero, at least
2 / (resamples + 1). Resamples with only one class, for which AUC is undefined, are skipped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 1
CHUNK = 4_194_304  # the number of counts in memory at a time: 34 MB

Outcome = tuple[float, float, float, float]
Floats = NDArray[Any]


def resample(clusters: int, resamples: int, seed: int = SEED) -> Iterator[NDArray[np.int64]]:
    """Yield resamples of clusters: how often each cluster is drawn, int64 (clusters).

    Args:
        clusters: The number of clusters, of which each resample draws as many with replacement.
        resamples: The number of resamples.
        seed: The random seed.
    """
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(random.integers(clusters, size=clusters), minlength=clusters)


def resampled_sums(sums: NDArray[np.float64], resamples: int, seed: int = SEED) -> NDArray[np.float64]:
    """Return the totals of resamples, (resamples, columns).

    Statistics that are functions of totals, such as a mean, need no rows: their cost depends on the number of clusters
    only.

    Args:
        sums: The sum of each quantity over the rows of each cluster, (clusters, columns).
        resamples: The number of resamples.
        seed: The random seed.
    """
    clusters = len(sums)
    totals = np.empty((resamples, sums.shape[1]))
    chunk = np.empty((max(1, min(resamples, CHUNK // clusters)), clusters))
    filled = start = 0
    for counts in resample(clusters, resamples, seed):
        chunk[filled] = counts
        filled += 1
        if filled == len(chunk) or start + filled == resamples:
            totals[start : start + filled] = chunk[:filled] @ sums
            start, filled = start + filled, 0
    return totals


def bootstrap_auc(
    labels: Floats,
    ctr_a: Floats,
    ctr_b: Floats,
    resamples: int = RESAMPLES,
    weights: Floats | None = None,
    clusters: Floats | None = None,
) -> Outcome:
    """Return the outcome for AUC(a) - AUC(b). All arrays are (rows). weights and clusters are as in bootstrap()."""
    auc_a, auc_b = WeightedAuc(labels, ctr_a), WeightedAuc(labels, ctr_b)
    return bootstrap(lambda counts: auc_a(counts) - auc_b(counts), len(labels), resamples, weights, clusters)


def bootstrap_mean(
    values: Floats, resamples: int = RESAMPLES, weights: Floats | None = None, clusters: Floats | None = None
) -> Outcome:
    """Return the outcome for the mean of paired differences, (rows). weights and clusters are as in bootstrap()."""
    return bootstrap(lambda counts: float(counts @ values / counts.sum()), len(values), resamples, weights, clusters)


class WeightedAuc:
    """The AUC of rows with counts. It handles ties exactly and takes linear time once the predictions are sorted."""

    def __init__(self, labels: Floats, ctr: Floats) -> None:
        self._clicks = labels > 0.5
        distinct, self._group = np.unique(ctr, return_inverse=True)
        self._groups = len(distinct)

    def __call__(self, counts: Floats) -> float:
        clicks, others = (self._by_group(np.where(kind, counts, 0)) for kind in (self._clicks, ~self._clicks))
        if not (clicks.any() and others.any()):
            return np.nan
        below = np.cumsum(others) - others
        return float(clicks @ (below + others / 2) / (clicks.sum() * others.sum()))

    def _by_group(self, counts: Floats) -> Floats:
        return np.bincount(self._group, weights=counts, minlength=self._groups)


def auc_influence(labels: Floats, ctr: Floats, weights: Floats) -> tuple[float, NDArray[np.float64]]:
    """Return the AUC, and how much each row changes it.

    The AUC of a resample is, to first order, the AUC plus the sum of count * influence over all rows (DeLong et al.,
    Biometrics 1988; for clusters, Obuchowski, Biometrics 1997). So its bootstrap needs sums by cluster instead of a
    pass over all rows for each resample.

    Args:
        labels: 0 or 1, (rows), with both classes.
        ctr: Probabilities, (rows).
        weights: The weight of each row, (rows).

    Returns:
        The AUC, and the influence of each row, (rows). The influences add up to 0.
    """
    is_click = labels > 0.5
    distinct, group = np.unique(ctr, return_inverse=True)
    clicks, others = (
        np.bincount(group, weights=np.where(kind, weights, 0.0), minlength=len(distinct))
        for kind in (is_click, ~is_click)
    )
    # The share of non-clicks that a click beats, and of clicks that beat a non-click. A tie counts half.
    beaten = (np.cumsum(others) - others / 2) / others.sum()
    lost = 1 - (np.cumsum(clicks) - clicks / 2) / clicks.sum()
    auc = float(clicks @ beaten / clicks.sum())
    by_click, by_other = (beaten - auc) / clicks.sum(), (lost - auc) / others.sum()
    return auc, weights * np.where(is_click, by_click[group], by_other[group])


def bootstrap(
    difference: Callable[[Floats], float],
    rows: int,
    resamples: int,
    weights: Floats | None = None,
    clusters: Floats | None = None,
) -> Outcome:
    """Return the outcome for an arbitrary difference.

    Args:
        difference: Computes the difference from counts (rows): how often each row occurs in a resample, times its
            weight.
        rows: The number of rows.
        resamples: The number of resamples to draw.
        weights: The weight of each row, (rows), or None for 1.
        clusters: The cluster of each row, (rows), or None. Rows of the same cluster, such as the rows of a user, are
            not independent, so clusters are drawn instead of rows.
    """
    cluster = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count = rows if cluster is None else int(cluster.max()) + 1

    def by_row(counts: Floats) -> Floats:
        counts = counts if cluster is None else counts[cluster]
        return counts if weights is None else counts * weights

    drawn = np.array([difference(by_row(counts)) for counts in resample(count, resamples)])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
    return difference(np.ones(rows, np.int64) if weights is None else weights), float(low), float(high), p
