from collections import Counter

import pytest

from contract.units import BUCKETS, bucket

# Other programs must compute the same buckets.
VECTORS = [
    ("request-log", "1", 1432),
    ("request-log", "user-42", 8059),
    ("request-log", "ünit", 1386),
    ("spring-test", "user-42", 3082),
    ("spring-test", "", 1373),
]


@pytest.mark.parametrize(("salt", "unit", "expected"), VECTORS)
def test_bucket_of_published_test_vectors(salt: str, unit: str, expected: int) -> None:
    assert bucket(salt, unit) == expected


def test_units_are_spread_evenly_and_independently_over_the_buckets_of_two_salts() -> None:
    units = [str(number) for number in range(20_000)]
    tenths = Counter((bucket("a", unit) * 10 // BUCKETS, bucket("b", unit) * 10 // BUCKETS) for unit in units)
    chi_squared = sum((tenths[x, y] - 200) ** 2 / 200 for x in range(10) for y in range(10))
    assert chi_squared < 160  # 99 degrees of freedom: exceeded with a probability of 1e-4
