"""Look up token ids in three tiers: this process's cache, then Redis if it is configured, then the bundle.

Redis holds one hash per field, `ctr:vocabulary:{<digest>}:ids:<field>`, and the key `ctr:vocabulary:{<digest>}:ready`,
which is written last. The digest is that of the vocabulary, so all bundles with the same vocabulary share these keys.
If Redis fails in any way, a lookup still returns in time, with the right ids if the bundle has a vocabulary. The result
reports that Redis was unavailable.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from contract.bundle import VOCABULARY, Bundle, Manifest
from contract.reader import Known, Lookup
from contract.vocabulary import FIRST, UNKNOWN
from service.telemetry.metrics import Metrics
from service.vocabulary.breaker import CircuitBreaker
from service.vocabulary.cache import Ids, TokenCache

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 1.0  # how long an abandoned round trip may hold its connection; no request waits that long
LOOP_ITERATIONS = 4  # of the event loop, from a readable socket to a finished task
MAX_ROUND_TRIPS = 64  # concurrent; each uses a connection until Redis replies or the socket times out
WITHOUT_REDIS, WITHOUT_VOCABULARY = "redis", "vocabulary"


class Ready(msgspec.Struct, frozen=True):
    """The value of the ready key: tokens per field, and the digest of the vocabulary's files."""

    counts: dict[str, int]
    vocabulary: str


class Unusable(Exception):
    """Redis replied, but does not have this bundle's vocabulary."""


@dataclass(frozen=True)
class Found:
    """The result of a lookup.

    Attributes:
        lookup: Field name -> function from a token to its id.
        degraded: The tiers that were unavailable. "redis": the ids are right, because they came from the bundle.
            "vocabulary": no tier could answer for some tokens, and these count as unknown.
    """

    lookup: Lookup
    degraded: tuple[str, ...] = ()


def hash_key(digest: str, field: str) -> str:
    """Return the key of the hash with a field's ids.

    Args:
        digest: See vocabulary_digest().
        field: The field's name.
    """
    return f"{key_prefix(digest)}ids:{field}"


def ready_key(digest: str) -> str:
    """Return the key that exists only while the vocabulary is complete."""
    return f"{key_prefix(digest)}ready"


def key_prefix(digest: str) -> str:
    """Return what all keys of a vocabulary start with."""
    # The braces keep all keys of a vocabulary in one slot of a Redis Cluster.
    return f"ctr:vocabulary:{{{digest}}}:"


def ready_for(bundle: Bundle) -> Ready:
    """Return the value of the ready key once all of the bundle's vocabulary is in Redis."""
    counts = {field: len(v) - FIRST for field, v in bundle.vocabularies.items()}
    return Ready(counts, vocabulary_digest(bundle.manifest))


def vocabulary_digest(manifest: Manifest) -> str:
    """Return a SHA-256 digest of the names and digests of the vocabulary's files."""
    files = sorted((path, digest) for path, digest in manifest.files.items() if path.startswith(f"{VOCABULARY}/"))
    return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


