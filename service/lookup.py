"""Token -> id: Redis first where there is one, and the bundle's own vocabulary for whatever Redis does not say.

Redis holds one hash a field, `ctr:{<version>}:v:<field>`, and `ctr:{<version>}:ready`, written last.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from contract.bundle import VOCABULARY, Bundle, Manifest
from contract.encode import Lookup
from contract.vocabulary import FIRST, UNKNOWN, Vocabulary

log = logging.getLogger(__name__)

PAUSE_S = 1.0  # so that a dead Redis does not cost every request its timeout
FAILURES = 3  # in a row, before a pause: one late answer may be this process's own fault
SOCKET_TIMEOUT_S = 1.0  # how long an abandoned round trip may hold its connection; no request waits for that
TURNS = 4  # of the event loop, from a readable socket to a finished task
MAX_ROUND_TRIPS = 64  # at the same time; each holds a connection until Redis answers or its socket times out

Ids = dict[str, dict[str, int]]


class Ready(msgspec.Struct, frozen=True):
    """What `ctr:{<version>}:ready` says: tokens per field, and the digest over the vocabulary's files."""

    counts: dict[str, int]
    vocabulary: str


class Unusable(Exception):
    """Redis answered, but not with this bundle's vocabulary."""


@dataclass(frozen=True)
class Found:
    """`degraded`: Redis is configured but did not answer for everything. The ids are right all the same."""

    lookup: Lookup
    degraded: bool


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


def connect(url: str) -> Redis:
    """Connects on first use. No retries: whoever waits has milliseconds, and the bundle knows the answer too.

    Raises:
        ValueError: for a URL that is none. The message does not repeat it.
    """
    pool = ConnectionPool.from_url(
        url,
        max_connections=MAX_ROUND_TRIPS,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Redis.from_pool(pool)


class RedisLookup:
    """One round trip for all tokens of a request; the bundle where it fails, is late or is wrong."""

    def __init__(
        self, client: Redis, bundle: Bundle, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._vocabularies = bundle.vocabularies
        self._version = bundle.manifest.version
        self._expected = ready_for(bundle)
        self._timeout_s = timeout_s
        self._clock = clock
        self._paused_until_s = float("-inf")
        self._failures = 0
        self._healthy = True
        self._tasks: set[asyncio.Task[Found]] = set()
        self._judging: set[asyncio.Task[None]] = set()

    async def find(self, wanted: Mapping[str, list[str]], budget_s: float) -> Found:
        """Waits at most half of `budget_s`, or Redis's own timeout. Never fails: the bundle answers instead."""
        # Half: an answer from the bundle needs time for the model, too.
        wait_s = min(budget_s / 2, self._timeout_s)
        if wait_s <= 0 or self._clock() < self._paused_until_s or len(self._tasks) >= MAX_ROUND_TRIPS:
            return self._from_bundle()
        task = asyncio.create_task(self._round_trip(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await _wait(task, wait_s)
        if not task.done() and wait_s < self._timeout_s:
            # A short budget says nothing about Redis, and Redis's own timeout is not over.
            self._judge_later(task, self._timeout_s - wait_s)
            return self._from_bundle()
        return task.result() if self._judge(task) else self._from_bundle()

    def _judge_later(self, task: "asyncio.Task[Found]", left_s: float) -> None:
        async def judge() -> None:
            await _wait(task, left_s)
            self._judge(task)

        judging = asyncio.create_task(judge())
        self._judging.add(judging)
        judging.add_done_callback(self._judging.discard)

    def _judge(self, task: "asyncio.Task[Found]") -> bool:
        """Whether a round trip brought an answer in time; counts it."""
        if not task.done():
            self._failed("it did not answer in time")
            return False
        if (error := task.exception()) is not None:
            unusable = isinstance(error, Unusable)
            self._failed(str(error) if unusable else type(error).__name__, for_good=unusable)
            return False
        self._succeeded()
        return True

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._judging:  # they wait for nothing else
            await asyncio.wait(self._judging)
        await self._client.aclose()

    async def _round_trip(self, wanted: Mapping[str, list[str]]) -> Found:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.get(ready_key(self._version))
        for field, tokens in wanted.items():
            pipeline.hmget(hash_key(self._version, field), tokens)
        ready, *replies = await pipeline.execute()
        self._check_ready(ready)
        return self._found(wanted, replies)

    def _check_ready(self, raw: Any) -> None:
        if raw is None:
            raise Unusable(f"version {self._version} is not published: run ctr-publish")
        try:
            ready = msgspec.json.decode(raw, type=Ready)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
            raise Unusable(f"{ready_key(self._version)} is garbled: run ctr-publish") from error
        if ready != self._expected:
            raise Unusable(f"{ready_key(self._version)} is of another vocabulary: run ctr-publish")

    def _found(self, wanted: Mapping[str, list[str]], replies: list[Any]) -> Found:
        lookup: dict[str, Callable[[str], int]] = dict(self._vocabularies)
        wrong = 0
        for (field, tokens), values in zip(wanted.items(), replies, strict=True):
            ids, doubtful = _ids(self._vocabularies[field], tokens, values)
            lookup[field] = ids.__getitem__
            wrong += doubtful
        return Found(lookup, degraded=wrong > 0)

    def _from_bundle(self) -> Found:
        return Found(self._vocabularies, degraded=True)

    def _ended(self, task: "asyncio.Task[Found]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain where the waiter has gone

    def _succeeded(self) -> None:
        self._failures = 0
        if not self._healthy:
            self._healthy = True
            log.info("redis answers again")

    def _failed(self, reason: str, for_good: bool = False) -> None:
        """`for_good`: asking again at once would bring the same answer."""
        self._failures += 1
        if self._failures < FAILURES and not for_good:
            return
        self._paused_until_s = self._clock() + PAUSE_S
        if self._healthy:
            self._healthy = False
            log.warning("redis is not used for now, the bundle answers: %s", reason)


async def _wait(task: "asyncio.Task[Found]", wait_s: float) -> None:
    # wait() leaves the task alone when the time is up or the caller is cancelled. A command cancelled in
    # flight would leave its reply on the pooled connection for the next request to read.
    await asyncio.wait({task}, timeout=wait_s)
    # When it was this loop that was late, the reply lies there already: a few turns to read it.
    for _ in range(TURNS):
        if task.done():
            break
        await asyncio.sleep(0)


def _ids(vocabulary: Vocabulary, tokens: list[str], values: list[Any]) -> tuple[dict[str, int], int]:
    """The ids of one field, and how many of them Redis got wrong or lost."""
    ids: dict[str, int] = {}
    wrong = 0
    for token, value in zip(tokens, values, strict=True):
        known = _integer(value, len(vocabulary))
        if known is None:
            known = vocabulary(token)
            # Nothing for a token that the bundle does not know either is Redis's right answer.
            wrong += value is not None or known != UNKNOWN
        ids[token] = known
    return ids, wrong


def _integer(value: Any, size: int) -> int | None:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 10:
        return None
    number = int(value)
    # Neither "unknown" nor "missing" is ever published for a token.
    return number if FIRST <= number < size else None
