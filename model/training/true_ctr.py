"""Comparing predictions with the true click probabilities, which only a synthetic log has."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import nn

from model.data.prepare.prepared import Prepared
from model.data.readers.generated import TRUE_CTR
from model.training.batches import Split
from model.training.fit import predict

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


def compare_with_truth(model: nn.Module, prepared: Prepared, test: Split) -> TrueComparison:
    """Compare the model's predictions on test with the true probabilities.

    Raises:
        ValueError: If the log has no true probabilities or no field `ad`.
    """
    true = np.array(prepared.column("test", TRUE_CTR))
    ctr = predict(model, test)
    column = [f.name for f in prepared.schema.select("categorical")].index("ad")
    unseen = test.ids[:, column] == 0
    tenths = np.array_split(np.argsort(ctr, kind="stable"), TENTHS)
    return TrueComparison(
        auc=float(roc_auc_score(test.labels, ctr)),
        true_auc=float(roc_auc_score(test.labels, true)),
        overall=float(ctr.mean() / true.mean()),
        unseen=float(ctr[unseen].mean() / true[unseen].mean()),
        tenths=[float(ctr[rows].mean() / true[rows].mean()) for rows in tenths],
    )
