"""Runs the model on the rows of several requests at once, but only while it is busy anyway."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from contract.encode import ModelInput
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.scoring.run_cost import RunCost
from service.telemetry.metrics import Metrics

Ctr = NDArray[np.float64]
Run = Callable[[Sequence[ModelInput]], list[Ctr]]


@dataclass(frozen=True)
class Answer:
    """The ctr of a request's candidates, how long the model ran for them, and how long they waited for it."""

    ctr: Ctr
    queue_s: float
    run_s: float


@dataclass(eq=False)
class Waiting:
    """A request whose rows are queued or running. `deadline_s` is on time.perf_counter's clock."""

    deadline_s: float
    future: "asyncio.Future[Answer]"
    submitted_s: float
    parts: list["_Part"] = field(default_factory=list)
    run_s: float = 0.0


@dataclass(eq=False)
class _Part:
    """At most `max_rows` of a request's rows."""

    request: Waiting
    input: ModelInput
    rows: int
    queued: bool = True
    ctr: Ctr | None = None


_Ran = tuple[list[Ctr], float]  # and the seconds that it took


class Batcher:
    """Counts rows of candidates, not requests. Lives in one event loop; the model runs in `slots` threads.

    inline_s: a run that is expected to take less runs in the event loop itself. To hand it to a thread and back costs
    as much as a short run, and while the model has the worker's only core nobody else would get on.
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
        self._run = run
        self._metrics = metrics
        self._max_rows = max_rows
        self._max_queued_rows = max_queued_rows
        self._slots = self._free = slots
        self._inline_s = inline_s
        self._cost = cost or RunCost()
        self._busy_until_s: dict[asyncio.Future[_Ran], float] = {}  # as expected, of what runs
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="model")
        self._queue: deque[_Part] = deque()
        self._queued_rows = 0
        self._closed = False

    def submit(self, request: ModelInput, deadline_s: float) -> "asyncio.Future[Answer]":
        """Runs at once when a slot is free. Cancel the future to drop the rows that do not run yet.

        The future's exceptions: DeadlineExceeded, NotReady (closed meanwhile), or what the model raised.

        Raises:
            Overloaded: when the queue is full, or too long for this deadline.
            NotReady: after `close`.
        """
        if self._closed:
            raise NotReady("The server is shutting down: ask another one")
        rows = len(request.candidate_ids)
        self.check_room(rows, deadline_s - time.perf_counter())
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._free and rows <= self._max_rows and self._cost.seconds(rows) < self._inline_s:
            self._run_here(request, rows, future)
            return future
        waiting = Waiting(deadline_s, future, time.perf_counter())
        waiting.parts = [_Part(waiting, chunk, len(chunk.candidate_ids)) for chunk in _split(request, self._max_rows)]
        self._queue.extend(waiting.parts)
        self._count_queued(rows)
        future.add_done_callback(lambda _: self._drop(waiting))
        self._fill()
        return future

    def _run_here(self, request: ModelInput, rows: int, future: "asyncio.Future[Answer]") -> None:
        self._metrics.batch_rows.observe(rows)
        try:
            (ctr,), run_s = _timed(self._run, [request])
        except Exception as error:
            future.set_exception(error)
            return
        self._cost.ran(_scored(ctr), run_s)
        future.set_result(Answer(ctr, 0.0, run_s))

    def check_room(self, rows: int, left_s: float) -> None:
        """Raises Overloaded when so many rows have no place, or would not be scored in the time that is left."""
        if self._free:  # nobody is before it; and a cost that was measured too high is only corrected by runs
            return
        if self._queued_rows + rows > self._max_queued_rows:
            raise Overloaded(f"{self._queued_rows} candidates are waiting already: try again later, or send fewer")
        takes_s = self._wait_s() + self._cost.seconds(rows)
        if takes_s > left_s:
            raise Overloaded(f"An answer would take about {takes_s * 1e3:.0f} ms: try again later, or allow more time")

    def _wait_s(self) -> float:
        """Until all that runs or waits now is done, as far as the cost of runs is known."""
        now = time.perf_counter()
        running_s = sum(max(0.0, until_s - now) for until_s in self._busy_until_s.values())
        whole, rest = divmod(self._queued_rows, self._max_rows)
        waiting_s = whole * self._cost.seconds(self._max_rows) + (self._cost.seconds(rest) if rest else 0.0)
        return (running_s + waiting_s) / self._slots

    async def close(self) -> None:
        """Waits for what runs, and fails the rest with NotReady."""
        self._closed = True
        for part in self._queue:
            _fail(part.request, NotReady("The server is shutting down: ask another one"))
        if self._busy_until_s:
            await asyncio.wait(self._busy_until_s.keys())
        # One turn of the loop, in which the waiting callers get their answers.
        await asyncio.sleep(0)
        self._threads.shutdown()

    def _fill(self) -> None:
        while self._free and (batch := self._take()):
            self._free -= 1
            self._start(batch)

    def _take(self) -> list[_Part]:
        """The oldest parts that somebody still waits for, up to max_rows."""
        batch: list[_Part] = []
        rows, now = 0, time.perf_counter()
        while self._queue:
            part = self._queue[0]
            if part.queued and rows + part.rows > self._max_rows:
                break
            self._queue.popleft()
            if part.queued and self._is_wanted(part, now):
                batch.append(part)
                rows += part.rows
        return batch

    def _is_wanted(self, part: _Part, now: float) -> bool:
        self._unqueue(part)
        if part.request.deadline_s <= now:
            _fail(part.request, DeadlineExceeded("The time ran out before the model was free: allow more of it"))
        # A client that hung up has cancelled its future: do not score its rows.
        return not part.request.future.done()

    def _start(self, batch: list[_Part]) -> None:
        rows = sum(part.rows for part in batch)
        self._metrics.batch_rows.observe(rows)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, _timed, self._run, [part.input for part in batch])
        self._busy_until_s[running] = time.perf_counter() + self._cost.seconds(rows)
        running.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: list[_Part], done: "asyncio.Future[_Ran]") -> None:
        del self._busy_until_s[done]
        self._free += 1
        self._fill()  # first of all, so that the model does not wait for the answers
        error = done.exception()
        if error is not None:
            for part in batch:
                _fail(part.request, error)
            return
        answers, run_s = done.result()
        self._cost.ran(sum(map(_scored, answers)), run_s)
        for part, ctr in zip(batch, answers, strict=True):
            part.ctr = ctr
            part.request.run_s += run_s
            _answer_when_complete(part.request)

    def _drop(self, request: Waiting) -> None:
        """Frees the places of a request that is over: a queue full of dead rows would refuse live ones."""
        for part in request.parts:
            if part.queued:
                self._unqueue(part)
        request.parts.clear()  # no cycle of parts and request for the garbage collector

    def _unqueue(self, part: _Part) -> None:
        part.queued = False
        self._count_queued(-part.rows)

    def _count_queued(self, rows: int) -> None:
        self._queued_rows += rows
        self._metrics.queued_rows.set(self._queued_rows)


def _split(request: ModelInput, max_rows: int) -> list[ModelInput]:
    rows = len(request.candidate_ids)
    if rows <= max_rows:
        return [request]
    cuts = [slice(start, start + max_rows) for start in range(0, rows, max_rows)]
    return [
        replace(request, candidate_ids=request.candidate_ids[cut], candidate_values=request.candidate_values[cut])
        for cut in cuts
    ]


def _scored(ctr: Ctr) -> int:
    """The rows that the whole model saw: a cascade's others cost next to nothing, and a full request has none."""
    return int(np.count_nonzero(~np.isnan(ctr)))


def _fail(request: Waiting, error: BaseException) -> None:
    if not request.future.done():
        request.future.set_exception(error)


def _answer_when_complete(request: Waiting) -> None:
    done = [part.ctr for part in request.parts if part.ctr is not None]
    if request.future.done() or len(done) < len(request.parts):
        return
    ctr = done[0] if len(done) == 1 else np.concatenate(done)
    waited_s = time.perf_counter() - request.submitted_s - request.run_s
    request.future.set_result(Answer(ctr, max(0.0, waited_s), request.run_s))


def _timed(run: Run, batch: Sequence[ModelInput]) -> _Ran:
    """Timed where the model runs: the event loop may hear of the end much later."""
    start_s = time.perf_counter()
    ctr = run(batch)
    return ctr, time.perf_counter() - start_s
