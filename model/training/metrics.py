"""Prediction metrics: ranking quality (AUC), quality of the probabilities (logloss), and calibration."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True)
class Metrics:
    """The metrics of a split.

    Attributes:
        auc: The AUC, 0 to 1.
        logloss: The mean over the rows, using the natural logarithm.
        calibration_error: The expected calibration error, 0 to 1: the mean over the rows of |predicted - observed| of
            the row's bin. None in runs that are older than this metric.
        predicted_over_observed: The mean prediction divided by the click rate; 1 if calibrated. None in runs that are
            older than this metric.
    """

    auc: float
    logloss: float
    calibration_error: float | None = None
    predicted_over_observed: float | None = None


@dataclass(frozen=True)
class Bin:
    """Rows with similar predictions: their number, mean prediction and click rate."""

    rows: int
    predicted: float
    observed: float


def evaluate(labels: NDArray[np.floating], ctr: NDArray[np.floating]) -> Metrics:
    """Return the metrics of a split.

    Args:
        labels: 0 or 1, (rows).
        ctr: Probabilities, (rows).

    Raises:
        ValueError: If all labels are equal.
    """
    if labels.min() == labels.max():
        raise ValueError("AUC needs clicks and non-clicks; this split has only one of them")
    labels64, ctr64 = labels.astype(np.float64), ctr.astype(np.float64)
    return Metrics(
        auc=float(roc_auc_score(labels, ctr64)),
        logloss=float(log_loss(labels, ctr64)),
        calibration_error=expected_calibration_error(reliability(labels64, ctr64)),
        predicted_over_observed=float(ctr64.mean() / labels64.mean()),
    )


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean over the rows of |predicted - observed| of the row's bin."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.predicted - b.observed) for b in bins) / rows


def reliability(labels: NDArray[np.floating], ctr: NDArray[Any]) -> list[Bin]:
    """Return up to BINS bins of equal mass, lowest predictions first. Equal predictions share a bin.

    The bins have equal mass (Nixon et al., Measuring Calibration in Deep Learning, 2019) instead of equal width. Most
    click probabilities are close to zero, so most bins of equal width would be empty.
    """
    edges = np.unique(np.quantile(ctr, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, ctr, side="left")
    rows = np.bincount(bins)
    predicted, observed = np.bincount(bins, weights=ctr), np.bincount(bins, weights=labels)
    return [Bin(int(n), float(p / n), float(o / n)) for n, p, o in zip(rows, predicted, observed, strict=True) if n]
