"""Comparing predictions with the true click probabilities, which only a synthetic log has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
