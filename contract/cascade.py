"""The cascade: the first level scores all candidates, and the whole model only those that may be among the best k."""

import numpy as np
from numpy.typing import NDArray


def survivors(screen: NDArray[np.floating], k: int, margin: float, slate: int) -> NDArray[np.bool_]:
    """Return which candidates the whole model must score. Shape: (N) -> bool (N).

    A candidate survives if its first-level logit is at most `margin` below that of the k-th best candidate.

    Args:
        screen: Logits of the first level.
        k: Number of best candidates that the client wants.
        margin: See CascadeRule.
        slate: Number of candidates for which the margin was calibrated. A larger request is split into slates of this
            size. Among more candidates, the k-th best has a higher logit, so the margin would exclude too many.
    """
    starts = range(0, len(screen), slate)
    return np.concatenate([_survivors_of_slate(screen[start : start + slate], k, margin) for start in starts])


def _survivors_of_slate(screen: NDArray[np.floating], k: int, margin: float) -> NDArray[np.bool_]:
    if k >= len(screen):
        return np.ones(len(screen), np.bool_)
    kth_best = np.partition(screen, len(screen) - k)[len(screen) - k]
    kept: NDArray[np.bool_] = screen >= kth_best - margin
    return kept
