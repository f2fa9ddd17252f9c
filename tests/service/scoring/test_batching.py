"""Batching, with a model that waits until the test lets it continue."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import current_thread

import numpy as np
import pytest

from contract.encode import ModelInput
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.runtime.engine import Scored
from service.scoring.batching import Answer, Batcher
from service.scoring.run_cost import RunCost
from service.telemetry.metrics import Metrics
from tests.support.batching import BROKEN, WaitingModel, ctr, per_mille, rows, soon


@asynccontextmanager
async def batching(
    model: Callable[[Sequence[ModelInput]], list[Scored]], slots: int = 1, max_rows: int = 8, max_queued_rows: int = 16
) -> AsyncIterator[Batcher]:
    metrics = Metrics()
    batcher = Batcher(model, metrics, slots=slots, max_rows=max_rows, max_queued_rows=max_queued_rows)
    yield batcher
    await batcher.close()


@asynccontextmanager
async def busy(max_rows: int = 8, max_queued_rows: int = 16) -> AsyncIterator[tuple[Batcher, WaitingModel]]:
    """Yield a batcher whose only slot is occupied by a request with one row."""
    model = WaitingModel()
    async with batching(model, 1, max_rows, max_queued_rows) as batcher:
        first = batcher.submit(rows(1), soon())
        try:
            yield batcher, model
        finally:
            model.go.set()
            await asyncio.wait({first})


@pytest.mark.timing
async def test_a_lone_request_runs_immediately() -> None:
    model = WaitingModel()
    model.go.set()
    async with batching(model) as batcher:
        answers = [await batcher.submit(rows(3, 4), soon()) for _ in range(5)]
    assert [ctr(answer) for answer in answers] == [[3, 4]] * 5
    assert min(answer.queue_s for answer in answers) < 0.05


@asynccontextmanager
async def inline(model: Callable[[Sequence[ModelInput]], list[Scored]], slots: int = 1) -> AsyncIterator[Batcher]:
    """Yield a batcher for which runs of fewer than five rows are short enough for the event loop."""
    batcher = Batcher(
        model, Metrics(), slots=slots, max_rows=8, max_queued_rows=16, cost=RunCost(0.0, 0.01), inline_s=0.05
    )
    yield batcher
    await batcher.close()


async def test_a_short_run_is_done_when_submit_returns_and_uses_no_thread() -> None:
    threads = []

    def model(batch: Sequence[ModelInput]) -> list[Scored]:
        threads.append(current_thread())
        return per_mille(batch)

    async with inline(model) as batcher:
        short = batcher.submit(rows(3, 4), soon())
        assert short.done()
        assert ctr(short.result()) == [3, 4]
        long = batcher.submit(rows(*range(8)), soon())
        assert not long.done()
        assert ctr(await long) == list(range(8))
    assert threads[0] is current_thread()
    assert threads[1] is not current_thread()


async def test_a_short_run_that_fails_does_not_affect_the_next_request() -> None:
    def model(batch: Sequence[ModelInput]) -> list[Scored]:
        if batch[0].candidate_ids[0, 0] == 13:
            raise RuntimeError("unlucky")
        return per_mille(batch)

    async with inline(model) as batcher:
        with pytest.raises(RuntimeError, match="unlucky"):
            await batcher.submit(rows(13), soon())
        assert ctr(await batcher.submit(rows(14), soon())) == [14]


async def test_rows_that_a_cascade_rules_out_do_not_lower_the_estimated_cost() -> None:
    """The first level rules out all rows except one, so a run takes as long as a run of one row."""

    def model(batch: Sequence[ModelInput]) -> list[Scored]:
        time.sleep(0.01)
        return [Scored(*[np.where(request.candidate_ids[:, 0] == 0, 0.5, np.nan)] * 2) for request in batch]

    cost = RunCost(0.0, 0.01)
    batcher = Batcher(model, Metrics(), slots=1, max_rows=8, max_queued_rows=16, cost=cost, inline_s=0.05)
    for _ in range(20):
        await batcher.submit(rows(*range(8)), soon())  # This runs in a thread.
        await batcher.submit(rows(*range(4)), soon())  # This runs in the event loop.
    await batcher.close()
    assert cost.seconds(8) > 0.07


async def test_a_short_run_waits_for_a_long_one_that_is_running() -> None:
    model = WaitingModel()
    async with inline(model) as batcher:
        long = batcher.submit(rows(*range(8)), soon())
        short = batcher.submit(rows(1), soon())
        assert not short.done()
        model.go.set()
        assert ctr(await short) == [1]
        assert ctr(await long) == list(range(8))


async def test_requests_are_merged_only_while_the_slots_are_busy() -> None:
    async with busy() as (batcher, model):
        waiting = [batcher.submit(rows(i, i + 1), soon()) for i in (10, 20, 30)]
        model.go.set()
        answers = await asyncio.gather(*waiting)
    assert [ctr(answer) for answer in answers] == [[10, 11], [20, 21], [30, 31]]
    assert model.batches == [[1], [2, 2, 2]]


async def test_batch_sizes_are_counted_in_rows_and_not_in_requests() -> None:
    async with busy(max_rows=4) as (batcher, model):
        waiting = [batcher.submit(rows(*range(size)), soon()) for size in (3, 1, 2, 1, 2)]
        model.go.set()
        await asyncio.gather(*waiting)
    assert model.batches == [[1], [3, 1], [2, 1], [2]]


async def test_every_free_slot_runs_a_request() -> None:
    model = WaitingModel()
    async with batching(model, slots=2) as batcher:
        futures = [batcher.submit(rows(i), soon()) for i in (1, 2, 3, 4)]
        while len(model.batches) < 2:
            await asyncio.sleep(0.001)
        assert model.batches == [[1], [1]]
        model.go.set()
        await asyncio.gather(*futures)
    assert model.batches[2:] == [[1, 1]]


async def test_an_oversize_request_is_split_and_its_scores_are_joined() -> None:
    model = WaitingModel()
    model.go.set()
    async with batching(model, max_rows=4) as batcher:
        answer = await batcher.submit(rows(*range(11)), soon())
    assert ctr(answer) == list(range(11))
    assert model.batches == [[4], [4], [3]]


async def test_the_last_chunk_of_an_oversize_request_shares_its_run() -> None:
    async with busy(max_rows=4) as (batcher, model):
        waiting = [batcher.submit(rows(*range(6)), soon()), batcher.submit(rows(7, 8), soon())]
        model.go.set()
        answers = await asyncio.gather(*waiting)
    assert [ctr(answer) for answer in answers] == [[0, 1, 2, 3, 4, 5], [7, 8]]
    assert model.batches == [[1], [4], [2, 2]]


async def test_client_disconnect_does_not_affect_other_requests_in_the_batch() -> None:
    model = WaitingModel()
    async with batching(model) as batcher:
        blocker = batcher.submit(rows(1), soon())
        four = [batcher.submit(rows(i), soon()) for i in (10, 20, 30, 40)]
        model.go.set()
        await blocker
        model.go.clear()
        while len(model.batches) < 2:
            await asyncio.sleep(0.001)
        four[1].cancel()  # The model is scoring all four.
        model.go.set()
        answers = await asyncio.wait_for(asyncio.gather(four[0], four[2], four[3]), 5)
        assert [ctr(answer) for answer in answers] == [[10], [30], [40]]
        assert ctr(await batcher.submit(rows(50), soon())) == [50]


async def test_rows_of_a_cancelled_request_are_dropped_before_the_run() -> None:
    async with busy() as (batcher, model):
        waiting = [batcher.submit(rows(i), soon()) for i in (10, 20, 30)]
        waiting[1].cancel()
        model.go.set()
        answers = await asyncio.gather(waiting[0], waiting[2])
    assert [ctr(answer) for answer in answers] == [[10], [30]]
    assert model.batches == [[1], [1, 1]]


async def test_a_failing_batch_fails_only_its_own_requests() -> None:
    async with busy(max_rows=2) as (batcher, model):
        waiting = [batcher.submit(rows(i), soon()) for i in (10, BROKEN, 20, 30)]
        model.go.set()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(result) for result in results] == [ArithmeticError, ArithmeticError, Answer, Answer]


async def test_the_rest_of_an_oversize_request_is_dropped_when_a_chunk_fails() -> None:
    model = WaitingModel()
    model.go.set()
    async with batching(model, max_rows=2) as batcher:
        with pytest.raises(ArithmeticError):
            await batcher.submit(rows(BROKEN, 2, 3, 4, 5, 6, 7, 8), soon())
        assert ctr(await batcher.submit(rows(9), soon())) == [9]
    assert len(model.batches) <= 3


async def test_an_expired_request_is_dropped_and_the_others_are_answered() -> None:
    async with busy() as (batcher, model):
        waiting = [batcher.submit(rows(i), soon(s)) for i, s in ((10, 30), (20, 0.01), (30, 30))]
        await asyncio.sleep(0.02)
        model.go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Answer, DeadlineExceeded, Answer]
    assert model.batches == [[1], [1, 1]]


async def test_a_full_queue_refuses_requests_until_a_queued_one_is_cancelled() -> None:
    async with busy(max_queued_rows=6) as (batcher, model):
        waiting = batcher.submit(rows(*range(6)), soon())
        with pytest.raises(Overloaded) as refused:
            batcher.submit(rows(7), soon())
        assert refused.value.headers() == {"retry-after": "1"}
        waiting.cancel()
        await asyncio.sleep(0)
        again = batcher.submit(rows(7), soon())
        model.go.set()
        assert ctr(await again) == [7]


async def test_a_request_that_cannot_be_scored_in_time_is_refused_immediately() -> None:
    def slow(batch: Sequence[ModelInput]) -> list[Scored]:
        time.sleep(0.05)
        return per_mille(batch)

    async with batching(slow, max_rows=2, max_queued_rows=100) as batcher:
        for _ in range(10):
            await batcher.submit(rows(1), soon())
        accepted = [batcher.submit(rows(i, i), soon()) for i in range(5)]
        with pytest.raises(Overloaded, match="allow more time"):
            batcher.submit(rows(6), soon(0.1))
        accepted.append(batcher.submit(rows(6), soon(10)))
        await asyncio.gather(*accepted)
        # A free slot accepts every request, so that a wrong estimate is corrected.
        assert ctr(await batcher.submit(rows(7), soon(0.02))) == [7]


async def test_close_waits_for_the_running_batch_and_fails_queued_requests() -> None:
    model = WaitingModel()
    async with batching(model) as batcher:
        running, waiting = batcher.submit(rows(1), soon()), batcher.submit(rows(2), soon())
        asyncio.get_running_loop().call_later(0.05, model.go.set)
        await batcher.close()
        assert ctr(await running) == [1]
        with pytest.raises(NotReady):
            await waiting
        with pytest.raises(NotReady):
            batcher.submit(rows(3), soon())
