"""In any order of arrival, failure and cancellation, every caller gets either its own scores or one expected error."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.encode import ModelInput
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.runtime.engine import Scored
from service.scoring.batching import Answer, Batcher
from service.telemetry.metrics import Metrics
from tests.support.batching import BROKEN, ctr, per_mille, rows, soon
from tests.support.examples import examples

MAX_ROWS = 8
EXPECTED = (DeadlineExceeded, NotReady, Overloaded, ArithmeticError)


@dataclass(frozen=True)
class Caller:
    """A request, and when it is submitted and cancelled.

    Attributes:
        rows: Number of candidates.
        comes_after: Iterations of the event loop before it is submitted.
        leaves_after: Iterations of the event loop before it is cancelled. None if it is not cancelled.
        in_ms: Deadline, in milliseconds after submission.
        breaks: Whether the model fails for this request.
    """

    rows: int
    comes_after: int
    leaves_after: int | None
    in_ms: float
    breaks: bool


callers = st.lists(
    st.builds(
        Caller,
        rows=st.integers(1, 30),
        comes_after=st.integers(0, 20),
        leaves_after=st.none() | st.integers(0, 20),
        in_ms=st.sampled_from([0.0, 0.5, 5.0, 30_000.0, 30_000.0]),
        breaks=st.sampled_from([False] * 9 + [True]),
    ),
    max_size=25,
)


class Model:
    """A model whose score for a row is its id / 1000. It records its batches and how many run concurrently."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = self.max_running = 0
        self._lock = threading.Lock()

    def __call__(self, batch: Sequence[ModelInput]) -> list[Scored]:
        with self._lock:
            self.running += 1
            self.max_running = max(self.max_running, self.running)
            self.batches.append([len(request.candidate_ids) for request in batch])
        try:
            if any(BROKEN in request.candidate_ids for request in batch):
                raise ArithmeticError("the model failed")
            return per_mille(batch)
        finally:
            with self._lock:
                self.running -= 1


async def ask(batcher: Batcher, number: int, caller: Caller) -> None:
    """Submit a request. Raise AssertionError if the answer is wrong, and pass on unexpected errors."""
    for _ in range(caller.comes_after):
        await asyncio.sleep(0)
    ids = [1000 * (number + 1) + row for row in range(caller.rows)]
    if caller.breaks:
        ids[-1] = BROKEN
    try:
        future = batcher.submit(rows(*ids), soon(caller.in_ms / 1e3))
    except (Overloaded, NotReady):
        return
    if caller.leaves_after is not None:
        for _ in range(caller.leaves_after):
            await asyncio.sleep(0)
        future.cancel()
    try:
        answer: Answer = await asyncio.wait_for(future, 20)
    except EXPECTED:
        return
    except asyncio.CancelledError:
        assert caller.leaves_after is not None
        return
    assert not caller.breaks
    assert ctr(answer) == ids


@settings(max_examples=examples(60), deadline=None)
@given(callers, st.integers(1, 3), st.integers(10, 60), st.booleans())
def test_every_caller_gets_its_own_rows_or_one_expected_error(
    asking: list[Caller], slots: int, max_queued_rows: int, closes: bool
) -> None:
    model = Model()

    async def all_of_them() -> None:
        batcher = Batcher(model, Metrics(), slots=slots, max_rows=MAX_ROWS, max_queued_rows=max_queued_rows)
        tasks = [asyncio.create_task(ask(batcher, number, caller)) for number, caller in enumerate(asking)]
        if closes:
            for _ in range(10):
                await asyncio.sleep(0)
            await batcher.close()
        await asyncio.gather(*tasks)
        assert batcher._queued_rows == 0
        if not closes:
            await asyncio.wait_for(batcher.submit(rows(7), soon()), 20)  # The batcher still works.
            await batcher.close()

    asyncio.run(all_of_them())
    assert all(sum(batch) <= MAX_ROWS for batch in model.batches)
    assert model.max_running <= slots


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(1, 3), st.integers(1, 40))
def test_a_lone_request_never_waits_for_others(slots: int, number_of_rows: int) -> None:
    model = Model()

    async def alone() -> None:
        batcher = Batcher(model, Metrics(), slots=slots, max_rows=MAX_ROWS, max_queued_rows=1000)
        future = batcher.submit(rows(*range(number_of_rows)), soon())
        # The request already occupies all slots that it can use. No timer has to fire first.
        assert batcher._free == max(0, slots - -(-number_of_rows // MAX_ROWS))
        assert ctr(await asyncio.wait_for(future, 20)) == list(range(number_of_rows))
        await batcher.close()

    asyncio.run(alone())
