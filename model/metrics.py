"""What a prediction is judged by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score


@dataclass(frozen=True)
class Metrics:
    """auc: 0 to 1. logloss: natural logarithm, mean over rows."""

    auc: float
    logloss: float


def evaluate(labels: NDArray[np.floating], ctr: NDArray[np.floating]) -> Metrics:
    """Labels 0 or 1 and probabilities, both (rows). Raises ValueError when only one class is there."""
    if len(np.unique(labels)) < 2:
        raise ValueError("AUC needs clicks and non-clicks: this split has only one of them")
    ctr64 = ctr.astype(np.float64)
    return Metrics(float(roc_auc_score(labels, ctr64)), float(log_loss(labels, ctr64)))
