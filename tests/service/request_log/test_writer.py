"""The request log and its replay: answers can be reproduced, and no request waits for the disk."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import open_bundle
from contract.encode import Encoder
from service.api.schemas import Candidate, ScoreRequest, ScoreResponse
from service.models import verify
from service.request_log.writer import Line, RequestLog, read_lines
from service.settings import Settings, SettingsError
from service.telemetry.metrics import Metrics
from tests.support.app import StartApp, a_request
from tests.support.processes import another_bundle
from tests.support.small_bundle import FIELDS

A_SALT = "a salt of sixteen or more bytes"


async def log_of(start: StartApp, folder: Path, requests: list[dict[str, Any]], **settings: Any) -> list[Line]:
    """Send these requests to a server that logs all of them, and return the lines of the log."""
    async with start(request_log=folder, **{"request_log_sample": 1.0, **settings}) as client:
        for request in requests:
            assert (await client.post("/v1/score", json=request)).status_code == 200
    lines, unreadable = read_lines([folder])
    assert unreadable == 0
    return lines


async def test_a_line_has_the_inputs_and_the_scores_of_the_model(start: StartApp, tmp_path: Path, bundle: Path) -> None:
    request = a_request(context={"user": "u1", "age": 31, "cookie": "not a field of the model"})
    (line,) = await log_of(start, tmp_path / "log", [request])
    assert line.version == open_bundle(bundle).manifest.version
    assert line.context == {"user": "u1", "age": 31}
    assert [candidate.id for candidate in line.candidates] == ["ad-7", 8]
    assert len(line.ctr) == 2
    assert all(ctr is not None and 0 < ctr < 1 for ctr in line.ctr)
    assert (line.degraded, line.hashed) == ([], [])


async def test_the_ctr_of_a_skipped_candidate_is_null(start: StartApp, tmp_path: Path) -> None:
    candidates = [*a_request()["candidates"], {"id": 3, "features": {"item": [1]}}]
    request = a_request(candidates=candidates, on_bad_candidate="skip")
    (line,) = await log_of(start, tmp_path / "log", [request])
    assert [ctr is None for ctr in line.ctr] == [False, False, True]


async def test_equal_values_have_equal_hashes_and_are_not_in_the_log(start: StartApp, tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text(A_SALT)
    requests = [a_request(context={"user": user}) for user in ("u1", "u1", "u2", None)]
    settings = {"request_log_hash": "user,item", "request_log_salt_file": salt}
    lines = await log_of(start, tmp_path / "log", requests, **settings)
    users = [line.context["user"] for line in lines]
    assert users[0] == users[1] != users[2]
    assert users[3] is None
    assert users[0].startswith("h:")
    assert len(users[0]) == 34
    assert lines[0].hashed == ["user", "item"]
    assert all(line.candidates[0].features["item"].startswith("h:") for line in lines)
    raw = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert '"u1"' not in raw
    assert '"4082"' not in raw  # A hash may contain these digits, so search for them with quotes or a colon.
    assert ":4082" not in raw
    salt.write_text(A_SALT + "another")
    other = await log_of(start, tmp_path / "other", requests[:1], **settings)
    assert other[0].context["user"] != users[0]


async def test_only_a_sample_is_logged_and_its_lines_are_counted(start: StartApp, tmp_path: Path) -> None:
    async with start(request_log=tmp_path, request_log_sample=0.3) as client:
        for _ in range(200):
            await client.post("/v1/score", json=a_request())
        counted = (await client.get("/metrics")).text
    lines, _ = read_lines([tmp_path])
    assert 20 < len(lines) < 120
    assert "ctr_request_log_lines_total" in counted


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


REQUEST = ScoreRequest({"user": "u1"}, [Candidate("1", {"item": "4001"})])
RESPONSE = ScoreResponse("r", "m", "v", [], [])
ENCODER = Encoder(FIELDS)


def a_log(folder: Path, **settings: Any) -> tuple[RequestLog, Metrics]:
    metrics = Metrics()
    values = {"bundle": folder, "request_log": folder, "request_log_sample": 1.0, **settings}
    return RequestLog(Settings(**values), metrics), metrics


def dropped(metrics: Metrics, reason: str) -> float:
    return metrics.not_logged.labels(reason)._value.get()  # type: ignore[no-any-return]


def test_if_the_disk_is_not_writable_only_lines_are_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "log"
    log, metrics = a_log(folder)
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    for _ in range(3):
        log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
    wait_until(lambda: dropped(metrics, "write") == 3)
    assert caplog.text.count("cannot be written") == 1
    folder.unlink()
    log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
    log.close()
    assert len(read_lines([folder])[0]) == 1


def test_a_folder_that_is_removed_is_created_again(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path / "log")
    for lines in (1, 2):
        log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
        wait_until(lambda lines=lines: metrics.logged._value.get() == lines)
        if lines == 1:
            shutil.rmtree(tmp_path / "log")
    log.close()
    assert len(read_lines([tmp_path / "log"])[0]) == 1
    assert dropped(metrics, "write") == 0


def test_if_the_writer_is_too_slow_lines_are_dropped_and_no_request_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, metrics = a_log(tmp_path)
    slow = log._segments.write

    def slowly(line: bytes) -> None:
        time.sleep(0.01)
        slow(line)

    monkeypatch.setattr(log._segments, "write", slowly)
    start_s = time.perf_counter()
    for _ in range(3000):
        log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
    assert time.perf_counter() - start_s < 15  # If each request waited for the writer, 30 s.
    assert dropped(metrics, "queue") > 1000
    monkeypatch.setattr(log._segments, "write", slow)
    log.close()


def test_the_oldest_segments_are_removed_when_the_folder_is_full(tmp_path: Path) -> None:
    log, _ = a_log(tmp_path, request_log_max_bytes=1024**2)
    big = ScoreRequest({"user": "x" * 50_000}, [Candidate("1", {})])
    for _ in range(60):
        log.offer(big, {0: 0.5}, RESPONSE, ENCODER)
    log.close()
    files = list(tmp_path.glob("*.ndjson"))
    assert len(files) > 1
    assert sum(path.stat().st_size for path in files) <= 1024**2


def test_the_file_of_a_killed_process_is_kept_up_to_its_last_complete_line(tmp_path: Path) -> None:
    log, _ = a_log(tmp_path)
    for _ in range(3):
        log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
    log.close()
    (whole,) = tmp_path.glob("*.ndjson")
    left = tmp_path / "requests-20200101T000000.0-999999.ndjson.part"
    left.write_bytes(whole.read_bytes()[:-20])
    a_log(tmp_path)[0].close()
    lines, unreadable = read_lines([tmp_path])
    assert (len(lines), unreadable) == (5, 0)


def wait_until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition was not met within 30 s")


@pytest.fixture
async def folder(start: StartApp, tmp_path: Path) -> Path:
    requests = [a_request(context={"user": f"u{number}", "weekday": "sunday"}) for number in range(20)]
    await log_of(start, tmp_path / "log", requests)
    return tmp_path / "log"


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


async def test_a_different_answer_from_the_same_version_gives_exit_code_1(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = folder.glob("*.ndjson")
    lines = file.read_text().splitlines()
    changed = lines[0].replace('"ctr":[0.', '"ctr":[0.9')
    file.write_text("\n".join([changed, *lines[1:], '{"cut": ']))
    assert verify.main([str(bundle), "--log", str(file)]) == 1
    captured = capsys.readouterr()
    assert "skipped 1 lines" in captured.out
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


def test_a_folder_without_a_log_is_an_error(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 2
    assert "found no lines of a request log (unreadable lines: 0).\n" in capsys.readouterr().err


def test_the_error_for_a_log_that_is_still_being_written_says_when_it_can_be_read(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, metrics = a_log(tmp_path)
    log.offer(REQUEST, {0: 0.5}, RESPONSE, ENCODER)
    wait_until(lambda: metrics.logged._value.get() == 1)
    assert verify.main([str(bundle), "--log", str(tmp_path)]) == 2
    assert "Files still being written: 1. Wait 300 s, or stop the server." in capsys.readouterr().err
    log.close()
