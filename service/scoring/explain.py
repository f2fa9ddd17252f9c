"""POST /v1/explain: explain each candidate's probability. export/graphs/explain.py defines the contributions.

Shape legend: L levels, F fields in serving order, P pairs of fields.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from contract.encode import ModelInput
from contract.pairs import MAX_CANDIDATES, ranked_pairs
from contract.schema import FeatureSchema
from service.api.body import JSON, arrival_s, check_content_type, deadline
from service.api.decode import decode_explain_request
from service.api.problem_details import only_problems, request_id
from service.api.schemas import ExplainRequest, ExplainResponse, Explanation, Pair
from service.errors import BadRequest, DeadlineExceeded, NotFound, Overloaded
from service.runtime.engine import Engine, Explained
from service.scoring.score import Scorer

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_MS = 1000  # long, because a person rather than an auction waits for an explanation


class Explainer:
    """Explains one request at a time, on a separate thread, so that the event loop keeps scoring."""

    def __init__(self, scorer: Scorer, engine: Engine, schema: FeatureSchema) -> None:
        self._scorer = scorer
        self._engine = engine
        self._running: asyncio.Future[bytes] | None = None
        self._fields = [field.name for field in schema.in_serving_order()]

    async def explain(self, request: Request) -> Response:
        """Return the explanation of each of the request's candidates. Raises Problem for every other outcome."""
        scorer = self._scorer
        with (
            scorer.metrics.explanation(),
            only_problems(request, scorer.log_values),
            scorer.admission.buffer() as hold,
        ):
            arrived_s = arrival_s(request)
            scorer.readiness.check()
            scorer.check_key(request)
            if not self._engine.explains:
                raise NotFound(
                    "This model does not support explanations. A STEC with hidden layers in its head (mlp) cannot be "
                    "explained."
                )
            check_content_type(request)
            body = await scorer.read_body(request, hold)
            parsed = decode_explain_request(body, scorer.settings.max_candidates, scorer.encoder.names)
            candidates = [candidate.features for candidate in parsed.candidates]
            if len(candidates) > MAX_CANDIDATES:
                raise BadRequest(
                    f"{len(candidates)} candidates exceed the limit of {MAX_CANDIDATES} for an explanation. "
                    "Send only those that you want explained.",
                    "$.candidates",
                )
            deadline_s = deadline(request, arrived_s, parsed.timeout_ms, DEFAULT_TIMEOUT_MS)
            tokens = scorer.tokens(parsed.context, candidates)
            model_input, _, degraded = await scorer.ids(tokens, deadline_s)
            respond = partial(self.encoded_response, parsed, model_input, degraded, request_id(request))
            body = await self._run_in_thread(respond, deadline_s)
            return Response(body, headers={"x-request-id": request_id(request)}, media_type=JSON)

    async def _run_in_thread(self, respond: Callable[[], bytes], deadline_s: float) -> bytes:
        if self._running is not None and not self._running.done():
            raise Overloaded("Another explanation is running. Try again later.")
        self._running = running = asyncio.ensure_future(asyncio.to_thread(respond))
        await asyncio.wait({running}, timeout=max(0.0, deadline_s - time.perf_counter()))
        if not running.done():
            running.add_done_callback(log_late_failure)
            raise DeadlineExceeded("The deadline passed before the explanation was ready. Allow more time.")
        return running.result()

    def encoded_response(
        self, request: ExplainRequest, model_input: ModelInput, degraded: list[str], request_id: str
    ) -> bytes:
        """Run the explanation and return the body of the response.

        Do not call this in the event loop: ranking the pairs of a hundred fields alone takes milliseconds.
        """
        explained, manifest = self._engine.explain(model_input), self._scorer.manifest
        explanations = [self.explanation(request, row, explained) for row in range(len(request.candidates))]
        return msgspec.json.encode(
            ExplainResponse(request_id, manifest.name, manifest.version, self._fields, explanations, degraded)
        )

    def explanation(self, request: ExplainRequest, row: int, explained: Explained) -> Explanation:
        """Return the explanation of the candidate in a row of `explained`, with the details that were requested."""
        contribution_LFF = explained.contribution[row]
        position_P2, by_level_PL = (ranked[: request.pairs] for ranked in ranked_pairs(contribution_LFF))
        names = [(self._fields[i], self._fields[j]) for i, j in position_P2]
        pairs = list(map(Pair, names, by_level_PL.sum(1).tolist(), by_level_PL.tolist()))
        return Explanation(
            id=request.candidates[row].id,
            ctr=float(explained.ctr[row]),
            logit=float(explained.logit[row]),
            calibrated_logit=float(explained.calibrated[row]),
            bias=float(explained.bias[row]),
            levels=contribution_LFF.sum((1, 2)).tolist(),
            pairs=pairs,
            others=float(contribution_LFF.sum()) - sum(pair.contribution for pair in pairs),
            attention=explained.attention[row].tolist() if request.attention else UNSET,
        )


def log_late_failure(late: "asyncio.Future[bytes]") -> None:
    """Log that an explanation failed after its deadline. Omit the message, which may contain a client's values."""
    if not late.cancelled() and (error := late.exception()) is not None:
        log.error("an explanation failed after its deadline (%s)", type(error).__name__)
