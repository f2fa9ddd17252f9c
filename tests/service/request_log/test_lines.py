"""The lines of the request log: what the server logs of a request, and what it does not."""

import asyncio
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import open_bundle
from contract.calibration import Calibration, Calibrator
from contract.request_log import FORMAT, LoggedCandidate, LogLine
from contract.score_ids import is_logged, is_score_id, score_time_s
from service.errors import ClientGone, Overloaded
from service.request_log.lines import chosen
from service.settings import SettingsError
from tests.support.app import StartApp, a_request, app_of
from tests.support.examples import examples
from tests.support.request_log import log_of, read_log
from tests.support.small_bundle import FIELDS

A_SALT = "a salt of sixteen or more bytes"
COOKIE = {"user": "u1", "age": 31, "cookie": "not a field of the model"}


def the_candidates(line: LogLine) -> list[LoggedCandidate]:
    assert isinstance(line.candidates, list)
    return line.candidates


def the_context(line: LogLine) -> dict[str, Any]:
    assert isinstance(line.context, dict)
    return line.context


async def test_a_line_has_the_inputs_and_the_scores_of_the_model(start: StartApp, tmp_path: Path, bundle: Path) -> None:
    async with start(request_log=tmp_path / "log", request_log_sample=1.0) as client:
        answer = (await client.post("/v1/score", json=a_request(context=COOKIE, unit=17.0))).json()
    (line,) = read_log(tmp_path / "log")
    assert (line.format, line.outcome, line.unit, line.candidate_count) == (FORMAT, "scored", "17", 2)
    assert (line.score_id, line.request_id) == (answer["score_id"], answer["request_id"])
    assert line.version == open_bundle(bundle).manifest.version
    assert line.context == {"user": "u1", "age": 31}
    logged = the_candidates(line)
    assert [(candidate.candidate, candidate.id, candidate.inclusion) for candidate in logged] == [
        (0, "ad-7", 1.0),
        (1, 8, 1.0),
    ]
    assert [candidate.ctr for candidate in logged] == [score["ctr"] for score in answer["scores"]]
    assert (line.degraded, line.hashed) == ([], [])


async def test_the_logit_is_what_the_model_computed_even_if_the_ctr_is_rounded_to_1(
    start: StartApp, tmp_path: Path
) -> None:
    """With the shift below, the ctr differs from 1 by less than a float64 can represent."""
    steep = Calibration(scale=1.25, shift=60.0)
    async with start(request_log=tmp_path / "log", request_log_sample=1.0) as client:
        engine = app_of(client).state.serving.model.engine
        usual = engine.calibrator
        engine.calibrator = Calibrator(steep, None, FIELDS)
        assert (await client.post("/v1/score", json=a_request())).status_code == 200
    (line,) = read_log(tmp_path / "log")
    logits = [candidate.logit for candidate in the_candidates(line)]
    assert [candidate.ctr for candidate in the_candidates(line)] == [1.0, 1.0]
    raw = np.array(logits, np.float64)
    assert (raw.astype(np.float32) == raw).all()  # exactly the model's float32
    assert len(set(logits)) == 2
    (unchanged,) = await log_of(start, tmp_path / "same", [a_request()])
    assert [candidate.logit for candidate in the_candidates(unchanged)] == logits
    ctr = [candidate.ctr for candidate in the_candidates(unchanged)]
    np.testing.assert_allclose(
        np.array(ctr, float), usual.ctr(raw, np.zeros((1, 2), np.int64), np.zeros(2, np.int64)), rtol=1e-15
    )


async def test_a_candidate_without_a_score_has_neither_ctr_nor_logit(start: StartApp, tmp_path: Path) -> None:
    bad = [{"id": 3, "features": {"item": [1]}}, {"id": [], "features": {}}]
    request = a_request(candidates=[bad[0], *a_request()["candidates"], bad[1]], on_bad_candidate="skip")
    nothing = a_request(candidates=bad, on_bad_candidate="skip")
    lines = await log_of(start, tmp_path / "log", [request, nothing])
    logged = the_candidates(lines[0])
    assert [(candidate.candidate, candidate.id) for candidate in logged] == [(0, 3), (1, "ad-7"), (2, 8), (3, None)]
    assert [candidate.ctr is None for candidate in logged] == [True, False, False, True]
    assert [candidate.logit is None for candidate in logged] == [True, False, False, True]
    assert [candidate.ctr for candidate in the_candidates(lines[1])] == [None, None]


