"""An explanation's contributions as pairs of fields, in one order wherever they are shown.

Shape legend: L levels, F fields in serving order, P = F (F + 1) / 2 pairs, a field with itself among them.
"""

import numpy as np
from numpy.typing import NDArray

MOST_CANDIDATES = (
    8  # of one POST /v1/explain: a person reads it, and a graph of shares runs the model many times for each
)


def ranked_pairs(contribution_LFF: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Both orders of two fields added, the largest first; of equal ones, the earlier fields'.

    Without those that are 0 on every level, as all but the diagonal are where a field has a share of its own.
    Shape: (L, F, F) -> positions of the two fields (at most P, 2), contribution by level (at most P, L).
    """
    both_LFF = contribution_LFF + np.triu(contribution_LFF.transpose(0, 2, 1), 1)
    position_P2 = np.stack(np.triu_indices(contribution_LFF.shape[1]), 1)
    by_level_PL = both_LFF[:, position_P2[:, 0], position_P2[:, 1]].T
    adds_P = by_level_PL.any(1)
    position_P2, by_level_PL = position_P2[adds_P], by_level_PL[adds_P]
    order = np.argsort(-np.abs(by_level_PL.sum(1)), kind="stable")
    return position_P2[order], by_level_PL[order]
