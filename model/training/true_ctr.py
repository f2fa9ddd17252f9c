"""Predictions beside the probabilities that the clicks were drawn from: only a generated log has them."""

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
    """overall, unseen, tenths: mean predicted / mean true, 1 where calibrated. unseen: the rows whose ad
    train never had; tenths: by prediction, the lowest first.
    """

    auc: float
    true_auc: float
    overall: float
    unseen: float
    tenths: list[float]


def compare_with_truth(model: nn.Module, prepared: Prepared, test: Split) -> TrueComparison:
    """On the test split. Raises ValueError when the log has no true probabilities or no field `ad`."""
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