class TieredVocabulary:
    """The vocabulary of one bundle, looked up in the cache, in Redis, and in the bundle.

    Args:
        bundle: The bundle. If it has no vocabulary, only Redis has the ids.
        cache: Ids that need no lookup.
        metrics: Counts lookups by tier.
        redis: An asynchronous redis-py client, or None if Redis is not used.
        timeout_s: How long a request waits for Redis. A round trip that takes longer counts as failed.
        clock: Monotonic time in seconds, for the circuit breaker.
    """

    def __init__(
        self,
        bundle: Bundle,
        cache: TokenCache,
        metrics: Metrics,
        redis: Any = None,
        timeout_s: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bundle = bundle.vocabularies
        self._cache = cache
        self._metrics = metrics
        self._redis = redis
        self._timeout_s = timeout_s
        self._digest = vocabulary_digest(bundle.manifest)
        self._expected = ready_for(bundle) if bundle.vocabularies else None
        self._breaker = CircuitBreaker(clock)
        self._fetching: dict[tuple[str, str], asyncio.Task[Ids]] = {}  # (field, token) -> its round trip
        self._round_trips: set[asyncio.Task[Ids]] = set()
        self._pending: set[asyncio.Task[Ids]] = set()  # round trips whose result has not been reported to the breaker
        self._timeouts: set[asyncio.Task[None]] = set()

    @property
    def known(self) -> Known:
        """Ids that need no lookup, by field and token."""
        return self._cache.known

    async def find(self, wanted: Mapping[str, Sequence[str]], budget_s: float, known: int = 0) -> Found:
        """Return the ids of a request's distinct tokens, fetching cache misses from Redis in one round trip.

        Never raises. If Redis is slow or down, the bundle's vocabulary answers and `degraded` reports it.

        Args:
            wanted: Distinct tokens by field name.
            budget_s: Time left until the request's deadline. At most half of it is spent on Redis, because the model
                needs the rest. Redis's own timeout applies as well.
            known: Number of ids that the caller already took from the `known` property, for the metrics.
        """
        ids, misses = self._cache.split(wanted)
        tiers = Counter(cache=known + sum(map(len, ids.values())))
        degraded: tuple[str, ...] = ()
        if misses:
            if self._redis is not None:
                await self._find_in_redis(misses, ids, min(budget_s / 2, self._timeout_s), tiers)
                misses = group_by_field(pair for pair in pairs_of(misses) if pair[1] not in ids[pair[0]])
            degraded = self._find_in_bundle(misses, ids, tiers)
        self._metrics.count_lookups(tiers, self._cache.tokens, self._cache.bytes)
        return Found({field: known.__getitem__ for field, known in ids.items()}, degraded)

    async def close(self) -> None:
        """Wait for all round trips, then close the client."""
        for tasks in (self._round_trips, self._timeouts):
            if tasks:
                await asyncio.wait(tasks)
        if self._redis is not None:
            await self._redis.aclose()

    def _find_in_bundle(self, misses: Mapping[str, list[str]], ids: Ids, tiers: Counter[str]) -> tuple[str, ...]:
        for field, tokens in misses.items():
            if self._bundle:
                found = {token: self._bundle[field](token) for token in tokens}
                self._cache.put(field, found)
                tiers["bundle"] += len(found)
            else:  # Not cached, because Redis may have these tokens.
                found = dict.fromkeys(tokens, UNKNOWN)
                tiers["nowhere"] += len(found)
            ids[field].update(found)
        if not misses or self._redis is None:
            return ()
        return (WITHOUT_REDIS,) if self._bundle else (WITHOUT_VOCABULARY,)

    async def _find_in_redis(
        self, misses: Mapping[str, list[str]], ids: Ids, wait_s: float, tiers: Counter[str]
    ) -> None:
        """Add the ids that Redis returns in time. Tokens that another request is fetching are not sent again."""
        if wait_s <= 0:
            return
        # While the breaker is open, no request waits for the overdue replies of an unresponsive Redis.
        fetching = self._fetching if self._breaker.is_closed else {}
        trips = {fetching[pair] for pair in pairs_of(misses) if pair in fetching}
        new = group_by_field(pair for pair in pairs_of(misses) if pair not in fetching)
        if new and len(self._round_trips) < MAX_ROUND_TRIPS and self._breaker.allows():
            trips.add(self._start_fetch(new))
        if not trips:
            return
        await wait_for_round_trips(trips, wait_s)
        for trip in trips:
            if trip.done() and not trip.cancelled() and trip.exception() is None:
                for field, tokens in misses.items():  # A shared round trip may fetch more than this request wants.
                    found = trip.result().get(field, {})
                    mine = {token: found[token] for token in tokens if token in found}
                    ids[field].update(mine)
                    tiers["redis"] += len(mine)

    def _start_fetch(self, wanted: dict[str, list[str]]) -> "asyncio.Task[Ids]":
        trip = asyncio.create_task(self._fetch(wanted))
        start_s = time.perf_counter()
        self._round_trips.add(trip)
        self._pending.add(trip)
        self._fetching.update(dict.fromkeys(pairs_of(wanted), trip))
        # This callback is added first, so it runs before any waiting request continues. The next request must already
        # see the result of this round trip.
        trip.add_done_callback(lambda _: self._on_fetched(trip, wanted, time.perf_counter() - start_s))
        timeout = asyncio.create_task(self._wait_with_timeout(trip))
        self._timeouts.add(timeout)
        timeout.add_done_callback(self._timeouts.discard)
        return trip

    async def _wait_with_timeout(self, trip: "asyncio.Task[Ids]") -> None:
        """Report a round trip to the breaker as failed if it outlasts Redis's timeout, even if it succeeds later."""
        await wait_for_round_trips({trip}, self._timeout_s)
        if trip in self._pending:
            self._pending.discard(trip)
            self._record_failure("it did not reply in time")

    def _on_fetched(self, trip: "asyncio.Task[Ids]", wanted: Mapping[str, list[str]], seconds: float) -> None:
        self._round_trips.discard(trip)
        for pair in pairs_of(wanted):
            if self._fetching.get(pair) is trip:
                del self._fetching[pair]
        self._metrics.redis_round_trip.observe(seconds)
        error = None if trip.cancelled() else trip.exception()
        if trip not in self._pending:
            return
        self._pending.discard(trip)
        if error is not None:
            unusable = isinstance(error, Unusable)
            self._record_failure(str(error) if unusable else type(error).__name__, permanent=unusable)
        elif self._breaker.record_success():
            self._metrics.redis_up.set(1)
            log.info("redis is used again")

    def _record_failure(self, reason: str, permanent: bool = False) -> None:
        if self._breaker.record_failure(permanent):
            self._metrics.redis_up.set(0)
            log.warning("redis is not used for now: %s", reason)

    async def _fetch(self, wanted: Mapping[str, list[str]]) -> Ids:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(ready_key(self._digest))
        for field, tokens in wanted.items():
            pipeline.hmget(hash_key(self._digest, field), tokens)
            pipeline.hlen(hash_key(self._digest, field))
        raw, *replies = await pipeline.execute()
        ready = self._check_ready(raw)
        found = {}
        for (field, tokens), values, length in zip(wanted.items(), replies[::2], replies[1::2], strict=True):
            count = ready.counts.get(field, 0)
            found[field] = self._check_ids(field, tokens, values, count + FIRST, is_complete=length == count)
            self._cache.put(field, found[field])
        return found

    def _check_ready(self, raw: Any) -> Ready:
        if raw is None:
            raise Unusable(f"the vocabulary {self._digest} is not published: run ctr-publish")
        try:
            ready = msgspec.json.decode(raw, type=Ready)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
            raise Unusable(f"{ready_key(self._digest)} cannot be decoded: run ctr-publish") from error
        if ready.vocabulary != self._digest or self._expected not in (None, ready):
            raise Unusable(f"{ready_key(self._digest)} belongs to another vocabulary: run ctr-publish")
        return ready

    def _check_ids(
        self, field: str, tokens: list[str], values: list[Any], size: int, is_complete: bool
    ) -> dict[str, int]:
        """Return the ids that can be trusted.

        A token that is missing from Redis is unknown if the bundle does not have it either. Without a vocabulary in the
        bundle, it is unknown only if Redis still has all of the field's tokens.
        """
        ids: dict[str, int] = {}
        for token, value in zip(tokens, values, strict=True):
            known = parse_id(value, size)
            if known is not None:
                ids[token] = known
            elif value is None and (self._bundle[field](token) == UNKNOWN if self._bundle else is_complete):
                ids[token] = UNKNOWN
        return ids


async def wait_for_round_trips(trips: "set[asyncio.Task[Ids]]", timeout_s: float) -> None:
    """Wait until all round trips are done or the time is up. Never cancels a round trip."""
    # asyncio.wait() does not cancel the tasks when the time is up or the caller is cancelled. A command that is
    # cancelled in flight would leave its reply on the pooled connection, where the next request would read it.
    await asyncio.wait(trips, timeout=timeout_s)
    # If the event loop itself was late, the reply may have arrived already. A few iterations are enough to read it.
    for _ in range(LOOP_ITERATIONS):
        if all(trip.done() for trip in trips):
            break
        await asyncio.sleep(0)


def pairs_of(wanted: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return the (field, token) pairs."""
    return [(field, token) for field, tokens in wanted.items() for token in tokens]


def group_by_field(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the tokens by field: the inverse of `pairs_of`."""
    grouped: dict[str, list[str]] = {}
    for field, token in pairs:
        grouped.setdefault(field, []).append(token)
    return grouped


def parse_id(value: Any, size: int) -> int | None:
    """Return a token's id from a Redis reply, or None if it is not an id below `size`."""
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 10:
        return None
    number = int(value)
    # The ids for "unknown" and "missing" are never published for a token.
    return number if FIRST <= number < size else None
