"""The open-loop load against servers that stall, close connections, give wrong answers, or do not answer.

Each failure is reported differently.
"""

import asyncio
import itertools
import signal
import time

import numpy as np
import pytest

from loadtest.openloop import records as read
from loadtest.openloop.__main__ import main
from loadtest.openloop.check import what_is_wrong
from loadtest.openloop.hostile import Hostile
from loadtest.openloop.load import Load, begin, find_max, run, summary
from loadtest.openloop.message import Prepared, message
from tests.support.http_servers import always, answer, listening, read_request
from tests.support.paths import DEMO

REQUEST = Prepared(message(b"{}"), ["a", 7], {"v1": [0.25, 0.5], "v2": [0.1, 0.2]})
SCORES = b'{"version":"%b","scores":[{"id":"a","ctr":%b},{"id":7,"ctr":0.5}],"degraded":[]}'
RIGHT = SCORES % (b"v1", b"0.25")


def load(url: str, rate: float = 100, seconds: float = 1.0, **changes: object) -> Load:
    return Load(url, rate, seconds, **{"timeout_ms": 2000, "check": 1.0, **changes})  # type: ignore[arg-type]


def test_every_request_is_sent_once_and_answered() -> None:
    with listening(always(answer(RIGHT))) as url:
        records = run(load(url), [REQUEST]).records
    assert 50 < len(records) < 200
    assert (records["status"] == 200).all()
    assert records["checked"].all()
    assert not records["wrong"].any()
    assert (np.diff(records["intended_s"]) >= 0).all()


def test_arrivals_are_a_poisson_stream() -> None:
    with listening(always(answer(RIGHT))) as url:
        gaps_s = np.diff(run(load(url, rate=500, seconds=2), [REQUEST]).records["intended_s"])
    assert gaps_s.mean() == pytest.approx(1 / 500, rel=0.15)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.2)  # 0 for an even stream


def test_the_bursts_of_several_processes_coincide() -> None:
    with listening(always(answer(RIGHT))) as url:
        outcome = run(load(url, rate=200, seconds=3, profile="bursts", processes=2, check=0.0), [REQUEST])
    intended_s = outcome.records["intended_s"] - outcome.begin_s
    found = np.sort(np.histogram(intended_s, bins=60, range=(0, 3))[0])[::-1]
    assert 450 < found.sum() < 750
    assert found[:9].sum() > 0.45 * found.sum()  # the fullest 15% of the bins; with even load, about a fifth
    assert dict(summary(outcome))["offered"] == "200/s for 3 s, bursts"


def test_a_stall_of_the_server_counts_for_every_request_that_it_delays() -> None:
    stall_s, stalled = 0.6, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader) is not None:
            if not stalled.is_set():
                stalled.set()
                time.sleep(stall_s)  # blocks the whole server
            writer.write(answer(RIGHT))

    with listening(serve) as url:
        records = run(load(url, seconds=1.2), [REQUEST]).records
    slow = np.count_nonzero(read.from_intended_ms(records) > 200)
    assert slow > 20  # requests sent during two thirds of the stall; a closed loop would have recorded only one


def test_a_client_without_a_free_connection_reports_that_it_is_late() -> None:
    with listening(always(answer(RIGHT), pause_s=0.05)) as url:
        records = run(load(url, rate=40, connections=1), [REQUEST]).records
    assert read.quantiles_ms(read.lateness_ms(records), (99,))[0] > 500
    assert read.quantiles_ms(read.from_sent_ms(records), (50,))[0] < 200


def test_a_frozen_client_reports_that_it_is_late() -> None:
    with listening(always(answer(RIGHT))) as url, begin(load(url, seconds=1.5), [REQUEST]) as running:
        time.sleep(0.5)
        (process,) = running.processes
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.7)
        process.send_signal(signal.SIGCONT)
        records = running.wait().records
    assert read.lateness_ms(records).max() > 400
    assert read.quantiles_ms(read.from_sent_ms(records), (50,))[0] < 200


def test_a_connection_that_closes_between_requests_is_not_a_failure() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(RIGHT, "Connection: close"))

    with listening(serve) as url:
        outcome = run(load(url, rate=50), [REQUEST])
    assert (outcome.records["status"] == 200).all()
    assert outcome.opened == len(outcome.records)


def test_a_request_without_an_answer_is_lost_when_its_connection_closes() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    with listening(serve) as url:
        records = run(load(url, rate=50, seconds=0.5), [REQUEST]).records
    assert read.count(records, 0) == len(records) == read.unanswered(records)


