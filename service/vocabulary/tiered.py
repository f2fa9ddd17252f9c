"""Token -> id: from this process's cache, else from Redis where there is one, else from the bundle.

Redis holds one hash a field, `ctr:{<version>}:v:<field>`, and `ctr:{<version>}:ready`, written last. Whatever Redis
does, an answer comes in time and is right; it says when it had to do without Redis.
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
from service.vocabulary.breaker import Breaker
from service.vocabulary.cache import Ids, TokenCache

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 1.0  # how long an abandoned round trip may hold its connection; no request waits for that
TURNS = 4  # of the event loop, from a readable socket to a finished task
MAX_ROUND_TRIPS = 64  # at the same time; each holds a connection until Redis answers or its socket times out
WITHOUT_REDIS, WITHOUT_VOCABULARY = "redis", "vocabulary"


class Ready(msgspec.Struct, frozen=True):
    """What `ctr:{<version>}:ready` says: tokens per field, and the digest over the vocabulary's files."""

    counts: dict[str, int]
    vocabulary: str


class Unusable(Exception):
    """Redis answered, but not with this bundle's vocabulary."""


@dataclass(frozen=True)
class Found:
    """degraded: what the ids had to be found without. "redis": they are right all the same, the bundle has them too;
    "vocabulary": tokens that nobody could be asked for count as unknown."""

    lookup: Lookup
    degraded: tuple[str, ...] = ()


def hash_key(version: str, field: str) -> str:
    """The braces keep a version in one slot of a Redis Cluster."""
    return f"ctr:{{{version}}}:v:{field}"


def ready_key(version: str) -> str:
    return f"ctr:{{{version}}}:ready"


def ready_for(bundle: Bundle) -> Ready:
    counts = {field: len(v) - FIRST for field, v in bundle.vocabularies.items()}
    return Ready(counts, vocabulary_digest(bundle.manifest))


def vocabulary_digest(manifest: Manifest) -> str:
    files = sorted((path, digest) for path, digest in manifest.files.items() if path.startswith(f"{VOCABULARY}/"))
    return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


