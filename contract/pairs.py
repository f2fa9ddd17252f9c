"""Rank the pairs of fields in an explanation, in the same order everywhere they are shown.

Legend: L levels, F fields in serving order, P = F (F + 1) / 2 pairs, including each field with itself.
"""

import numpy as np
from numpy.typing import NDArray

# Maximum per POST /v1/explain request. People read the answer, and computing shares runs the model many times per
# candidate.
MAX_CANDIDATES = 8


def ranked_pairs(contribution_LFF: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the pairs of fields with their contributions, largest absolute contribution first.

    The contributions of (i, j) and (j, i) are added. Among pairs with equal contributions, the pair of earlier fields
    comes first. Pairs that are 0 at every level are left out. An explanation by shares of
    single fields therefore has no pairs of different fields.

    Shape: (L, F, F) -> positions of the two fields (at most P, 2), contribution by level (at most P, L).
    """
    both_LFF = contribution_LFF + np.triu(contribution_LFF.transpose(0, 2, 1), 1)
    position_P2 = np.stack(np.triu_indices(contribution_LFF.shape[1]), 1)
    by_level_PL = both_LFF[:, position_P2[:, 0], position_P2[:, 1]].T
    adds_P = by_level_PL.any(1)
    position_P2, by_level_PL = position_P2[adds_P], by_level_PL[adds_P]
    order = np.argsort(-np.abs(by_level_PL.sum(1)), kind="stable")
    return position_P2[order], by_level_PL[order]
