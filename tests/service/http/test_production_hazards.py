"""What other servers have fallen into: files opened on the way, a collector that stops all, latency that grows."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import pytest

from service.runtime.onnx_session import _options
from tests.support.app import StartApp, a_request, problem
from tests.support.paths import DEMO

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


@contextmanager
def noted() -> Iterator[list[str]]:
    """The files that this process opens meanwhile."""
    global _opened
    files: list[str] = []
    _opened = files
    try:
        yield files
    finally:
        _opened = None


sys.addaudithook(_note)  # for the life of this process: there is no way to take it away


async def test_a_request_opens_no_file(start: StartApp) -> None:
    async with start() as client:
        await client.post("/v1/score", json=a_request())
        with noted() as files:
            for user in ("u1", "u2", "nobody"):
                assert (await client.post("/v1/score", json=a_request(context={"user": user}))).status_code == 200
    assert files == []


async def test_the_garbage_collector_is_spared_what_lives_as_long_as_the_process(start: StartApp) -> None:
    gc.unfreeze()
    async with start():
        assert gc.get_freeze_count() > 10_000
    gc.unfreeze()


@pytest.mark.timing
async def test_the_thousandth_request_is_as_quick_as_the_first(start: StartApp) -> None:
    async with start(bundle=DEMO) as client:
        taken = []
        for number in range(1200):
            start_s = time.perf_counter()
            answer = await client.post("/v1/score", json=a_request(context={"user": f"u{number % 50}"}))
            taken.append(time.perf_counter() - start_s)
            assert answer.status_code == 200
    assert median(taken[-300:]) < 2 * median(taken[100:400])


def test_onnxruntime_has_the_threads_that_it_is_told_and_they_do_not_spin() -> None:
    options = _options(onnxruntime, threads=1)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


async def test_the_documentation_can_be_turned_off(start: StartApp) -> None:
    async with start(docs=False) as client:
        for path in ("/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/v1/score", json=a_request())).status_code == 200


async def test_a_value_of_too_many_characters_is_refused_and_named(start: StartApp) -> None:
    long = "x" * 21
    async with start(max_token_chars=20) as client:
        answer = await client.post("/v1/score", json=a_request(context={"user": long}))
        problem(answer, 422, "$.context.user", "21 characters, this server takes 20")
        candidates = [*a_request()["candidates"], {"id": 3, "features": {"item": long}}]
        answer = await client.post("/v1/score", json=a_request(candidates=candidates))
        problem(answer, 422, "$.candidates[2].features.item", "21 characters")
        answer = await client.post("/v1/score", json=a_request(candidates=candidates, on_bad_candidate="skip"))
        assert [score["ctr"] is None for score in answer.json()["scores"]] == [False, False, True]
        # One that the model does not read may be as long as it likes.
        assert (await client.post("/v1/score", json=a_request(context={"cookie": long}))).status_code == 200


async def test_an_object_of_too_many_names_is_refused(start: StartApp) -> None:
    async with start(max_fields=5) as client:
        answer = await client.post("/v1/score", json=a_request(context={f"n{n}": n for n in range(6)}))
        problem(answer, 422, "$.context", "6 fields, this server takes 5")


async def test_no_answer_names_a_path(start: StartApp, bundle: Path) -> None:
    async with start() as client:
        for path in ("/v1/model", "/readyz", "/metrics", "/openapi.json", "/v1/nothing"):
            assert str(bundle.parent) not in (await client.get(path)).text


@pytest.mark.timing
@pytest.mark.parametrize("budget_ms", [1, 2, 3, 5, 8])
async def test_a_deadline_counts_all_of_the_way(start: StartApp, budget_ms: int) -> None:
    """An answer within it, or 504; and never a 200 that is much too late."""
    async with start(bundle=DEMO) as client:
        many = [{"id": n, "features": {"ad": f"ad-{n}"}} for n in range(500)]
        await client.post("/v1/score", json={"context": {}, "candidates": many, "timeout_ms": 5000})
        answer = await client.post("/v1/score", json={"context": {}, "candidates": many, "timeout_ms": budget_ms})
        assert answer.status_code in (200, 429, 504)
        if answer.status_code == 200:
            phases = [float(part.split("dur=")[1]) for part in answer.headers["server-timing"].split(", ")]
            assert sum(phases) < budget_ms + 20
