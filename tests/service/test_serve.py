"""`python -m service` as a process of its own: started, asked, verified and stopped."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from contract.golden import GoldenCandidate, GoldenRequest
from service import verify
from service.__main__ import curl
from tests.service.conftest import a_request
from tests.service.small_bundle import write_small_bundle

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    curl: list[str]

    @property
    def url(self) -> str:
        return next(word for word in self.curl if word.startswith("http://")).removesuffix("/v1/score")


def start(**settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}
    environment |= {"CTR_PORT": "0", **settings}
    command = [sys.executable, "-m", "service", "--print-curl"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def serving(bundle: Path, **settings: str) -> Iterator[Server]:
    """From the printed curl line on, the server is ready."""
    with start(CTR_BUNDLE=str(bundle), **settings) as process:
        assert process.stdout is not None
        try:
            yield Server(process, shlex.split(process.stdout.readline()))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle, CTR_TIMEOUT_MS="5000") as server:
        yield server


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_works_as_it_stands(server: Server) -> None:
    done = subprocess.run(server.curl, capture_output=True, text=True, check=True, timeout=30)
    scores = json.loads(done.stdout)["scores"]
    assert 2 <= len(scores) <= 3
    assert all(0 < score["ctr"] < 1 for score in scores)


def test_a_server_is_ready_and_answers(server: Server) -> None:
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
    answer = httpx.post(f"{server.url}/v1/score", json=a_request(), timeout=30)
    assert len(answer.json()["scores"]) == 2


def test_bad_requests_over_a_socket_are_problems(server: Server) -> None:
    for body in (b"[" * 1000, b"[" * 10_000_000):
        answer = httpx.post(
            f"{server.url}/v1/score", content=body, headers={"Content-Type": "application/json"}, timeout=30
        )
        assert answer.status_code in (400, 413, 422)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_running_server_is_verified(server: Server, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(bundle), "--url", server.url]) == 0
    assert "30 requests" in capsys.readouterr().out


def test_a_server_of_another_version_fails_verification(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_small_bundle(tmp_path / "other", seed=1)
    assert verify.main([str(other), "--url", server.url]) == 2
    assert "serve this bundle" in capsys.readouterr().err


def test_sigterm_ends_it_with_0(bundle: Path) -> None:
    with serving(bundle) as server:
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=30)
        assert server.process.returncode == 0, errors
        assert "Traceback" not in errors


def test_sigterm_lets_a_request_finish(bundle: Path) -> None:
    with serving(bundle) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(a_request(timeout_ms=5000)).encode()
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body[:10])
            httpx.get(f"{server.url}/livez", timeout=30)  # by now the server has read the head
            server.process.send_signal(signal.SIGTERM)
            connection.sendall(body[10:])
            assert b"200 OK" in connection.recv(100)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "CTR_BUNDLE is not set"),
        ({"CTR_BUNDLE": "/nowhere"}, "/nowhere/manifest.json"),
        ({"CTR_BUNDEL": "x"}, "did you mean CTR_BUNDLE?"),
        ({"CTR_BUNDLE": "x", "CTR_PORT": "70000"}, "CTR_PORT"),
        ({"CTR_BUNDLE": "x", "CTR_HOST": "203.0.113.7"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_start_says_so_in_one_sentence(settings: dict[str, str], words: str) -> None:
    with start(**settings) as process:
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_a_port_that_is_taken_is_a_sentence(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(CTR_BUNDLE=str(bundle), CTR_PORT=port) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in errors


def test_a_curl_line_is_quoted_and_names_a_host_that_can_be_reached() -> None:
    golden = [GoldenRequest({"user": "it's $HOME"}, [GoldenCandidate("a", {}), GoldenCandidate("b", {})], [0.1, 0.2])]
    assert "http://127.0.0.1:80/" in curl("0.0.0.0", 80, golden)  # noqa: S104
    assert "'http://[::1]:80/v1/score'" in curl("::", 80, golden)
    assert json.loads(shlex.split(curl("h", 1, golden))[-1])["context"] == {"user": "it's $HOME"}


def test_verify_runs_a_bundle_without_a_server(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(bundle)]) == 0
    assert "largest difference" in capsys.readouterr().out
    wrong = write_small_bundle(tmp_path / "wrong", golden_shift=0.01)
    assert verify.main([str(wrong)]) == 1
    assert "export the run again" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "ftp://127.0.0.1"])
def test_verify_says_which_server_cannot_be_asked(bundle: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert verify.main([str(bundle), "--url", url]) == 2
    assert capsys.readouterr().err.startswith("ctr-verify: ")