def test_requests_are_refused_when_nothing_listens() -> None:
    with listening(always(b"")) as url:
        pass
    records = run(load(url, rate=50, seconds=0.5), [REQUEST]).records
    assert read.count(records, -1) == len(records)


def test_a_request_whose_answer_is_never_completed_counts_as_hung() -> None:
    with listening(always(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")) as url:
        records = run(load(url, rate=30, seconds=0.3, timeout_ms=1, grace_s=0.3), [REQUEST]).records
    assert len(records)
    assert read.count(records, -2) == len(records)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (SCORES % (b"v1", b"0.2501"), "off by"),
        (SCORES % (b"v2", b"0.25"), "off by"),  # the scores of a version other than the one named
        (SCORES % (b"v3", b"0.25"), "not activated"),
        (RIGHT.replace(b'"a"', b'"b"'), "differ from those"),
        (b"[]", "no valid scores"),
    ],
)
def test_a_wrong_answer_is_detected(body: bytes, problem: str) -> None:
    assert what_is_wrong(REQUEST, RIGHT) is None
    assert problem in str(what_is_wrong(REQUEST, body))


def test_wrong_scores_among_right_ones_are_counted() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in itertools.cycle((RIGHT, SCORES % (b"v1", b"0.2501"))):
            if await read_request(reader) is None:
                return
            writer.write(answer(reply))

    with listening(serve) as url:
        outcome = run(load(url, connections=1), [REQUEST])
    assert outcome.records["wrong"].mean() == pytest.approx(0.5, abs=0.02)
    assert outcome.examples[0].startswith("probabilities of v1 are off by 0.0001")


def test_only_the_stated_share_is_checked() -> None:
    with listening(always(answer(b"[]"))) as url:
        records = run(load(url, rate=400, check=0.25), [REQUEST]).records
    assert 0.1 < records["checked"].mean() < 0.4
    assert (records["wrong"] == records["checked"]).all()


def test_an_answer_that_names_a_missing_part_counts_as_degraded() -> None:
    with listening(always(answer(RIGHT.replace(b"[]}", b'["redis"]}')))) as url:
        records = run(load(url, rate=40, seconds=0.3), [REQUEST]).records
    assert records["degraded"].all()


def test_a_hostile_request_must_be_answered_with_one_of_its_statuses() -> None:
    good, bad = Hostile("bad JSON", REQUEST.message, [400]), Hostile("too deep", REQUEST.message, [422])
    gone = Hostile("half", REQUEST.message[:20], hangs_up=True)
    with listening(always(answer(b"{}", status="400 Bad Request"))) as url:
        outcome = run(load(url, hostile=0.5), [REQUEST], [good, bad, gone])
    hostile = outcome.records.compress(outcome.records["hostile"])
    assert 10 < len(hostile) < len(outcome.records)
    assert set(outcome.examples) == {"too deep: answered with 400, expected one of [422]"}
    assert 0 < hostile["wrong"].sum() < len(hostile)
    assert read.unanswered(hostile) == 0


def test_several_processes_share_the_rate_and_their_records_are_merged() -> None:
    with listening(always(answer(RIGHT))) as url:
        outcome = run(load(url, rate=200, processes=2), [REQUEST])
    assert 120 < len(outcome.records) < 300
    assert (np.diff(outcome.records["intended_s"]) >= 0).all()
    assert dict(summary(outcome))["200"] == str(len(outcome.records))


def test_the_highest_rate_is_found_by_bisection() -> None:
    assert find_max(lambda rate: rate <= 730, first=100) == pytest.approx(730, rel=0.04)
    assert find_max(lambda rate: False, first=100) == 0


def test_a_generator_that_fails_is_an_error() -> None:
    with listening(always(answer(RIGHT))) as url, begin(load(url, seconds=5), [REQUEST]) as running:
        running.processes[0].kill()
        with pytest.raises(RuntimeError, match="exited with code -9"):
            running.wait()


def test_the_command_prints_a_table_and_reports_wrong_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(always(answer(RIGHT))) as url:
        options = ["--rate", "40", "--seconds", "0.5", "--candidates", "2", "--check", "1"]
        code = main(["--url", url, "--bundle", str(DEMO), *options])
    assert code == 1
    printed = capsys.readouterr().out
    assert "client late, ms" in printed
    assert "not activated" in printed
    assert "server:" not in printed  # this server has no metrics