async def test_all_fields_are_logged_on_request(start: StartApp, tmp_path: Path) -> None:
    candidates = [{"id": 1, "features": {"item": 4082, "new": {"nested": [1, None, 1e300]}, "big": 10**30}}]
    request = a_request(context=COOKIE, candidates=candidates)
    (line,) = await log_of(start, tmp_path / "log", [request], request_log_fields="all")
    assert line.context == COOKIE
    assert the_candidates(line)[0].features == candidates[0]["features"]


async def test_a_field_that_the_model_does_not_know_can_be_hashed(
    start: StartApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "salt").write_text(A_SALT)
    hashing = {"request_log_hash": "cookie,user", "request_log_salt_file": tmp_path / "salt"}
    (line,) = await log_of(start, tmp_path / "log", [a_request(context=COOKIE)], request_log_fields="all", **hashing)
    assert the_context(line)["cookie"].startswith("h:")
    assert "the model has no field 'cookie'" in caplog.text
    with pytest.raises(SettingsError, match="the model has no field 'cookie'"):
        await log_of(start, tmp_path / "known", [], **hashing)


async def test_equal_values_have_equal_hashes_and_are_not_in_the_log(start: StartApp, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text(A_SALT)
    requests = [a_request(context={"user": user}) for user in ("u1", "u1", "u2", None)]
    hashing = {"request_log_hash": "user,item", "request_log_salt_file": salt}
    lines = await log_of(start, tmp_path / "log", requests, **hashing)
    users = [the_context(line)["user"] for line in lines]
    assert users[0] == users[1] != users[2]
    assert users[3] is None
    assert users[0].startswith("h:")
    assert len(users[0]) == 34
    assert lines[0].hashed == ["user", "item"]
    assert all(the_candidates(line)[0].features["item"].startswith("h:") for line in lines)
    raw = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert '"u1"' not in raw
    assert '"4082"' not in raw  # A hash may contain these digits, so search for them with quotes or a colon.
    assert ":4082" not in raw
    salt.write_text(A_SALT + "another")
    other = await log_of(start, tmp_path / "other", requests[:1], **hashing)
    assert the_context(other[0])["user"] != users[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_log_hash": "usr"}, "the model has no field 'usr'"),
        ({"salt": "short"}, "has 5 bytes"),
        ({"folder": "/proc/nothing"}, "is not writable"),
    ],
)
async def test_the_server_does_not_start_with_an_invalid_log(
    start: StartApp, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    salt = tmp_path / "salt"
    salt.write_text(changes.get("salt", A_SALT))
    fields = changes.get("request_log_hash", "user")
    folder = Path(changes.get("folder", str(tmp_path / "log")))
    with pytest.raises(SettingsError, match=message):
        async with start(request_log=folder, request_log_hash=fields, request_log_salt_file=salt):
            pass


async def test_all_requests_of_a_unit_are_logged_or_none_and_the_score_id_says_so(
    start: StartApp, tmp_path: Path
) -> None:
    answers: dict[str, str] = {}
    async with start(request_log=tmp_path, request_log_sample=0.3) as client:
        for number in range(120):
            answer = await client.post("/v1/score", json=a_request(unit=f"u{number % 40}"))
            answers[answer.json()["score_id"]] = f"u{number % 40}"
        count = f"ctr_request_log_lines_total {sum(map(is_logged, answers))}.0"
        async with asyncio.timeout(30):
            while count not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.05)
    logged = {line.score_id: line.unit for line in read_log(tmp_path)}
    assert logged == {score_id: unit for score_id, unit in answers.items() if is_logged(score_id)}
    assert set(Counter(logged.values()).values()) == {3}
    assert 3 <= len(set(logged.values())) <= 25


async def test_without_a_log_score_ids_say_that_nothing_is_logged(client: httpx.AsyncClient) -> None:
    answers = [
        (await client.post("/v1/score", json=a_request(unit="u1"), headers={"x-request-id": "same"})).json()
        for _ in range(20)
    ]
    ids = {answer["score_id"] for answer in answers}
    assert len(ids) == 20
    assert all(is_score_id(score_id) and not is_logged(score_id) for score_id in ids)
    assert {answer["request_id"] for answer in answers} == {"same"}


