"""Finding numbers that probably mean "missing", such as -999 in a column of prices."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MIN_SHARE = 0.001  # the minimum share of rows of a number that is not in CODES
MIN_ROWS = 2
MIN_OTHERS = 3  # distinct numbers, of which a sentinel must be far from all
MAX_SPREADS = 100  # A code this many times farther away than the others' range would make them almost equal.
# The limits of integer types. A float holds the largest ones only approximately.
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


def without_codes(numbers: NDArray[np.float64], sentinels: Iterable[str]) -> NDArray[np.float64]:
    """Return the column without the codes that would distort its mean and its standard deviation.

    These are codes that occur rarely, or that are so far from the other numbers that these would become almost equal.
    Frequent ones that are nearer stay, because a model can learn from them.

    Args:
        numbers: The column, (rows). NaN means missing.
        sentinels: Its sentinels (see find_sentinels()).

    Returns:
        The column with NaN instead of these codes.
    """
    codes = [float(sentinel) for sentinel in sentinels if float(sentinel) in CODES]
    others = numbers[~np.isnan(numbers) & ~np.isin(numbers, codes)]
    if not len(others):
        return numbers
    low, high = float(others.min()), float(others.max())
    distorting = [
        code
        for code in codes
        if not is_frequent(int((numbers == code).sum()), len(numbers))
        or max(low - code, code - high) > MAX_SPREADS * (high - low)
    ]
    return np.where(np.isin(numbers, distorting), np.nan, numbers)


def is_frequent(count: int, rows: int) -> bool:
    """Return whether a number that occurs `count` times occurs often enough to be a sentinel if it is not a code."""
    return count >= max(MIN_ROWS, MIN_SHARE * rows)


def outermost_sentinel(numbers: NDArray[np.float64], rows: int) -> float | None:
    """Return the largest or the smallest number if it is a sentinel. `rows` includes rows without a number."""
    if not len(numbers):
        return None
    for extreme in (float(numbers.max()), float(numbers.min())):
        is_extreme = numbers == extreme
        frequent = is_frequent(int(is_extreme.sum()), rows)
        if not frequent and extreme not in CODES:
            continue
        others = numbers[~is_extreme]
        if not has_distinct(others, MIN_OTHERS):
            continue
        # Next to the smallest integer, the largest one is not far from the others.
        usual = others[~np.isin(others, [*LIMITS])]
        is_negative_code = frequent and extreme in NEGATIVE_CODES and float(others.min()) >= 0
        if is_far(extreme, others) or is_negative_code or (has_distinct(usual, MIN_OTHERS) and is_far(extreme, usual)):
            return extreme
    return None


def is_far(extreme: float, others: NDArray[np.float64]) -> bool:
    """Return whether a number is farther from all others than these are from each other."""
    low, high = float(others.min()), float(others.max())
    return max(low - extreme, extreme - high) > high - low


def has_distinct(numbers: NDArray[np.float64], count: int) -> bool:
    """Return whether there are at least `count` distinct numbers."""
    for _ in range(count - 1):
        if not len(numbers):
            return False
        numbers = numbers[numbers != numbers[0]]
    return len(numbers) > 0
