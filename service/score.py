"""The life of one request, top to bottom: admit, parse, encode, queue, run, answer."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from contract.bundle import Manifest
from contract.encode import BadFeature, Encoder, Features, Lookup, ModelInput, Tokens
from service import wire
from service.batching import Answer, Batcher
from service.cascade import screened
from service.errors import (
    BadRequest,
    ClientGone,
    DeadlineExceeded,
    Failed,
    NotReady,
    Problem,
    TooLarge,
    WrongType,
    request_id,
)
from service.lookup import Found, RedisLookup
from service.metrics import Metrics, Timing
from service.settings import Settings

log = logging.getLogger(__name__)

BODY_S = 10.0  # a body that takes longer is no request but a held connection
JSON = "application/json"


@dataclass
class Readiness:
    """`problem` is why not; None once the golden requests came out right."""

    problem: str | None = "starting: the golden requests have not been answered yet"
    tested: asyncio.Event = field(default_factory=asyncio.Event)

    def settle(self, problem: str | None) -> None:
        self.problem = problem
        self.tested.set()

    def check(self) -> None:
        if self.problem is not None:
            raise NotReady(self.problem)


@dataclass(frozen=True)
class Scorer:
    """Everything that scoring needs, in the order in which a request meets it."""

    settings: Settings
    readiness: Readiness
    encoder: Encoder
    vocabularies: Lookup
    redis: RedisLookup | None
    batcher: Batcher
    metrics: Metrics
    manifest: Manifest

    async def score(self, request: Request) -> Response:
        """Raises Problem for every outcome but an answer."""
        with self.metrics.request() as timing, only_problems(request):
            return await self._score(request, timing)

    async def _score(self, request: Request, timing: Timing) -> Response:
        arrived_s = time.perf_counter()
        with timing.phase("admit"):
            self.readiness.check()
            # Before the body is read: a refusal must cost less than an answer.
            self.batcher.check_room(1, math.inf)
            check_type(request)
            body = await read_body(request, self.settings.max_body_bytes)
        with timing.phase("parse"):
            parsed, bad = wire.decode(body, self.settings.max_candidates)
            self._check_cascade(parsed)
        deadline_s = arrived_s + (parsed.timeout_ms or self._timeout_ms(request)) / 1e3
        with timing.phase("encode"):
            tokens = self._readable_tokens(parsed, bad)
            model_input, degraded = await self.ids(tokens, deadline_s)
        if parsed.cascade and parsed.top_k is not None:
            model_input = screened(model_input, parsed.top_k, self.manifest.cascade)
        answer = await self._run(request, model_input, deadline_s, timing)
        with timing.phase("answer"):
            response = self._answer(request, parsed, tokens, answer, degraded)
        response.headers["server-timing"] = timing.header()
        return response

    def _timeout_ms(self, request: Request) -> int:
        given = request.headers.get("x-timeout-ms")
        if given is None:
            return self.settings.timeout_ms
        given = given.strip()
        if not (given.isascii() and given.isdigit() and len(given) < 8 and 1 <= int(given) <= wire.LONGEST_TIMEOUT_MS):
            raise BadRequest(f"header X-Timeout-Ms: send whole milliseconds from 1 to {wire.LONGEST_TIMEOUT_MS}")
        return int(given)

    def _check_cascade(self, parsed: wire.ScoreRequest) -> None:
        if not parsed.cascade:
            return
        if parsed.top_k is None:
            raise BadRequest("only the best can be found without scoring all: send top_k as well", "$.cascade")
        if not self.manifest.cascade:
            why = "ctr-export --data makes one where the model's first level allows it"
            raise BadRequest(f"this model has none: leave it out; {why}", "$.cascade")

    def _readable_tokens(self, parsed: wire.ScoreRequest, bad: Mapping[int, BadRequest]) -> Tokens:
        kept = [index for index in range(len(parsed.candidates)) if index not in bad]
        features = [parsed.candidates[index].features for index in kept]
        tokens = self.tokens(parsed.context, features, skip_bad=parsed.on_bad_candidate == "skip")
        return _renumbered(tokens, kept, bad) if bad else tokens

    def tokens(self, context: Features, candidates: Sequence[Features], skip_bad: bool = False) -> Tokens:
        """Raises BadRequest for a value that cannot be encoded."""
        try:
            return self.encoder.tokens(context, candidates, skip_bad)
        except BadFeature as error:
            raise BadRequest(error.reason, error.path) from None

    async def ids(self, tokens: Tokens, deadline_s: float) -> tuple[ModelInput, list[str]]:
        """The model's input, and what it had to do without."""
        found = Found(self.vocabularies, degraded=False)
        if self.redis is not None:
            found = await self.redis.find(self.encoder.wanted(tokens), deadline_s - time.perf_counter())
        model_input, unknown = self.encoder.ids(tokens, found.lookup)
        self.metrics.count_tokens(tokens.missing, unknown, tokens.ignored)
        return model_input, ["redis"] if found.degraded else []

    async def _run(self, request: Request, model_input: ModelInput, deadline_s: float, timing: Timing) -> Answer | None:
        """None when not one candidate could be read."""
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            raise DeadlineExceeded("The time ran out before the model was asked: allow more of it")
        if not len(model_input.candidate_ids):
            return None
        start_s = time.perf_counter()
        future = self.batcher.submit(model_input, deadline_s)
        try:
            answer = await _first(future, request, left_s)
        except Problem:
            timing.record("queue", time.perf_counter() - start_s)
            raise
        timing.record("queue", answer.queue_s)
        timing.record("run", answer.run_s)
        return answer

    def _answer(
        self, request: Request, parsed: wire.ScoreRequest, tokens: Tokens, answer: Answer | None, degraded: list[str]
    ) -> Response:
        ctr: dict[int, float] = dict(zip(tokens.rows, answer.ctr.tolist(), strict=True)) if answer else {}
        in_full = int(np.isfinite(answer.ctr).sum()) if answer else 0
        self.metrics.candidates.inc(in_full)
        for reason in degraded:
            self.metrics.degraded.labels(reason).inc()
        scores = [
            wire.Score(parsed.candidates[row].id, ctr[row])
            if row in ctr
            else wire.Score(parsed.candidates[row].id, None, f"{tokens.errors[row].path}: {tokens.errors[row].reason}")
            for row in _answered(len(parsed.candidates), ctr, parsed.top_k)
        ]
        manifest, known_as = self.manifest, request_id(request)
        response = wire.ScoreResponse(known_as, manifest.name, manifest.version, scores, degraded)
        if parsed.cascade:
            response.scored_in_full = in_full
        return Response(msgspec.json.encode(response), headers={"x-request-id": known_as}, media_type=JSON)


