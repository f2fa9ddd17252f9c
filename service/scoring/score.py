"""The life of one request, top to bottom: admit, parse, encode, queue, run, answer."""

import asyncio
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from contract.bundle import Manifest
from contract.encode import Encoder, ModelInput, Tokens
from contract.reader import BadFeature, Features
from service.api import schemas
from service.api.auth import ApiKeys
from service.api.body import JSON, arrival_s, check_type, deadline, read_body
from service.api.problem_details import only_problems, request_id
from service.errors import BadRequest, ClientGone, DeadlineExceeded, NotReady, Problem, Unauthorised
from service.request_log.writer import RequestLog
from service.runtime.cascade import screened
from service.scoring.admission import Admission
from service.scoring.batching import Answer, Batcher
from service.settings import MAX_TIMEOUT_MS, Settings
from service.telemetry.metrics import Metrics, Timing
from service.vocabulary.tiered import TieredVocabulary

LARGEST_RECENT_BYTES = 64 * 1024


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
    vocabulary: TieredVocabulary
    batcher: Batcher
    metrics: Metrics
    manifest: Manifest
    admission: Admission
    keys: ApiKeys | None = None
    log: RequestLog | None = None
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=0))

    async def score(self, request: Request) -> Response:
        """Raises Problem for every outcome but an answer."""
        arrived_s = arrival_s(request)
        with (
            self.metrics.request(arrived_s, self._asks(request)) as timing,
            only_problems(request, self.settings.log_values),
            self.admission.buffer() as hold,
        ):
            try:
                response = await self._score(request, arrived_s, timing, hold)
            except DeadlineExceeded:
                self._note_the_wait(timing)
                raise
            self._note_the_wait(timing)
            return response

    def _note_the_wait(self, timing: Timing) -> None:
        """Of those that were scored or should have been: a refusal waits for nobody."""
        if timing.read_s is not None:
            self.admission.waited(timing.waited_s())

    def _asks(self, request: Request) -> Callable[[], str] | None:
        """What says whose key it is, once that is known; None where no keys are asked for."""
        return None if self.keys is None else lambda: getattr(request.state, "api_key_name", "")

    async def rehearse(self, body: bytes) -> None:
        """Scores a request that was served already, for nobody: what it needs is warm afterwards."""
        parsed, _ = schemas.decode(body, self.settings.max_candidates)
        tokens = self.tokens(parsed.context, [candidate.features for candidate in parsed.candidates], skip_bad=True)
        if tokens.rows:
            deadline_s = time.perf_counter() + MAX_TIMEOUT_MS / 1e3
            model_input, _, _ = await self._find(tokens, deadline_s)
            await self.batcher.submit(model_input, deadline_s)

    async def _score(self, request: Request, arrived_s: float, timing: Timing, hold: Callable[[int], None]) -> Response:
        with timing.phase("admit"):
            self.readiness.check()
            self.check_key(request)
            # Before the body is read: a refusal must cost less than an answer.
            self.batcher.check_room(1, math.inf)
            check_type(request)
            body = await self.body(request, hold)
            timing.has_read()
        with timing.phase("parse"):
            parsed, bad = schemas.decode(body, self.settings.max_candidates)
            self._check_cascade(parsed)
            deadline_s = deadline(request, arrived_s, parsed.timeout_ms, self.settings.timeout_ms)
            self._check_time(len(parsed.candidates), deadline_s)
        with timing.phase("encode"):
            tokens = self._readable_tokens(parsed, bad)
            model_input, degraded = await self.ids(tokens, deadline_s)
        if parsed.cascade and parsed.top_k is not None:
            model_input = screened(model_input, parsed.top_k, self.manifest.cascade)
        answer = await self._run(request, model_input, deadline_s, timing)
        with timing.phase("answer"):
            response = self._answer(request, parsed, tokens, answer, degraded)
            if len(body) <= LARGEST_RECENT_BYTES:
                self.recent.append(body)
        response.raw_headers.append((b"server-timing", timing.header().encode()))
        return response

    async def body(self, request: Request, hold: Callable[[int], None]) -> bytes:
        """hold: see Admission.buffer. Raises as read_body(), and what `hold` raises."""
        longest_s = self.settings.body_timeout_ms / 1e3
        body = await read_body(request, self.settings.max_body_bytes, longest_s, hold)
        if self.settings.log_values:
            request.state.body = body
        return body

    def check_key(self, request: Request) -> None:
        """Raises Unauthorised where keys are asked for and none of them is given."""
        if self.keys is None:
            return
        name = self.keys.name_of(request.headers)
        if name is None:
            raise Unauthorised("Send an API key: Authorization: Bearer KEY")
        request.state.api_key_name = name

    def _check_time(self, rows: int, deadline_s: float) -> None:
        """Before the work that costs most: an answer that nobody waits for any more."""
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            raise DeadlineExceeded("The time ran out before the request was read: allow more of it")
        self.batcher.check_room(rows, left_s)

    def _check_cascade(self, parsed: schemas.ScoreRequest) -> None:
        if not parsed.cascade:
            return
        if parsed.top_k is None:
            raise BadRequest("only the best can be found without scoring all: send top_k as well", "$.cascade")
        if not self.manifest.cascade:
            why = "ctr-export --data makes one where the model's first level allows it"
            raise BadRequest(f"this model has none: leave it out; {why}", "$.cascade")

    def _readable_tokens(self, parsed: schemas.ScoreRequest, bad: Mapping[int, BadRequest]) -> Tokens:
        kept = [index for index in range(len(parsed.candidates)) if index not in bad]
        features = [parsed.candidates[index].features for index in kept]
        tokens = self.tokens(parsed.context, features, skip_bad=parsed.on_bad_candidate == "skip")
        return _renumbered(tokens, kept, bad) if bad else tokens

    def tokens(self, context: Features, candidates: Sequence[Features], skip_bad: bool = False) -> Tokens:
        """Raises BadRequest for a value that cannot be encoded."""
        try:
            return self.encoder.tokens(context, candidates, skip_bad, self.vocabulary.known)
        except BadFeature as error:
            raise BadRequest(error.reason, error.path) from None

    async def ids(self, tokens: Tokens, deadline_s: float) -> tuple[ModelInput, list[str]]:
        """The model's input, and what it had to do without."""
        model_input, unknown, degraded = await self._find(tokens, deadline_s)
        kinds = {"missing": tokens.missing, "unknown": unknown, "outside": tokens.outside}
        self.metrics.count_tokens(kinds, tokens.ignored)
        return model_input, degraded

    async def _find(self, tokens: Tokens, deadline_s: float) -> tuple[ModelInput, Counter[str], list[str]]:
        wanted = self.encoder.wanted(tokens)
        found = await self.vocabulary.find(wanted, deadline_s - time.perf_counter(), tokens.known())
        return *self.encoder.ids(tokens, found.lookup), list(found.degraded)

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
            if time.perf_counter() > deadline_s:
                raise DeadlineExceeded("The time ran out while the model answered: allow more of it")
        except Problem:
            timing.record("queue", timing.before_s + time.perf_counter() - start_s)
            raise
        timing.record("queue", timing.before_s + answer.queue_s)
        timing.record("run", answer.run_s)
        return answer

    def _answer(
        self, request: Request, parsed: schemas.ScoreRequest, tokens: Tokens, answer: Answer | None, degraded: list[str]
    ) -> Response:
        ctr: dict[int, float] = dict(zip(tokens.rows, answer.ctr.tolist(), strict=True)) if answer else {}
        in_full = int(np.isfinite(answer.ctr).sum()) if answer and parsed.cascade else len(ctr)
        self.metrics.candidates.inc(in_full)
        for reason in degraded:
            self.metrics.degraded.labels(reason).inc()
        scores = [
            schemas.Score(parsed.candidates[row].id, ctr[row])
            if row in ctr
            else schemas.Score(
                parsed.candidates[row].id, None, f"{tokens.errors[row].path}: {tokens.errors[row].reason}"
            )
            for row in _answered(len(parsed.candidates), ctr, parsed.top_k)
        ]
        manifest, known_as = self.manifest, request_id(request)
        response = schemas.ScoreResponse(known_as, manifest.name, manifest.version, scores, degraded)
        if parsed.cascade:
            response.scored_in_full = in_full
        if self.log is not None:
            self.log.offer(parsed, ctr, response, self.encoder.names)
        return Response(msgspec.json.encode(response), headers={"x-request-id": known_as}, media_type=JSON)


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


async def _first(future: "asyncio.Future[Answer]", request: Request, left_s: float) -> Answer:
    """The answer, unless the time is up or the client hangs up before; then the rows in the queue are dropped."""
    if future.done():
        return future.result()
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
