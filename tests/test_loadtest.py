"""locust -f loadtest/ctr.py against a real server. In processes of its own: locust replaces sockets on import."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "deploy" / "demo"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    settings = {"CTR_BUNDLE": str(DEMO), "CTR_PORT": str(port)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CTR_")} | settings
    server = subprocess.Popen([sys.executable, "-m", "service"], env=environment, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, server)
        yield url
    finally:
        server.terminate()
        assert server.wait(30) == 0


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310  # our own server
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("not ready within a minute")


def run_locust(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/ctr.py", "--headless", "--host", url]
    command += ["--users", "5", "--spawn-rate", "5", "--run-time", "4s", "--only-summary", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_it_prints_the_quantiles_of_the_answers(url: str) -> None:
    done = run_locust(url)
    assert done.returncode == 0, done.stderr
    found = re.search(r"answered (\d+) requests: p50 ([\d.]+) ms, p99 ([\d.]+) ms", done.stderr + done.stdout)
    assert found is not None, done.stderr
    assert int(found[1]) >= 10
    assert 0 < float(found[2]) <= float(found[3])


def test_refused_requests_are_failures(url: str) -> None:
    done = run_locust(url, "--candidates", "1001")
    assert done.returncode == 1
    assert "422" in done.stdout + done.stderr
