"""Finding numbers that probably mean "missing", such as -999 in a column of prices."""

import numpy as np
from numpy.typing import NDArray

MIN_SHARE = 0.001  # the minimum share of rows of a number that is not in CODES
MIN_ROWS = 2
MIN_OTHERS = 3  # other distinct numbers that the column must have
# The limits of integer types. A float represents the largest ones only approximately.
LIMITS = {
    float(limit): str(limit) for bits in (31, 32, 63, 64) for limit in (1 - 2**bits, -(2**bits), 2**bits, 2**bits - 1)
}
NINES = frozenset(10.0**digits - 1 for digits in range(1, 10))  # 9, 99, 999, ...
NEGATIVE_CODES = frozenset({-1.0, *(-nines for nines in NINES)})
# Numbers that are often used as codes. If such a number is far from all others, a single occurrence is suspicious.
CODES = frozenset({*LIMITS, *(sign * nines for nines in NINES if nines >= 999 for sign in (-1, 1))})


def find_sentinels(numbers: NDArray[np.float64]) -> dict[str, float]:
    """Return the numbers of a column that probably mean "missing", with the share of rows that contain each.

    A sentinel is the smallest or the largest number. It is farther from all other numbers than these are from each
    other, or it is -1, -9, -99 and so on while all others are at least 0. It occurs often, or it is far from the others
    and is a common code: 999, 9999 and so on, or the limit of an integer type.

    Args:
        numbers: The column, (rows). NaN means missing.
    """
    found: dict[str, float] = {}
    others = numbers[~np.isnan(numbers)]
    while (sentinel := outermost_sentinel(others, len(numbers))) is not None:
        is_sentinel = others == sentinel
        found[LIMITS.get(sentinel, f"{sentinel:.17g}")] = float(is_sentinel.sum() / len(numbers))
        others = others[~is_sentinel]
    return found


def outermost_sentinel(numbers: NDArray[np.float64], rows: int) -> float | None:
    """Return the largest or the smallest number if it is a sentinel. `rows` includes rows without a number."""
    if not len(numbers):
        return None
    for extreme in (float(numbers.max()), float(numbers.min())):
        is_extreme = numbers == extreme
        count = int(is_extreme.sum())
        is_frequent = count >= max(MIN_ROWS, MIN_SHARE * rows)
        if not is_frequent and extreme not in CODES:
            continue
        others = numbers[~is_extreme]
        if not has_distinct(others, MIN_OTHERS):
            continue
        low, high = float(others.min()), float(others.max())
        is_far = max(low - extreme, extreme - high) > high - low
        if is_far or (is_frequent and extreme in NEGATIVE_CODES and low >= 0):
            return extreme
    return None


def has_distinct(numbers: NDArray[np.float64], count: int) -> bool:
    """Return whether there are at least `count` distinct numbers."""
    for _ in range(count - 1):
        if not len(numbers):
            return False
        numbers = numbers[numbers != numbers[0]]
    return len(numbers) > 0
