"""Confidence intervals of a number of clicks, which has a Poisson distribution if clicks are rare and independent."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainccinv, gammaincinv  # type: ignore[import-untyped]


def poisson_interval(count: ArrayLike, confidence: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the exact confidence interval of the mean of a Poisson distribution, given one count (Garwood 1936).

    Args:
        count: The count, at least 0. It need not be an integer, because weighted clicks have the interval of as many
            clicks as contain the same information.
        confidence: The confidence of the two-sided interval.

    Returns:
        The lower and the upper bound, float64, with the shape of the count.
    """
    counts, tail = np.asarray(count, np.float64), (1 - np.asarray(confidence)) / 2
    low = np.where(counts > 0, gammaincinv(np.where(counts > 0, counts, 1.0), tail), 0.0)
    return low, gammainccinv(counts + 1, tail)