@contextmanager
def only_problems(request: Request) -> Iterator[None]:
    """Whatever a block raises comes out as a Problem; what is our own fault is in the log."""
    try:
        yield
    except (Problem, asyncio.CancelledError):
        raise
    except ClientDisconnect:
        raise ClientGone("The client hung up") from None
    except Exception as error:
        log.exception("request %s failed", request_id(request))
        raise Failed("The server failed; its log has this request_id") from error


def _answered(candidates: int, ctr: Mapping[int, float], top_k: int | None) -> Sequence[int]:
    """The answer's candidates: all, or the best k, equal ones in their order, and last those without a ctr."""
    if top_k is None:
        return range(candidates)
    # NaN: ruled out by the cascade.
    ranked = sorted((row for row, value in ctr.items() if value == value), key=lambda row: -ctr[row])
    return [*ranked, *(row for row in range(candidates) if row not in ctr)][:top_k]


def _renumbered(tokens: Tokens, kept: list[int], bad: Mapping[int, BadRequest]) -> Tokens:
    """Positions among the kept candidates -> positions in the request, with `bad` among the errors."""
    prefix = re.compile(r"\$\.candidates\[\d+\]")
    errors = {
        kept[row]: BadFeature(prefix.sub(f"$.candidates[{kept[row]}]", error.path), error.reason)
        for row, error in tokens.errors.items()
    }
    errors.update({row: BadFeature(problem.path or "$", problem.detail) for row, problem in bad.items()})
    return replace(tokens, rows=[kept[row] for row in tokens.rows], errors=errors)


def check_type(request: Request) -> None:
    """Raises WrongType for anything but plain JSON."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != JSON:
        raise WrongType(f"The content type is {given[:100]!r}: send 'Content-Type: {JSON}'")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WrongType(f"The content encoding is {encoding[:100]!r}: send the body as it is, without Content-Encoding")


async def read_body(request: Request, limit: int) -> bytes:
    """Never holds more than the limit and one chunk in memory.

    Raises:
        TooLarge: above the limit. DeadlineExceeded: when it comes too slowly.
    """
    too_large = TooLarge(f"This server reads at most {limit} bytes: split the request, or raise CTR_MAX_BODY_BYTES")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise DeadlineExceeded(f"The body did not arrive within {BODY_S:g} s: send it faster") from None
    return b"".join(chunks)


async def _first(future: "asyncio.Future[Answer]", request: Request, left_s: float) -> Answer:
    """The answer, unless the time is up or the client hangs up before; then the rows in the queue are dropped."""
    hang_up: asyncio.Future[Any] = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({future, hang_up}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if hang_up.done():
            raise ClientGone("The client hung up")
        raise DeadlineExceeded("The time ran out before the model answered: allow more of it")
    finally:
        future.cancel()
        hang_up.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
