"""Run the model on batches of requests. No request waits for a batch to fill: batches form while the model is busy."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from contract.encode import ModelInput
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.runtime.engine import Scored
from service.scoring.run_cost import RunCost
from service.telemetry.metrics import Metrics

Run = Callable[[Sequence[ModelInput]], list[Scored]]
TimedRun = tuple[list[Scored], float]  # the answers, and the duration of the run in seconds

SHUTTING_DOWN = "The server is shutting down. Send the request to another server."


@dataclass(frozen=True)
class Answer:
    """The scores of a request.

    Attributes:
        scored: The ctr and the logit of each candidate.
        queue_s: How long the candidates waited for the model.
        run_s: How long the model ran for them.
    """

    scored: Scored
    queue_s: float
    run_s: float


@dataclass(eq=False)
class PendingRequest:
    """A request whose rows are queued or running. Times are on time.perf_counter's clock."""

    deadline_s: float
    future: "asyncio.Future[Answer]"
    submitted_s: float
    chunks: list["Chunk"] = field(default_factory=list)
    run_s: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Return an error to the caller, unless the caller already has an answer or is no longer waiting."""
        if not self.future.done():
            self.future.set_exception(error)

    def answer_if_complete(self) -> None:
        """Return the answer to the caller once all chunks have been scored."""
        scored = [chunk.scored for chunk in self.chunks if chunk.scored is not None]
        if self.future.done() or len(scored) < len(self.chunks):
            return
        whole = scored[0] if len(scored) == 1 else Scored(*map(np.concatenate, zip(*scored, strict=True)))
        waited_s = time.perf_counter() - self.submitted_s - self.run_s
        self.future.set_result(Answer(whole, max(0.0, waited_s), self.run_s))


@dataclass(eq=False)
class Chunk:
    """At most `max_rows` of a request's rows."""

    request: PendingRequest
    input: ModelInput
    rows: int
    queued: bool = True
    scored: Scored | None = None


