"""The token cache, compared with a dictionary: every id is correct, and the limits are never exceeded."""

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.vocabulary import UNKNOWN
from service.vocabulary.cache import TokenCache

FIELDS = ("user", "ad")
TRUTH = {field: {f"{field}{n}": n + 2 for n in range(30)} for field in FIELDS}


def a_cache(tokens: int = 20, size: int = 2**20, unknown_s: float = 60.0, now: list[float] | None = None) -> TokenCache:
    moment = now or [0.0]
    return TokenCache(FIELDS, tokens, size, unknown_s, lambda: moment[0])


def true_id(field: str, token: str) -> int:
    return TRUTH[field].get(token, UNKNOWN)


requests = st.lists(
    st.dictionaries(
        st.sampled_from(FIELDS), st.lists(st.integers(0, 45).map(lambda n: f"user{n}"), unique=True, max_size=12)
    ),
    max_size=40,
)


@given(requests, st.integers(0, 40), st.integers(0, 3000))
def test_ids_are_correct_and_limits_hold_for_any_sequence_of_requests(
    asked: list[dict[str, list[str]]], tokens: int, size: int
) -> None:
    cache = a_cache(tokens, size)
    for wanted in asked:
        ids, misses = cache.split(wanted)
        for field, names in wanted.items():
            assert set(ids[field]) | set(misses.get(field, ())) == set(names)
            assert all(known == true_id(field, token) for token, known in ids[field].items())
        for field, names in misses.items():
            cache.put(field, {token: true_id(field, token) for token in names})
        assert cache.tokens <= tokens
        assert cache.bytes <= size


def test_token_in_use_is_not_evicted() -> None:
    cache = a_cache(tokens=40)
    cache.put("user", {"often": 7})
    for number in range(500):
        cache.put("user", {f"once-{number}": number + 2})
        assert cache.split({"user": ["often"]})[0] == {"user": {"often": 7}}
    assert cache.split({"user": ["once-3"]})[1] == {"user": ["once-3"]}


def test_flood_of_unknown_tokens_evicts_no_known_token() -> None:
    cache = a_cache(tokens=100)
    cache.put("user", {f"u{n}": n + 2 for n in range(40)})
    for number in range(10_000):
        cache.put("user", {f"nobody-{number}": UNKNOWN})
    ids, misses = cache.split({"user": [f"u{n}" for n in range(40)]})
    assert len(ids["user"]) == 40
    assert misses == {}


def test_unknown_token_expires() -> None:
    now = [0.0]
    cache = a_cache(tokens=100, unknown_s=10.0, now=now)
    cache.put("user", {"new": UNKNOWN})
    now[0] = 4.0
    assert cache.split({"user": ["new"]})[0] == {"user": {"new": UNKNOWN}}
    for moment in (6.0, 12.0):
        now[0] = moment
        found = cache.split({"user": ["new"]})
    assert found == ({"user": {}}, {"user": ["new"]})


def test_unknown_token_is_not_cached_if_its_lifetime_is_zero() -> None:
    cache = a_cache(tokens=100, unknown_s=0.0)
    cache.put("user", {"new": UNKNOWN})
    assert cache.split({"user": ["new"]})[1] == {"user": ["new"]}


@pytest.mark.parametrize("length", [5, 40, 400])
def test_estimated_bytes_are_close_to_allocated_bytes(length: int) -> None:
    tracemalloc.start()
    try:
        cache = a_cache(tokens=100_000, size=2**30)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            cache.put("user", {f"{number:0{length}}": 1000 + number})
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.tokens == 20_000
    assert taken / 1.5 < cache.bytes < taken * 1.5


def test_token_larger_than_the_cache_is_not_cached() -> None:
    cache = a_cache(tokens=100, size=2000)
    token = "x" * 5000
    assert sys.getsizeof(token) > 2000
    cache.put("user", {token: 5})
    assert cache.tokens == 0
