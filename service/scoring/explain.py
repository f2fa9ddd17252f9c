"""POST /v1/explain: why the candidates got their probabilities. See export/graphs/explain.py for what is summed."""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from contract.encode import ModelInput
from contract.pairs import MAX_CANDIDATES, ranked_pairs
from contract.schema import FeatureSchema
from service.api.body import JSON, arrival_s, check_type, deadline
from service.api.problem_details import only_problems, request_id
from service.api.schemas import ExplainRequest, ExplainResponse, Explanation, Pair, decode_explain_request
from service.errors import BadRequest, DeadlineExceeded, NotFound, Overloaded
from service.runtime.engine import Engine, Explained
from service.scoring.score import Scorer

log = logging.getLogger(__name__)

TIMEOUT_MS = 1000  # unless the request says otherwise: a person waits, not an auction


class Explainer:
    """One explanation at a time, made and written on a thread of its own: the event loop goes on scoring."""

    def __init__(self, scorer: Scorer, engine: Engine, schema: FeatureSchema) -> None:
        self._scorer = scorer
        self._engine = engine
        self._running: asyncio.Future[bytes] | None = None
        self._fields = [field.name for field in schema.in_serving_order()]

    async def explain(self, request: Request) -> Response:
        """Raises Problem for every outcome but an answer."""
        scorer = self._scorer
        with (
            scorer.metrics.explanation(),
            only_problems(request, scorer.settings.log_values),
            scorer.admission.buffer() as hold,
        ):
            return await self._explain(request, hold)

    async def _explain(self, request: Request, hold: Callable[[int], None]) -> Response:
        scorer, arrived_s = self._scorer, arrival_s(request)
        scorer.readiness.check()
        scorer.check_key(request)
        if not self._engine.explains:
            raise NotFound("This model has no explanation: a STEC with hidden layers in its head (mlp) has none")
        check_type(request)
        parsed = decode_explain_request(await scorer.body(request, hold))
        if (candidates := len(parsed.candidates)) > MAX_CANDIDATES:
            many = f"{candidates} candidates, an explanation takes {MAX_CANDIDATES}: send the ones that matter"
            raise BadRequest(many, "$.candidates")
        deadline_s = deadline(request, arrived_s, parsed.timeout_ms, TIMEOUT_MS)
        tokens = scorer.tokens(parsed.context, [candidate.features for candidate in parsed.candidates])
        model_input, degraded = await scorer.ids(tokens, deadline_s)
        body = await self._in_time(lambda: self._answer(parsed, model_input, degraded, request_id(request)), deadline_s)
        return Response(body, headers={"x-request-id": request_id(request)}, media_type=JSON)

    async def _in_time(self, answer: Callable[[], bytes], deadline_s: float) -> bytes:
        """Runs and writes it on the thread: for a hundred fields the pairs alone take milliseconds."""
        if self._running is not None and not self._running.done():
            raise Overloaded("Another explanation is being made: try again later")
        self._running = running = asyncio.ensure_future(asyncio.to_thread(answer))
        await asyncio.wait({running}, timeout=max(0.0, deadline_s - time.perf_counter()))
        if not running.done():
            running.add_done_callback(_tell_failure)
            raise DeadlineExceeded("The time ran out before the explanation was there: allow more of it")
        return running.result()

    def _answer(self, request: ExplainRequest, model_input: ModelInput, degraded: list[str], known_as: str) -> bytes:
        explained, manifest = self._engine.explain(model_input), self._scorer.manifest
        explanations = [self._explanation(request, number, explained) for number in range(len(request.candidates))]
        response = ExplainResponse(known_as, manifest.name, manifest.version, self._fields, explanations, degraded)
        return msgspec.json.encode(response)

    def _explanation(self, request: ExplainRequest, number: int, explained: Explained) -> Explanation:
        contribution_LFF, logit = explained.contribution[number], float(explained.logit[number])
        pairs = self._largest_pairs(contribution_LFF, request.pairs)
        return Explanation(
            id=request.candidates[number].id,
            ctr=float(self._engine.calibration.ctr(np.array([logit]))[0]),
            logit=logit,
            bias=float(explained.bias[number]),
            levels=contribution_LFF.sum((1, 2)).tolist(),
            pairs=pairs,
            others=float(contribution_LFF.sum()) - sum(pair.contribution for pair in pairs),
            attention=explained.attention[number].tolist() if request.attention else UNSET,
        )

    def _largest_pairs(self, contribution_LFF: NDArray[np.float64], count: int) -> list[Pair]:
        positions, by_level_PL = (ranked[:count] for ranked in ranked_pairs(contribution_LFF))
        names = [(self._fields[i], self._fields[j]) for i, j in positions]
        return list(map(Pair, names, by_level_PL.sum(1).tolist(), by_level_PL.tolist()))


def _tell_failure(late: "asyncio.Future[bytes]") -> None:
    """Of an explanation that nobody waits for any more. Its words may be a client's values."""
    if not late.cancelled() and (error := late.exception()) is not None:
        log.error("an explanation failed after its deadline (%s)", type(error).__name__)
