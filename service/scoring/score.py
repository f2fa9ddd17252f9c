"""Handle POST /v1/score in phases: admit, parse, encode, queue, run, answer."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from contract.bundle import Manifest
from contract.encode import NO_ERRORS, Encoder, ModelInput, Tokens
from contract.reader import BadFeature, Features
from contract.request_log import SCORED
from service.api.auth import ApiKeys
from service.api.body import JSON, arrival_s, check_content_type, deadline, read_body
from service.api.decode import decode_score_request, unit_token
from service.api.problem_details import only_problems, request_id
from service.api.schemas import ScoreRequest, ScoreResponse
from service.errors import BadRequest, ClientGone, DeadlineExceeded, Problem
from service.request_log.lines import Identity, QueuedLine
from service.request_log.writer import RequestLog, identify
from service.runtime.cascade import Screened, screened
from service.runtime.engine import Scored, placed
from service.scoring.admission import Admission
from service.scoring.batching import Answer, Batcher
from service.scoring.readiness import Readiness
from service.scoring.response import best_rows, build_response
from service.settings import MAX_TIMEOUT_MS, Settings
from service.telemetry.drift import DriftCounter
from service.telemetry.metrics import OK, Metrics, Timing, count_outcome
from service.vocabulary.tiered import TieredVocabulary

MAX_RECENT_BYTES = 64 * 1024


class Decoded(msgspec.Struct, frozen=True):
    """A request that has been decoded.

    Attributes:
        body: The body.
        request: The request.
        errors: The errors of candidates that cannot be decoded, by position.
        identity: Identifies the answer, and says whether the request is logged.
    """

    body: bytes
    request: ScoreRequest
    errors: Mapping[int, BadFeature]
    identity: Identity


@dataclass(frozen=True)
class Scorer:
    """Scores requests with one model.

    Attributes:
        settings: The operator's settings.
        readiness: Whether the model has passed its self-test.
        encoder: Reads features into tokens and ids.
        vocabulary: Looks up the ids of tokens.
        batcher: Queues requests for the model and runs it.
        metrics: The process's metrics.
        drift: Counts what this model predicts and what its inputs look like.
        manifest: The model's manifest.
        admission: Limits requests in flight and the bytes of their bodies.
        keys: API keys. None if clients need none.
        log: The request log, if there is one.
        recent: The bodies of recent requests, used to warm up a new model. They outlive this model.
    """

    settings: Settings
    readiness: Readiness
    encoder: Encoder
    vocabulary: TieredVocabulary
    batcher: Batcher
    metrics: Metrics
    drift: DriftCounter
    manifest: Manifest
    admission: Admission
    keys: ApiKeys | None = None
    log: RequestLog | None = None
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=0))

    @property
    def log_values(self) -> bool:
        """Whether to log the values of requests that failed. Never with pseudonyms: their values are raw in a body."""
        return self.settings.log_values and not self.encoder.pseudonym_names

    async def score(self, request: Request) -> Response:
        """Return the scores of a request's candidates. Raises Problem for every other outcome."""
        arrived_s = arrival_s(request)
        # The name of the request's key is not known until later.
        key_name = None if self.keys is None else lambda: getattr(request.state, "api_key_name", "")
        with (
            self.metrics.request(arrived_s, key_name) as timing,
            only_problems(request, self.log_values),
            self.admission.buffer() as hold,
        ):
            try:
                response = await self._score(request, arrived_s, timing, hold)
            except DeadlineExceeded:
                # Record the wait of this request like that of a scored request. Refused requests do not wait.
                if timing.read_s is not None:
                    self.admission.record_wait(timing.waited_s())
                raise
            self.admission.record_wait(timing.waited_s())
            return response

    async def _score(self, request: Request, arrived_s: float, timing: Timing, hold: Callable[[int], None]) -> Response:
        with timing.phase("admit"):
            self.readiness.check()
            self.check_key(request)
            # Check this before reading the body, because refusing a request must cost less than answering it.
            self.batcher.check_capacity(1, math.inf)
            check_content_type(request)
            body = await self.read_body(request, hold)
            timing.has_read()
        with timing.phase("parse"):
            parsed, errors = decode_score_request(body, self.settings.max_candidates, self.encoder.names)
            identity = identify(self.log, unit_token(parsed.unit, self.settings.max_token_chars))
        decoded = Decoded(body, parsed, errors, identity)
        if not identity.logged:
            return await self._answer(request, decoded, arrived_s, timing)
        with count_outcome(partial(self._log_failure, request, decoded)):
            return await self._answer(request, decoded, arrived_s, timing)

    async def _answer(self, request: Request, decoded: Decoded, arrived_s: float, timing: Timing) -> Response:
        """Score a request that has been decoded."""
        parsed = decoded.request
        with timing.phase("encode"):
            check_cascade(parsed, self.manifest)
            deadline_s = deadline(request, arrived_s, parsed.timeout_ms, self.settings.timeout_ms)
            # Check these before the expensive work.
            left_s = deadline_s - time.perf_counter()
            if left_s <= 0:
                raise DeadlineExceeded("The deadline passed before the request was parsed. Allow more time.")
            self.batcher.check_capacity(len(parsed.candidates), left_s)
            candidates = [candidate.features for candidate in parsed.candidates]
            tokens = self.tokens(parsed.context, candidates, parsed.on_bad_candidate == "skip", decoded.errors)
            model_input, unknown, degraded = await self.ids(tokens, deadline_s)
        if parsed.cascade and parsed.top_k is not None:
            model_input = screened(model_input, parsed.top_k, self.manifest.cascade)
        answer = await self._run(request, model_input, deadline_s, timing)
        with timing.phase("answer"):
            ctr = dict(zip(tokens.rows, answer.scored.ctr.tolist(), strict=True)) if answer else {}
            known_as, score_id = request_id(request), decoded.identity.score_id
            built = build_response(known_as, score_id, self.manifest, parsed, ctr, tokens.errors, degraded)
            self._record(decoded.body, ctr, built)
            if answer is not None:
                # With a cascade, only the best candidates have a probability, which would look like drift.
                predicted = None if isinstance(model_input, Screened) else answer.scored.ctr
                self.drift.add(model_input, predicted, tokens.missing, unknown)
            headers = {"x-request-id": built.request_id}
            response = Response(msgspec.json.encode(built), headers=headers, media_type=JSON)
            if decoded.identity.logged:
                self._log(decoded, ctr, answer, tokens.rows, built)
        response.raw_headers.append((b"server-timing", timing.header().encode()))
        return response

    async def _run(self, request: Request, model_input: ModelInput, deadline_s: float, timing: Timing) -> Answer | None:
        """Return the model's answer, or None if all candidates were skipped."""
        left_s = deadline_s - time.perf_counter()
        if left_s <= 0:
            raise DeadlineExceeded("The deadline passed before the request reached the model. Allow more time.")
        if not len(model_input.candidate_ids):
            return None
        start_s = time.perf_counter()
        future = self.batcher.submit(model_input, deadline_s)
        try:
            answer = await wait_for_answer(future, request, left_s)
            if time.perf_counter() > deadline_s:
                raise DeadlineExceeded("The deadline passed while the model was running. Allow more time.")
        except Problem:
            timing.record("queue", timing.before_s + time.perf_counter() - start_s)
            raise
        timing.record("queue", timing.before_s + answer.queue_s)
        timing.record("run", answer.run_s)
        return answer

    def _record(self, body: bytes, ctr: Mapping[int, float], response: ScoreResponse) -> None:
        """Count a response, and keep the request's body to warm up a new model."""
        self.metrics.candidates.inc(len(ctr) if response.scored_in_full is UNSET else response.scored_in_full)
        for reason in response.degraded:
            self.metrics.degraded.labels(reason).inc()
        if len(body) <= MAX_RECENT_BYTES:
            self.recent.append(body)

    def _log(
        self,
        decoded: Decoded,
        ctr: Mapping[int, float],
        answer: Answer | None,
        rows: Sequence[int],
        response: ScoreResponse,
    ) -> None:
        """Offer a scored request to the request log."""
        assert self.log is not None
        scored = Scored(np.empty(0), np.empty(0)) if answer is None else answer.scored
        candidates = len(decoded.request.candidates)
        self.log.offer(
            QueuedLine(
                identity=decoded.identity,
                answered_s=time.time(),
                request_id=response.request_id,
                model=response.model,
                version=response.version,
                outcome=SCORED,
                candidates=candidates,
                body=decoded.body,
                encoder=self.encoder,
                ctr=placed(scored.ctr, rows, candidates),
                logit=placed(scored.logit, rows, candidates),
                best=None if self.log.candidates is None else best_rows(ctr, self.log.candidates, response.request_id),
                degraded=response.degraded,
            )
        )

    def _log_failure(self, request: Request, decoded: Decoded, outcome: str) -> None:
        """Offer a line with the outcome of a request that was not scored to the request log."""
        if outcome == OK:
            return
        assert self.log is not None
        self.log.offer(
            QueuedLine(
                identity=decoded.identity,
                answered_s=time.time(),
                request_id=request_id(request),
                model=self.manifest.name,
                version=self.manifest.version,
                outcome=outcome,
                candidates=len(decoded.request.candidates),
            )
        )

    async def warm_up(self, body: bytes) -> None:
        """Score an earlier request again and discard the result, so that the next request runs with warm caches."""
        parsed, errors = decode_score_request(body, self.settings.max_candidates, self.encoder.names)
        candidates = [candidate.features for candidate in parsed.candidates]
        tokens = self.tokens(parsed.context, candidates, True, errors)
        if tokens.rows:
            deadline_s = time.perf_counter() + MAX_TIMEOUT_MS / 1e3
            model_input, _, _ = await self.find_ids(tokens, deadline_s)
            await self.batcher.submit(model_input, deadline_s)

    def check_key(self, request: Request) -> None:
        """Record the name of a request's API key. Raises Unauthorized if a key is required but not valid."""
        if self.keys is not None:
            request.state.api_key_name = self.keys.require(request.headers)

    async def read_body(self, request: Request, hold: Callable[[int], None]) -> bytes:
        """Return the request's body. `hold` is from Admission.buffer(). Raises what read_body() and `hold` raise."""
        timeout_s = self.settings.body_timeout_ms / 1e3
        body = await read_body(request, self.settings.max_body_bytes, timeout_s, hold)
        if self.log_values:
            request.state.body = body
        return body

    def tokens(
        self,
        context: Features,
        candidates: Sequence[Features],
        skip_bad: bool = False,
        errors: Mapping[int, BadFeature] = NO_ERRORS,
    ) -> Tokens:
        """Return the request's values as tokens. See Encoder.tokens(). Raises BadRequest for an invalid value."""
        try:
            return self.encoder.tokens(context, candidates, skip_bad, self.vocabulary.known, errors)
        except BadFeature as error:
            raise BadRequest(error.reason, error.path) from None

    async def ids(self, tokens: Tokens, deadline_s: float) -> tuple[ModelInput, Counter[str], list[str]]:
        """Return what find_ids() returns. Counts missing, unknown and ignored values."""
        model_input, unknown, degraded = await self.find_ids(tokens, deadline_s)
        kinds = {"missing": tokens.missing, "unknown": unknown, "outside": tokens.outside}
        self.metrics.count_tokens(kinds, tokens.ignored)
        return model_input, unknown, degraded

    async def find_ids(self, tokens: Tokens, deadline_s: float) -> tuple[ModelInput, Counter[str], list[str]]:
        """Return the model's input, the number of unknown tokens by field, and what was unavailable."""
        wanted = self.encoder.wanted(tokens)
        found = await self.vocabulary.find(wanted, deadline_s - time.perf_counter(), tokens.known())
        return *self.encoder.ids(tokens, found.lookup), list(found.degraded)


def check_cascade(request: ScoreRequest, manifest: Manifest) -> None:
    """Raise BadRequest if a request sets `cascade`, but not `top_k`, or if the model has no cascade."""
    if not request.cascade:
        return
    if request.top_k is None:
        raise BadRequest(
            "cascade requires top_k, because it leaves out candidates that are not among the best. Send top_k as well.",
            "$.cascade",
        )
    if not manifest.cascade:
        raise BadRequest(
            "This model has no cascade. Remove the field. "
            "ctr-export --data adds a cascade to a bundle if the model's first level is accurate enough.",
            "$.cascade",
        )


async def wait_for_answer(future: "asyncio.Future[Answer]", request: Request, timeout_s: float) -> Answer:
    """Return the answer. If the deadline passes or the client disconnects, drop the queued rows.

    Raises:
        DeadlineExceeded: There was no answer in time.
        ClientGone: The client disconnected.
    """
    if future.done():
        return future.result()
    disconnect: asyncio.Future[Any] = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait({future, disconnect}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if disconnect.done():
            raise ClientGone("The client disconnected.")
        raise DeadlineExceeded("The deadline passed before the model answered. Allow more time.")
    finally:
        future.cancel()
        disconnect.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
