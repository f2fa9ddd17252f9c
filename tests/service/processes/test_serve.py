"""Start `python -m service` as a separate process, send requests, verify it and stop it."""

import asyncio
import json
import math
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from contract.bundle import open_bundle, write_manifest
from contract.calibration import Calibration
from contract.golden import GoldenRequest, read_golden, write_golden
from service.models import verify
from service.processes.worker import curl
from tests.support.app import a_request
from tests.support.http_servers import answer, listening, read_request
from tests.support.processes import Server, get, post, serving, start
from tests.support.small_bundle import SHIFT, write_small_bundle


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_command_works(server: Server) -> None:
    done = subprocess.run(server.curl, capture_output=True, text=True, check=True, timeout=30)
    scores = json.loads(done.stdout)["scores"]
    assert 2 <= len(scores) <= 3
    assert all(0 < score["ctr"] < 1 for score in scores)


@pytest.mark.parametrize("number", ["1", "3"])
def test_the_printed_curl_command_works_on_a_strict_server(bundle: Path, number: str) -> None:
    with serving(bundle, CTR_STRICT="true", CTR_MAX_CANDIDATES=number, CTR_TIMEOUT_MS="5000") as strict:
        url, body = strict.curl[2], strict.curl[-1]
        answer = post(url, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["scores"]) == int(number)


def test_a_strict_server_is_verified_with_the_golden_requests_that_it_accepts(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(bundle, CTR_STRICT="true") as strict:
        assert verify.main([str(bundle), "--url", strict.url]) == 0
    out = capsys.readouterr().out
    complete = [request for request in read_golden(bundle / "golden.jsonl") if is_complete(request)]
    assert 0 < len(complete) < 30
    assert f"{len(complete)} requests" in out
    assert "compared because the server is strict (CTR_STRICT): lines " in out


def test_a_strict_server_that_accepts_no_golden_request_cannot_be_verified(
    own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = [request for request in read_golden(own_bundle / "golden.jsonl") if not is_complete(request)]
    write_golden(golden, own_bundle / "golden.jsonl")
    write_manifest(own_bundle, "small", 1, {}, Calibration(shift=SHIFT))
    with serving(own_bundle, CTR_STRICT="true") as strict:
        assert verify.main([str(own_bundle), "--url", strict.url]) == 2
    assert "the server is strict (CTR_STRICT) and refuses lines 1, 2" in capsys.readouterr().err


def is_complete(request: GoldenRequest) -> bool:
    rows = [request.context, *(candidate.features for candidate in request.candidates)]
    return all(value is not None for row in rows for value in row.values())


def test_a_ready_server_scores(server: Server) -> None:
    assert get(f"{server.url}/readyz").status_code == 200
    answer = post(f"{server.url}/v1/score", json=a_request())
    assert len(answer.json()["scores"]) == 2


@pytest.mark.parametrize(("depth", "status"), [(1000, 422), (1_000_000, 422), (10_000_000, 413)])
def test_bad_requests_over_a_socket_get_problem_documents(server: Server, depth: int, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = post(f"{server.url}/v1/score", content=b"[" * depth, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_running_server_can_be_verified(server: Server, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(bundle), "--url", server.url]) == 0
    assert "30 requests" in capsys.readouterr().out


def test_a_server_with_another_version_fails_verification(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_small_bundle(tmp_path / "other", seed=1)
    assert verify.main([str(other), "--url", server.url]) == 2
    assert "serve this bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "With ctr-serve, you can also use --bundle or --store."),
        ({"CTR_BUNDLE": "/nowhere"}, "/nowhere/manifest.json"),
        ({"CTR_BUNDEL": "x"}, "Did you mean CTR_BUNDLE?"),
        ({"CTR_BUNDLE": "x", "CTR_PORT": "70000"}, "CTR_PORT"),
        ({"CTR_BUNDLE": "x", "CTR_HOST": "203.0.113.7"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_a_server_that_cannot_start_prints_one_line(settings: dict[str, str], message: str) -> None:
    with start(**settings) as process:
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_port_in_use_is_reported(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(CTR_BUNDLE=str(bundle), CTR_PORT=port) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in errors


def test_a_curl_command_is_quoted_and_uses_a_reachable_host() -> None:
    request = {"context": {"user": "it's $HOME"}, "candidates": []}
    assert "http://127.0.0.1:80/" in curl("0.0.0.0", 80, request)  # noqa: S104
    assert "'http://[::1]:80/v1/score'" in curl("::", 80, request)
    assert json.loads(shlex.split(curl("h", 1, request))[-1]) == request


def test_verify_runs_a_bundle_without_a_server(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(bundle)]) == 0
    assert "largest difference" in capsys.readouterr().out
    wrong = write_small_bundle(tmp_path / "wrong", golden_shift=0.01)
    assert verify.main([str(wrong)]) == 1
    assert "export the run again" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.0005, 0), (1.05, 1)])
def test_verify_compares_rare_clicks_relative_to_their_probability(
    own_bundle: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    """5% of a probability below 1e-4 is less than the absolute tolerance."""
    golden = read_golden(own_bundle / "golden.jsonl")
    for request in golden:
        request.ctr[:] = [factor / (1 + (1 - ctr) / ctr * math.exp(16)) for ctr in request.ctr]
        assert max(request.ctr) < 2e-4
    write_golden(golden, own_bundle / "golden.jsonl")
    write_manifest(own_bundle, "rare", 1, {}, Calibration(shift=SHIFT - 16))
    assert verify.main([str(own_bundle)]) == code
    assert ("(0.048 of the probability), more than" in capsys.readouterr().err) == bool(code)


def test_verify_reads_the_answers_of_servers_before_version_0_11(bundle: Path) -> None:
    """Their answers have no score_id, and their scores have no `candidate`."""
    golden = iter(read_golden(bundle / "golden.jsonl"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader) is not None:
            request = next(golden)
            candidates = zip(request.candidates, request.ctr, strict=True)
            scores = [{"id": candidate.id, "ctr": ctr} for candidate, ctr in candidates]
            body = {"request_id": "r", "model": "m", "version": version, "scores": scores, "degraded": []}
            writer.write(answer(json.dumps(body).encode()))

    version = open_bundle(bundle).manifest.version
    with listening(serve) as url:
        assert verify.main([str(bundle), "--url", url]) == 0


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "ftp://127.0.0.1"])
def test_verify_reports_a_server_that_it_cannot_reach(
    bundle: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert verify.main([str(bundle), "--url", url]) == 2
    assert capsys.readouterr().err.startswith("ctr-verify: ")
