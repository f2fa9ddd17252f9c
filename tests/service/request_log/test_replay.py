"""Replaying a request log: the same bundle gives the same answers, and the report says what was not compared."""

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import open_bundle
from contract.request_log import LogLine
from service.models import verify
from service.request_log.replay import Differences, replay
from service.request_log.writer import RequestLog
from service.runtime.engine import open_engine
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.request_log.test_lines import A_SALT, the_candidates
from tests.service.request_log.test_writer import wait_until, written
from tests.support.app import StartApp, a_request
from tests.support.examples import examples
from tests.support.processes import another_bundle
from tests.support.request_log import a_line, log_of, read_log


@pytest.fixture
async def folder(start: StartApp, tmp_path: Path) -> Path:
    requests = [a_request(context={"user": f"u{number}", "weekday": "sunday"}) for number in range(20)]
    await log_of(start, tmp_path / "log", requests)
    return tmp_path / "log"


def first_format(line: LogLine) -> bytes:
    """Return a line as it was written before format 2."""
    document = msgspec.to_builtins(line)
    kept = ("time", "request_id", "model", "version", "context", "degraded", "hashed")
    candidates = [{"id": one["id"], "features": one["features"]} for one in document["candidates"]]
    old = {name: document[name] for name in kept}
    old |= {"candidates": candidates, "ctr": [one["ctr"] for one in document["candidates"]]}
    return msgspec.json.encode(old) + b"\n"


async def test_replaying_a_log_with_its_own_bundle_shows_no_difference(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(bundle), "--log", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "20 requests, 40 candidates compared" in out
    assert "largest 0," in out or "e-0" in out.split("largest ")[1][:12]
    assert "different best candidate: 0 requests" in out


async def test_replaying_a_log_with_another_bundle_shows_the_differences(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(another_bundle(tmp_path / "another")), "--log", str(folder)]) == 0
    out = capsys.readouterr().out
    assert float(out.split("largest ")[1].split(",")[0]) > 0.01
    assert int(out.split("different best candidate: ")[1].split()[0]) > 0


async def test_old_and_shipped_files_are_replayed(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = folder.glob("*.ndjson")
    old = b"".join(first_format(line) for line in read_log(file))
    file.rename(f"{file}.shipped")
    (folder / "requests-0.ndjson").write_bytes(old)
    assert verify.main([str(bundle), "--log", str(folder)]) == 0
    assert "40 requests, 80 candidates compared" in capsys.readouterr().out


async def test_a_different_answer_from_the_same_version_gives_exit_code_1(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = folder.glob("*.ndjson")
    lines = read_log(file)
    ctr = the_candidates(lines[0])[0].ctr
    assert ctr is not None
    the_candidates(lines[0])[0].ctr = ctr / 2
    newer = '{"format": 9}'
    file.write_text("\n".join([*(msgspec.json.encode(line).decode() for line in lines), newer, '{"cut": ']))
    assert verify.main([str(bundle), "--log", str(file)]) == 1
    captured = capsys.readouterr()
    assert "skipped 1 lines that are truncated" in captured.out
    assert "skipped 1 lines in a newer format than 2." in captured.out
    assert "the same version now gives answers that differ" in captured.err


async def test_hashed_fields_are_reported_as_unknown(
    start: StartApp, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt = tmp_path / "salt"
    salt.write_text(A_SALT)
    await log_of(start, tmp_path / "log", [a_request()], request_log_hash="user,age", request_log_salt_file=salt)
    assert verify.main([str(bundle), "--log", str(tmp_path / "log")]) == 0
    out = capsys.readouterr().out
    assert "hashed in the log, so unknown now: user, age" in out
    assert "2 candidates compared" in out


async def test_all_fields_sampled_candidates_and_failed_requests_are_replayed(
    start: StartApp, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = [{"id": number, "features": {"item": 4000 + number, "new": [1]}} for number in range(9)]
    async with start(
        request_log=tmp_path, request_log_sample=1.0, request_log_candidates=2, request_log_fields="all"
    ) as client:
        for _ in range(3):
            assert (await client.post("/v1/score", json=a_request(candidates=candidates))).status_code == 200
        assert (await client.post("/v1/score", json=a_request())).status_code == 200
        assert (await client.post("/v1/score", json=a_request(context={"user": []}))).status_code == 422
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "4 requests, 11 candidates compared" in out
    assert "not scored by the server: 1 requests (bad_request 1)" in out
    assert "logged without some of their candidates: 3 requests" in out
    assert "different best candidate: 0 requests" in out


def test_a_folder_without_a_log_is_an_error(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 2
    assert "found no lines of a request log that this version can read.\n" in capsys.readouterr().err
    (tmp_path / "requests-1.ndjson").write_text('{"format": 9}\n{}\n')
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "skipped 1 lines in a newer format than 2." in err
    assert "skipped 1 lines that are truncated" in err


def test_the_error_for_a_log_that_is_still_being_written_says_when_it_can_be_read(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()
    log = RequestLog(Settings(bundle=tmp_path, request_log=tmp_path, request_log_sample=1.0), metrics)
    log.offer(a_line())
    wait_until(lambda: written(metrics) == 1)
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 2
    assert "Files still being written: 1. Wait 300 s, or stop the server." in capsys.readouterr().err
    log.close()


async def test_the_memory_of_a_replay_does_not_depend_on_the_size_of_the_log(folder: Path, bundle: Path) -> None:
    (file,) = folder.glob("*.ndjson")
    opened = open_bundle(bundle)
    engine = open_engine(opened, threads=1)
    whole = file.read_bytes()
    peaks = []
    for times in (1, 50):
        file.write_bytes(whole * times)
        tracemalloc.start()
        (comparison,), _ = replay([folder], opened, engine)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert comparison.requests == 20 * times
    assert peaks[1] < peaks[0] + 200_000
    assert len(whole) * 49 > 400_000


@settings(max_examples=examples(100))
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_statistics_of_differences_are_accurate(values: list[float], share: float) -> None:
    differences = Differences()
    for value in values:
        differences.add(np.array([value]))
    assert differences.count == len(values)
    assert differences.largest == max(values)
    assert differences.mean == pytest.approx(np.mean(values))
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    if share:
        assert exact * 0.999 <= differences.quantile(share) + 1e-17
        assert differences.quantile(share) <= exact * 1.011 + 1e-17
