"""Paired bootstrap over rows: both models see the same resample, so what they share cancels.

RESAMPLES seeded resamples of all rows with replacement; without those of one class only, which have no AUC. Each
returned tuple is the difference on the rows themselves, the 2.5th and 97.5th percentile of the resamples' differences,
and the two-sided p: twice the share of resamples on the rarer side of zero, at least 2 / (resamples + 1).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 1

Outcome = tuple[float, float, float, float]
Floats = NDArray[Any]


def bootstrap_auc(labels: Floats, ctr_a: Floats, ctr_b: Floats, resamples: int = RESAMPLES) -> Outcome:
    """Of AUC(a) - AUC(b). All arrays are (rows)."""
    auc_a, auc_b = WeightedAuc(labels, ctr_a), WeightedAuc(labels, ctr_b)
    return _bootstrap(lambda counts: auc_a(counts) - auc_b(counts), len(labels), resamples)


def bootstrap_mean(values: Floats, resamples: int = RESAMPLES) -> Outcome:
    """Of the mean over rows of a paired difference."""
    return _bootstrap(lambda counts: float(counts @ values / len(values)), len(values), resamples)


class WeightedAuc:
    """AUC with a count for each row, exact with ties, in linear time once the predictions are sorted."""

    def __init__(self, labels: Floats, ctr: Floats) -> None:
        self._clicks = labels > 0.5
        distinct, self._group = np.unique(ctr, return_inverse=True)
        self._groups = len(distinct)

    def __call__(self, counts: NDArray[np.int64]) -> float:
        clicks, others = (self._by_group(np.where(kind, counts, 0)) for kind in (self._clicks, ~self._clicks))
        if not (clicks.any() and others.any()):
            return np.nan
        below = np.cumsum(others) - others
        return float(clicks @ (below + others / 2) / (clicks.sum() * others.sum()))

    def _by_group(self, counts: NDArray[np.int64]) -> Floats:
        return np.bincount(self._group, weights=counts, minlength=self._groups)


def _bootstrap(difference: Callable[[NDArray[np.int64]], float], rows: int, resamples: int) -> Outcome:
    random = np.random.default_rng(SEED)
    drawn = np.array(
        [difference(np.bincount(random.integers(rows, size=rows), minlength=rows)) for _ in range(resamples)]
    )
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
    return difference(np.ones(rows, np.int64)), float(low), float(high), p