class Tiers:
    """The ids of one bundle's tokens, which may leave its vocabulary to Redis alone. redis: an asynchronous client."""

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
        self._version = bundle.manifest.version
        self._digest = vocabulary_digest(bundle.manifest)
        self._expected = ready_for(bundle) if bundle.vocabularies else None
        self._breaker = Breaker(clock)
        self._fetching: dict[tuple[str, str], asyncio.Task[_Reply]] = {}
        self._trips: set[asyncio.Task[_Reply]] = set()
        self._unjudged: set[asyncio.Task[_Reply]] = set()  # the breaker has not heard of them
        self._judging: set[asyncio.Task[None]] = set()

    @property
    def known(self) -> Known:
        """What need not be asked for."""
        return self._cache.known

    async def find(self, wanted: Mapping[str, Sequence[str]], budget_s: float, known: int = 0) -> Found:
        """The ids of a request's distinct tokens, by field. Never fails.

        known: how many more the caller took from `known`.

        Waits for Redis at most half of `budget_s`, or Redis's own timeout: an answer needs time for the model, too.
        """
        ids, misses = self._cache.split(wanted)
        tiers = Counter(cache=known + sum(map(len, ids.values())))
        degraded: tuple[str, ...] = ()
        if misses:
            if self._redis is not None:
                await self._from_redis(misses, ids, min(budget_s / 2, self._timeout_s), tiers)
                misses = _without(misses, ids)
            degraded = self._from_bundle(misses, ids, tiers)
        self._metrics.count_lookups(tiers, self._cache.tokens, self._cache.bytes)
        return Found({field: known.__getitem__ for field, known in ids.items()}, degraded)

    async def close(self) -> None:
        for tasks in (self._trips, self._judging):
            if tasks:
                await asyncio.wait(tasks)
        if self._redis is not None:
            await self._redis.aclose()

    def _from_bundle(self, misses: Mapping[str, list[str]], ids: Ids, tiers: Counter[str]) -> tuple[str, ...]:
        for field, tokens in misses.items():
            if self._bundle:
                found = {token: self._bundle[field](token) for token in tokens}
                self._cache.put(field, found)
                tiers["bundle"] += len(found)
            else:  # not kept: Redis may know them
                found = dict.fromkeys(tokens, UNKNOWN)
                tiers["nowhere"] += len(found)
            ids[field].update(found)
        if not misses or self._redis is None:
            return ()
        return (WITHOUT_REDIS,) if self._bundle else (WITHOUT_VOCABULARY,)

    async def _from_redis(self, misses: Mapping[str, list[str]], ids: Ids, wait_s: float, tiers: Counter[str]) -> None:
        """Adds what Redis says in time. What another request has asked for already is not asked for again."""
        if wait_s <= 0:
            return
        # While the breaker is open, nobody waits for what a silent Redis still owes.
        fetching = self._fetching if self._breaker.is_closed else {}
        trips = {fetching[pair] for pair in _pairs(misses) if pair in fetching}
        new = _grouped(pair for pair in _pairs(misses) if pair not in fetching)
        if new and len(self._trips) < MAX_ROUND_TRIPS and self._breaker.allows():
            trips.add(self._set_out(new))
        if not trips:
            return
        await _wait(trips, wait_s)
        for trip in trips:
            if trip.done() and not trip.cancelled() and trip.exception() is None:
                for field, tokens in misses.items():  # who joined a round trip may want less than it fetches
                    found = trip.result().get(field, {})
                    mine = {token: found[token] for token in tokens if token in found}
                    ids[field].update(mine)
                    tiers["redis"] += len(mine)

    def _set_out(self, wanted: dict[str, list[str]]) -> "asyncio.Task[_Reply]":
        trip = asyncio.create_task(self._round_trip(wanted))
        start_s = time.perf_counter()
        self._trips.add(trip)
        self._unjudged.add(trip)
        self._fetching.update(dict.fromkeys(_pairs(wanted), trip))
        # Before anybody who waits for it goes on: the next request must know what became of it.
        trip.add_done_callback(lambda _: self._ended(trip, wanted, time.perf_counter() - start_s))
        waiting = asyncio.create_task(self._be_patient(trip))
        self._judging.add(waiting)
        waiting.add_done_callback(self._judging.discard)
        return trip

    async def _be_patient(self, trip: "asyncio.Task[_Reply]") -> None:
        """A round trip that outlasts Redis's own timeout has failed, whatever becomes of it."""
        await _wait({trip}, self._timeout_s)
        if trip in self._unjudged:
            self._unjudged.discard(trip)
            self._failed("it did not answer in time")

    def _ended(self, trip: "asyncio.Task[_Reply]", wanted: Mapping[str, list[str]], seconds: float) -> None:
        self._trips.discard(trip)
        for pair in _pairs(wanted):
            if self._fetching.get(pair) is trip:
                del self._fetching[pair]
        self._metrics.redis_round_trip.observe(seconds)
        error = None if trip.cancelled() else trip.exception()
        if trip not in self._unjudged:
            return
        self._unjudged.discard(trip)
        if error is not None:
            unusable = isinstance(error, Unusable)
            self._failed(str(error) if unusable else type(error).__name__, for_good=unusable)
        elif self._breaker.succeeded():
            self._metrics.redis_up.set(1)
            log.info("redis answers again")

    def _failed(self, reason: str, for_good: bool = False) -> None:
        if self._breaker.failed(for_good):
            self._metrics.redis_up.set(0)
            log.warning("redis is not used for now: %s", reason)

    async def _round_trip(self, wanted: Mapping[str, list[str]]) -> "_Reply":
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(ready_key(self._version))
        for field, tokens in wanted.items():
            pipeline.hmget(hash_key(self._version, field), tokens)
            pipeline.hlen(hash_key(self._version, field))
        raw, *replies = await pipeline.execute()
        ready = self._check_ready(raw)
        found = {}
        for (field, tokens), values, length in zip(wanted.items(), replies[::2], replies[1::2], strict=True):
            count = ready.counts.get(field, 0)
            found[field] = self._checked(field, tokens, values, count + FIRST, is_whole=length == count)
            self._cache.put(field, found[field])
        return found

    def _check_ready(self, raw: Any) -> Ready:
        if raw is None:
            raise Unusable(f"version {self._version} is not published: run ctr-publish")
        try:
            ready = msgspec.json.decode(raw, type=Ready)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
            raise Unusable(f"{ready_key(self._version)} is garbled: run ctr-publish") from error
        if ready.vocabulary != self._digest or self._expected not in (None, ready):
            raise Unusable(f"{ready_key(self._version)} is of another vocabulary: run ctr-publish")
        return ready

    def _checked(self, field: str, tokens: list[str], values: list[Any], size: int, is_whole: bool) -> dict[str, int]:
        """The ids that can be right. Nothing is right as well, for a token that the bundle does not know either; or,
        where there is no bundle to ask, while Redis has lost no token of the field."""
        ids: dict[str, int] = {}
        for token, value in zip(tokens, values, strict=True):
            known = _integer(value, size)
            if known is not None:
                ids[token] = known
            elif value is None and (self._bundle[field](token) == UNKNOWN if self._bundle else is_whole):
                ids[token] = UNKNOWN
        return ids


_Reply = Ids


async def _wait(trips: "set[asyncio.Task[_Reply]]", wait_s: float) -> None:
    # wait() leaves the tasks alone when the time is up or the caller is cancelled. A command cancelled in
    # flight would leave its reply on the pooled connection for the next request to read.
    await asyncio.wait(trips, timeout=wait_s)
    # When it was this loop that was late, the reply lies there already: a few turns to read it.
    for _ in range(TURNS):
        if all(trip.done() for trip in trips):
            break
        await asyncio.sleep(0)


def _pairs(wanted: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(field, token) for field, tokens in wanted.items() for token in tokens]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for field, token in pairs:
        grouped.setdefault(field, []).append(token)
    return grouped


def _without(misses: Mapping[str, list[str]], ids: Ids) -> dict[str, list[str]]:
    return _grouped((field, token) for field, token in _pairs(misses) if token not in ids[field])


def _integer(value: Any, size: int) -> int | None:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 10:
        return None
    number = int(value)
    # Neither "unknown" nor "missing" is ever published for a token.
    return number if FIRST <= number < size else None
