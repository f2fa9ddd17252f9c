"""locust -f loadtest/ctr.py against a real server.

Locust runs in its own process, because it replaces the socket module on import.
"""

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

from tests.support.paths import ROOT

DEMO = ROOT / "deploy" / "demo"
SIZES = (1, 10, 100, 500)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    settings = {
        "CTR_BUNDLE": str(DEMO),
        "CTR_PORT": str(port),
        "CTR_TIMEOUT_MS": "10000",
        "CTR_QUEUE_TARGET_MS": "1000",
    }
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
        assert server.poll() is None, "the server exited"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310  # our own server
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("not ready within a minute")


def run_locust(url: str, *arguments: str, files: str = "loadtest/ctr.py") -> subprocess.CompletedProcess[str]:
    """Run locust until it exits. All of its output is in stdout."""
    command = [sys.executable, "-m", "locust", "-f", files, "--headless", "--host", url]
    command += ["--users", "20", "--spawn-rate", "20", "--only-summary", *arguments]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )


def answered(output: str, tag: str) -> int:
    """Return how many requests with a tag were answered, and check that their quantiles are in ascending order."""
    found = re.search(rf" {tag}: answered (\d+) requests: (.*)", output)
    assert found is not None, output
    quantiles = re.fullmatch(r"p50 (\S+) ms, p90 (\S+) ms, p99 (\S+) ms, p99.9 (\S+) ms", found[2])
    assert quantiles is not None, output
    assert all(re.fullmatch(r"\d+\.\d\d", figure) for figure in quantiles.groups())
    figures_ms = [float(figure) for figure in quantiles.groups()]
    assert 0 < figures_ms[0] <= figures_ms[1] <= figures_ms[2] <= figures_ms[3]
    return int(found[1])


def test_quantiles_are_printed_for_all_answers_and_by_tag(url: str) -> None:
    done = run_locust(url, "--run-time", "5s", "--slo-p99-ms", "10000", "--slo-failures", "0")
    assert done.returncode == 0, done.stdout
    tags = re.findall(r" (candidates-\d+): answered", done.stdout)
    assert {"candidates-1", "candidates-10", "candidates-100"} <= set(tags) <= {f"candidates-{n}" for n in SIZES}
    assert answered(done.stdout, "all") == sum(answered(done.stdout, tag) for tag in tags) >= 5
    assert "Ramping to 20 users" in done.stdout
    assert "Shape test" not in done.stdout
    assert "SLO failed" not in done.stdout


def test_a_slow_start_does_not_count_towards_the_run_time(url: str, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import os\nos.system('sleep 3')\n")  # gevent would replace time.sleep
    done = run_locust(url, "--run-time", "2s", files=f"loadtest/ctr.py,{slow}")
    assert answered(done.stdout, "all") > 5


def test_a_tag_selects_requests_with_its_number_of_candidates(url: str) -> None:
    done = run_locust(url, "--run-time", "2s", "--tags", "candidates-10", "--slo-p99-ms", "0.01")
    assert set(re.findall(r"/v1/score (\d+)", done.stdout)) == {"10"}
    assert answered(done.stdout, "candidates-10") == answered(done.stdout, "all")
    assert done.returncode == 1
    failed = re.search(r"SLO failed: p99 is (\S+) ms, (\S+) ms above the target of 0.01 ms", done.stdout)
    assert failed is not None, done.stdout
    assert float(failed[1]) - float(failed[2]) == pytest.approx(0.01, abs=0.011)


def test_candidates_and_tags_cannot_be_combined(url: str) -> None:
    done = run_locust(url, "--run-time", "3s", "--tags", "candidates-10", "--candidates", "10")
    assert done.returncode == 1
    assert "use one option or the other, not both" in done.stdout


def test_refused_requests_are_failures(url: str) -> None:
    done = run_locust(url, "--run-time", "2s", "--candidates", "1001")
    assert done.returncode == 1
    assert "422" in done.stdout
    assert "/v1/score 1001" in done.stdout


@pytest.mark.parametrize(("share", "code"), [("0.25", 1), ("1", 0)])
def test_the_allowed_share_of_failures_decides_the_exit_code(url: str, share: str, code: int) -> None:
    done = run_locust(url, "--run-time", "2s", "--candidates", "1001", "--slo-failures", share)
    assert done.returncode == code, done.stdout
    assert ("75.000% of all requests above the target of 25.000%" in done.stdout) == bool(code)


def test_without_requests_the_slo_fails(url: str) -> None:
    done = run_locust(url, "--run-time", "2s", "--tags", "candidates-2", "--slo-failures", "1")
    assert done.returncode == 1
    assert "SLO failed: no request was sent" in done.stdout


def test_latencies_of_several_processes_are_in_one_report(url: str) -> None:
    done = run_locust(url, "--run-time", "3s", "--processes", "2", "--candidates", "5", "--slo-p99-ms", "10000")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("all: answered") == 1
    total = re.search(r"Aggregated +(\d+) ", done.stdout)
    assert total is not None
    assert answered(done.stdout, "all") == answered(done.stdout, "candidates-5") == int(total[1]) >= 10


def test_a_shape_ramps_holds_spikes_and_ends_on_its_own(url: str) -> None:
    parts = ("--ramp-s", "2", "--steady-s", "2", "--spike-s", "2", "--down-s", "2")
    done = run_locust(url, "--shape", "ramp-steady-spike", "--spike-users", "30", *parts)
    assert done.returncode == 0, done.stdout
    users = [int(count) for count in re.findall(r"Shape test updating to (\d+) users", done.stdout)]
    spike = users.index(30)
    before, after = users[:spike], users[spike + 1 :]
    assert before == sorted(before)
    assert (before[0], before[-1]) == (1, 20)
    assert after == sorted(after, reverse=True)
    assert 0 < after[-1] < 20
    assert answered(done.stdout, "all") >= 20


def test_a_run_time_cuts_a_shape_short(url: str) -> None:
    done = run_locust(url, "--shape", "ramp-steady-spike", "--run-time", "2s", "--ramp-s", "0", "--candidates", "1")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"Shape test updating to (\d+) users", done.stdout) == ["20"]
