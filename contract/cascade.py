"""The cascade: the first level scores all candidates, the whole model those that can still be among the best k."""

import numpy as np
from numpy.typing import NDArray


def survivors(screen: NDArray[np.floating], k: int, margin: float, slate: int) -> NDArray[np.bool_]:
    """Whose logit at the first level is at most `margin` below that of the k-th best there.

    slate: how many candidates the margin was calibrated on. More are judged in slates of that many: among more the k-th
    best is better, and the margin would rule out more than it may. Shape: (N) -> bool (N).
    """
    starts = range(0, len(screen), slate)
    return np.concatenate([_of_one_slate(screen[start : start + slate], k, margin) for start in starts])


def _of_one_slate(screen: NDArray[np.floating], k: int, margin: float) -> NDArray[np.bool_]:
    if k >= len(screen):
        return np.ones(len(screen), np.bool_)
    kth_best = np.partition(screen, len(screen) - k)[len(screen) - k]
    kept: NDArray[np.bool_] = screen >= kth_best - margin
    return kept