async def test_the_best_candidates_and_one_of_the_others_are_logged(start: StartApp, tmp_path: Path) -> None:
    items: list[Any] = [[] if number == 5 else 4000 + number for number in range(12)]
    candidates = [{"id": number, "features": {"item": item, "price": number}} for number, item in enumerate(items)]
    request = a_request(candidates=candidates, on_bad_candidate="skip")
    async with start(request_log=tmp_path, request_log_sample=1.0, request_log_candidates=3) as client:
        answers = [(await client.post("/v1/score", json=request)).json() for _ in range(60)]
        best = [(await client.post("/v1/score", json=request | {"top_k": 3})).json() for _ in range(2)]
    drawn = set()
    for answer, line in zip([*answers, *best], read_log(tmp_path), strict=True):
        logged = the_candidates(line)
        assert line.candidate_count == 12
        assert [candidate.candidate for candidate in logged] == sorted(candidate.candidate for candidate in logged)
        assert Counter(candidate.inclusion for candidate in logged) == {1.0: 3, 1 / 8: 1}
        certain = {candidate.candidate for candidate in logged if candidate.inclusion == 1}
        scores = [score for score in answer["scores"] if score["ctr"] is not None]
        assert min(answer_ctr(scores, row) for row in certain) >= sorted(score["ctr"] for score in scores)[-3]
        if len(scores) == 3:
            assert certain == {score["candidate"] for score in scores}
        drawn |= {candidate.candidate for candidate in logged} - certain
    assert len(drawn) > 3
    assert 5 not in drawn


def answer_ctr(scores: list[dict[str, Any]], row: int) -> float:
    return next(float(score["ctr"]) for score in scores if score["candidate"] == row)


@settings(max_examples=examples(100))
@given(st.integers(0, 9), st.sets(st.integers(0, 20)))
def test_every_scored_candidate_has_its_probability_of_being_logged(count: int, rows: set[int]) -> None:
    scored = sorted(rows)
    best = scored[::-1][:count]
    inclusion = chosen(best, scored)
    others = len(scored) - len(best)
    assert list(inclusion) == sorted(inclusion)
    assert len(inclusion) == len(best) + (others > 0)
    assert {row for row, probability in inclusion.items() if probability == 1} >= set(best)
    assert math.isclose(sum(1 / probability for probability in inclusion.values()), len(scored))


async def test_a_request_that_fails_after_decoding_leaves_its_outcome(start: StartApp, tmp_path: Path) -> None:
    async with start(request_log=tmp_path, request_log_sample=1.0) as client:
        model = app_of(client).state.serving.model

        async def status(**changes: Any) -> int:
            return (await client.post("/v1/score", json=a_request(unit="u1", **changes))).status_code

        assert await status(context={"user": []}) == 422
        assert await status(cascade=True) == 422

        async def gone(*_: Any) -> None:
            raise ClientGone("The client disconnected.")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.scoring.score.wait_for_answer", gone)
            assert await status() == 499
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.engine, "_infer", lambda feed: np.array([np.nan, 0.0], np.float32))
            assert await status() == 500
        model.scorer.batcher._free = 0
        model.scorer.batcher._queued_rows = 10**9
        # The first check of the capacity comes before the body is read, and leaves no line.
        assert await status() == 429
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.scoring.score.Batcher.check_capacity", refuse_two)
            assert await status() == 429
        model.scorer.batcher._queued_rows = 0
        assert await status(timeout_ms=20) == 504
        model.scorer.batcher._free = 1
    lines = read_log(tmp_path)
    outcomes = ["bad_request", "bad_request", "client_gone", "failed", "overloaded", "deadline_exceeded"]
    assert [line.outcome for line in lines] == outcomes
    assert all(is_logged(line.score_id) and line.unit == "u1" and line.candidate_count == 2 for line in lines)
    raw = next(tmp_path.glob("*.ndjson")).read_bytes()
    assert b"context" not in raw
    assert b"candidates" not in raw


def refuse_two(batcher: Any, rows: int, left_s: float) -> None:
    if rows == 2:
        raise Overloaded("2 candidates are too many.")


async def test_a_cancelled_request_leaves_its_outcome(start: StartApp, tmp_path: Path) -> None:
    async with start(request_log=tmp_path, request_log_sample=1.0) as client:
        batcher = app_of(client).state.serving.model.scorer.batcher
        batcher._free = 0
        waiting = asyncio.create_task(client.post("/v1/score", json=a_request()))
        while not batcher._queued_rows:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        batcher._free = 1
    assert [line.outcome for line in read_log(tmp_path)] == ["client_gone"]


async def test_nothing_is_logged_for_a_request_that_cannot_be_decoded(start: StartApp, tmp_path: Path) -> None:
    async with start(request_log=tmp_path, request_log_sample=1.0) as client:
        for body in (b"{", b'{"context": {}, "candidates": []}', b'{"context": {}}'):
            answer = await client.post("/v1/score", content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (400, 422)
        assert (await client.post("/v1/score", json=a_request(unit=[1]))).status_code == 422
    assert read_log(tmp_path) == []


async def test_score_ids_have_the_time_of_the_request(client: httpx.AsyncClient) -> None:
    before_s = time.time()
    score_id = (await client.post("/v1/score", json=a_request())).json()["score_id"]
    assert before_s - 0.001 <= score_time_s(score_id) <= time.time()
