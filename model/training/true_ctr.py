"""Comparing predictions with the true click probabilities, which only a synthetic log has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py, xlogy  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score

from model.data.prepare.prepared import Prepared
from model.data.readers.generated import TRUE_CTR
from model.training.batches import Split

TENTHS = 10


@dataclass(frozen=True)
class TrueComparison:
    """Predictions compared with the true probabilities. A ratio is mean predicted / mean true, 1 if calibrated.

    Attributes:
        auc: The AUC of the predictions.
        true_auc: The AUC of the true probabilities.
        overall: The ratio over all rows.
        unseen: The ratio over the rows whose ad is not in the training set.
        tenths: The ratio of each tenth of the rows, sorted by prediction, lowest first.
    """

    auc: float
    true_auc: float
    overall: float
    unseen: float
    tenths: list[float]


def true_normalized_entropy(ctr: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the expected logloss of predictions divided by that of the best constant prediction.

    The labels are the true probabilities instead of clicks, so the noise of the clicks is not in the result. It is
    above 0 even for perfect predictions, because clicks are random: compare it with that of the true probabilities.

    Args:
        ctr: The predictions, between 0 and 1, (rows).
        true: The true probabilities, (rows).

    Raises:
        ValueError: If there are no rows, the shapes differ, or a number is not a probability.
    """
    if ctr.shape != true.shape or not ctr.size:
        raise ValueError(
            f"ctr has the shape {ctr.shape} and true {true.shape}; expected the same number of rows, not 0"
        )
    for name, numbers in (("ctr", ctr), ("true", true)):
        if not ((numbers >= 0) & (numbers <= 1)).all():
            raise ValueError(f"{name} has a number that is not between 0 and 1")
    constant = np.full_like(true, true.mean())
    return cross_entropy(ctr, true) / cross_entropy(constant, true)


def cross_entropy(ctr: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the mean expected logloss of predictions whose clicks have the true probabilities. xlogy(0, 0) is 0."""
    return float(-np.mean(xlogy(true, ctr) + xlog1py(1 - true, -ctr)))


def compare_with_truth(ctr: NDArray[np.float64], prepared: Prepared, test: Split) -> TrueComparison:
    """Compare a model's predictions on test, (rows), with the true probabilities.

    Raises:
        ValueError: If the log has no true probabilities or no field `ad`.
    """
    true = np.array(prepared.column("test", TRUE_CTR))
    column = [f.name for f in prepared.schema.select("categorical")].index("ad")
    unseen, everything = test.ids[:, column] == 0, np.ones(len(test), bool)
    weights = test.metric_weights()

    def ratio(rows: NDArray[Any]) -> float:
        chosen = None if weights is None else weights[rows]
        return float(np.average(ctr[rows], weights=chosen) / np.average(true[rows], weights=chosen))

    tenths = np.array_split(np.argsort(ctr, kind="stable"), TENTHS)
    return TrueComparison(
        auc=float(roc_auc_score(test.labels, ctr, sample_weight=weights)),
        true_auc=float(roc_auc_score(test.labels, true, sample_weight=weights)),
        overall=ratio(everything),
        unseen=ratio(unseen),
        tenths=[ratio(rows) for rows in tenths],
    )
