"""Server-side times during one load."""

import math
from pathlib import Path

import numpy as np
import pytest

from contract.bundle import open_bundle
from loadtest.openloop import records as read
from loadtest.openloop.__main__ import main
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, run
from loadtest.openloop.phases import Counts, counts, quantile, scrape, server_times
from loadtest.servers import serving
from service.telemetry.metrics import PHASES
from tests.support.http_servers import always, answer, listening
from tests.support.paths import DEMO

PAGE = """\
# TYPE ctr_phase_seconds histogram
ctr_phase_seconds_bucket{{le="+Inf",phase="run"}} {count}
ctr_phase_seconds_count{{phase="run"}} {count}
ctr_phase_seconds_sum{{phase="run"}} {seconds}
# TYPE ctr_request_seconds histogram
ctr_request_seconds_bucket{{le="0.001",outcome="ok"}} {fast}
ctr_request_seconds_bucket{{le="0.002",outcome="ok"}} {count}
ctr_request_seconds_bucket{{le="+Inf",outcome="ok"}} {count}
ctr_request_seconds_bucket{{le="0.001",outcome="overloaded"}} 1000
ctr_request_seconds_bucket{{le="0.002",outcome="overloaded"}} 1000
ctr_request_seconds_bucket{{le="+Inf",outcome="overloaded"}} 1000
"""


def page(count: int, seconds: float, fast: int) -> Counts | None:
    return counts(PAGE.format(count=count, seconds=seconds, fast=fast))


def test_requests_before_the_load_do_not_count() -> None:
    found = server_times(page(100, 9.0, 100), page(300, 9.5, 150))
    assert found is not None
    assert found.mean_ms == {"run": pytest.approx(2.5)}
    assert found.scored == 200
    assert found.p50_ms == pytest.approx(1 + 50 / 150)
    assert found.p99_ms == pytest.approx(1 + 148 / 150)


def test_there_are_no_times_if_the_server_restarted() -> None:
    assert server_times(page(300, 9.5, 150), page(100, 0.5, 50)) is None
    assert server_times(None, page(1, 1, 1)) is None
    assert server_times(page(1, 1, 1), None) is None


def test_without_requests_there_are_no_quantiles() -> None:
    found = server_times(page(100, 9.0, 100), page(100, 9.0, 100))
    assert found is not None
    assert found.mean_ms == {}
    assert math.isnan(found.p99_ms)


@pytest.mark.parametrize(("share", "value"), [(0.05, 0.5), (0.1, 1.0), (0.3, 2.0), (0.5, 3.0), (0.8, 3.0), (1.0, 3.0)])
def test_a_quantile_lies_within_its_bucket(share: float, value: float) -> None:
    assert quantile({1.0: 10, 3.0: 50, math.inf: 100, 2.0: 30}, share) == pytest.approx(value)


@pytest.mark.parametrize(
    "reply",
    [answer(b'{"version": 1}'), answer(b"up 1\n"), answer(b"none", status="404 Not Found"), b"no HTTP\r\n\r\n"],
)
def test_another_server_has_no_times(reply: bytes) -> None:
    with listening(always(reply)) as url:
        assert scrape(f"{url}/metrics") is None
    assert scrape(f"{url}/metrics") is None  # the server has stopped


def test_the_server_reports_the_phases_of_a_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = prepare([open_bundle(DEMO)], {10: 20}, timeout_ms=5000)
    settings = {"CTR_BUNDLE": str(DEMO), "CTR_TIMEOUT_MS": "5000", "CTR_QUEUE_TARGET_MS": "1000"}
    with serving(tmp_path, 2, settings) as server:
        load = Load(server.url, 50, 2, timeout_ms=5000)
        run(load, requests)  # runs before the measured load, so it does not count
        before = scrape(f"{server.url}/metrics")
        accepted = read.answered(run(load, requests).records)
        found = server_times(before, scrape(f"{server.url}/metrics"))
        arguments = ["--rate", "30", "--seconds", "0.5", "--candidates", "3", "--timeout-ms", "5000"]
        assert main(["--url", f"{server.url}/", "--bundle", str(DEMO), *arguments]) == 0
    assert found is not None
    assert found.scored == len(accepted) > 20
    assert list(found.mean_ms) == list(PHASES)
    sent_ms = read.from_sent_ms(accepted)
    assert 0 < sum(found.mean_ms.values()) < sent_ms.mean()
    assert 0 < found.p50_ms < 1.2 * np.median(sent_ms)
    assert found.p50_ms <= found.p99_ms
    printed = capsys.readouterr().out
    assert "server: phases, mean ms  admit " in printed
    assert "server: scored, ms  " in printed