class Batcher:
    """Queues requests and runs the model on batches of rows. A row is a candidate.

    Use it from one event loop only. The model runs in `slots` threads.
    """

    def __init__(
        self,
        run: Run,
        metrics: Metrics,
        *,
        slots: int,
        max_rows: int,
        max_queued_rows: int,
        cost: RunCost | None = None,
        inline_s: float = 0.0,
    ) -> None:
        """Start with an empty queue.

        Args:
            run: The model: a function from requests to the scores of the candidates of each request.
            metrics: Counts runs and queued rows.
            slots: Maximum number of concurrent runs.
            max_rows: Maximum rows in one run.
            max_queued_rows: Maximum rows in the queue.
            cost: Estimates how long runs take.
            inline_s: A run that is expected to be shorter than this runs in the event loop. Passing a run to a
                thread and back costs as much as a short run, and nothing else could make progress anyway while the
                model uses the worker's only core.
        """
        self._run = run
        self._metrics = metrics
        self._max_rows = max_rows
        self._max_queued_rows = max_queued_rows
        self._slots = self._free = slots
        self._inline_s = inline_s
        self._cost = cost or RunCost()
        self._busy_until_s: dict[asyncio.Future[TimedRun], float] = {}  # when each run is expected to end
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="model")
        self._queue: deque[Chunk] = deque()
        self._queued_rows = 0
        self._closed = False

    def submit(self, request: ModelInput, deadline_s: float) -> "asyncio.Future[Answer]":
        """Queue a request, or run it immediately if a slot is free.

        Cancel the returned future to drop the rows that are not yet running.

        Args:
            request: The candidates of one request.
            deadline_s: The caller's deadline, on time.perf_counter's clock.

        Returns:
            A future for the answer. Its exception is DeadlineExceeded, NotReady if the batcher is closed first, or the
            model's exception.

        Raises:
            Overloaded: The queue is full, or too long for this deadline.
            NotReady: The batcher is closed.
        """
        if self._closed:
            raise NotReady(SHUTTING_DOWN)
        rows = len(request.candidate_ids)
        self.check_capacity(rows, deadline_s - time.perf_counter())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._free and rows <= self._max_rows and self._cost.seconds(rows) < self._inline_s:
            self._metrics.batch_rows.observe(rows)
            try:
                (scored,), run_s = timed(self._run, [request])
            except Exception as error:
                future.set_exception(error)
                return future
            self._cost.record(count_scored(scored), run_s)
            future.set_result(Answer(scored, 0.0, run_s))
            return future
        pending = PendingRequest(deadline_s, future, time.perf_counter())
        pending.chunks = [Chunk(pending, part, len(part.candidate_ids)) for part in split(request, self._max_rows)]
        self._queue.extend(pending.chunks)
        self._add_queued_rows(rows)
        future.add_done_callback(lambda _: self._drop(pending))
        self._start_runs()
        return future

    def check_capacity(self, rows: int, left_s: float) -> None:
        """Raise Overloaded if the queue has no room for this many rows, or they cannot be scored within `left_s`."""
        # If a slot is free, no other rows are ahead. Besides, if requests were refused because the estimate is too
        # high, there would be no runs to correct it.
        if self._free:
            return
        if self._queued_rows + rows > self._max_queued_rows:
            raise Overloaded(f"{self._queued_rows} candidates are queued. Try again later, or send fewer candidates.")
        expected_s = self.expected_wait_s() + self._cost.seconds(rows)
        if expected_s > left_s:
            raise Overloaded(
                f"Scoring would take about {expected_s * 1e3:.0f} ms, which exceeds the deadline. "
                "Try again later, or allow more time."
            )

    def expected_wait_s(self) -> float:
        """Return how long it will take to finish all rows that are running or queued now."""
        now = time.perf_counter()
        running_s = sum(max(0.0, until_s - now) for until_s in self._busy_until_s.values())
        full_runs, rest = divmod(self._queued_rows, self._max_rows)
        queued_s = full_runs * self._cost.seconds(self._max_rows) + (self._cost.seconds(rest) if rest else 0.0)
        return (running_s + queued_s) / self._slots

    async def close(self) -> None:
        """Wait for the current runs, and fail queued requests with NotReady."""
        self._closed = True
        for chunk in self._queue:
            chunk.request.fail(NotReady(SHUTTING_DOWN))
        if self._busy_until_s:
            await asyncio.wait(self._busy_until_s.keys())
        # One iteration of the event loop, in which the callers receive their answers.
        await asyncio.sleep(0)
        self._threads.shutdown()

    def _start_runs(self) -> None:
        """Start a run in each free slot, as long as rows are queued."""
        while self._free and (batch := self._next_batch()):
            self._free -= 1
            rows = sum(chunk.rows for chunk in batch)
            self._metrics.batch_rows.observe(rows)
            inputs = [chunk.input for chunk in batch]
            running = asyncio.get_running_loop().run_in_executor(self._threads, timed, self._run, inputs)
            self._busy_until_s[running] = time.perf_counter() + self._cost.seconds(rows)
            running.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[Chunk]:
        """Remove the oldest chunks from the queue, up to `max_rows` rows. Return those whose caller is waiting."""
        batch: list[Chunk] = []
        rows, now = 0, time.perf_counter()
        while self._queue:
            chunk = self._queue[0]
            if chunk.queued and rows + chunk.rows > self._max_rows:
                break
            self._queue.popleft()
            if not chunk.queued:  # dropped
                continue
            chunk.queued = False
            self._add_queued_rows(-chunk.rows)
            if chunk.request.deadline_s <= now:
                chunk.request.fail(DeadlineExceeded("The deadline passed before the model was free. Allow more time."))
            # If the client has disconnected, the future is cancelled, and the rows are not scored.
            if not chunk.request.future.done():
                batch.append(chunk)
                rows += chunk.rows
        return batch

    def _finish(self, batch: list[Chunk], running: "asyncio.Future[TimedRun]") -> None:
        del self._busy_until_s[running]
        self._free += 1
        self._start_runs()  # first, so that the model is not idle while the answers are returned
        error = running.exception()
        if error is not None:
            for chunk in batch:
                chunk.request.fail(error)
            return
        answers, run_s = running.result()
        self._cost.record(sum(map(count_scored, answers)), run_s)
        for chunk, scored in zip(batch, answers, strict=True):
            chunk.scored = scored
            chunk.request.run_s += run_s
            chunk.request.answer_if_complete()

    def _drop(self, request: PendingRequest) -> None:
        """Remove a finished request's rows from the queue. Otherwise, abandoned rows would fill it."""
        for chunk in request.chunks:
            if chunk.queued:
                chunk.queued = False
                self._add_queued_rows(-chunk.rows)
        request.chunks.clear()  # otherwise, chunks and request would be a reference cycle

    def _add_queued_rows(self, rows: int) -> None:
        self._queued_rows += rows
        self._metrics.queued_rows.set(self._queued_rows)


def split(request: ModelInput, max_rows: int) -> list[ModelInput]:
    """Split a request into parts of at most `max_rows` candidates."""
    rows = len(request.candidate_ids)
    if rows <= max_rows:
        return [request]
    cuts = [slice(start, start + max_rows) for start in range(0, rows, max_rows)]
    return [
        replace(request, candidate_ids=request.candidate_ids[cut], candidate_values=request.candidate_values[cut])
        for cut in cuts
    ]


def count_scored(scored: Scored) -> int:
    """Return how many rows the whole model scored. Rows that a cascade ruled out are NaN, and cost almost nothing."""
    return int(np.count_nonzero(~np.isnan(scored.ctr)))


def timed(run: Run, batch: Sequence[ModelInput]) -> TimedRun:
    """Run the model and measure how long it takes. Call this in the model's thread: the event loop may be late."""
    start_s = time.perf_counter()
    answers = run(batch)
    return answers, time.perf_counter() - start_s
