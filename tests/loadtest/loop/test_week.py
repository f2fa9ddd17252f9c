"""The second part of the demo: what it counts, and which claims it checks."""

import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from loadtest.loop.daemon import Daemon, running
from loadtest.loop.steady import Steady
from loadtest.loop.week import Quality, failures, normalized_entropy, worse
from loadtest.servers import free_port
from model.data.synthetic.traffic import Requests, Traffic
from tests.support.paths import DEMO


def some_requests() -> Requests:
    traffic = Traffic(1, 1_796_083_200.0)
    return traffic.requests(traffic.times(20, 0))


def test_every_request_is_counted_as_an_answer_or_as_a_failure(tmp_path: Path) -> None:
    service = Daemon("service", "CTR_", {"CTR_BUNDLE": str(DEMO), "CTR_WORKERS": "1"}, tmp_path / "service.log")
    with running(service), Steady(service.url, some_requests(), rate=50) as steady:
        version = next(iter(served_versions(steady)))
        assert steady.wait_for(version, timeout_s=1) is not None
        assert steady.wait_for("another", timeout_s=0.2) is None
        assert (steady.failed, failures(steady)) == (0, [])
        service.kill()
        wait_for_failure(steady)
    assert "requests failed, such as" in failures(steady)[0]


def served_versions(steady: Steady) -> list[str]:
    """Return the versions that have answered, after at least one has."""
    end_s = time.monotonic() + 30
    while not steady.answers and time.monotonic() < end_s:
        time.sleep(0.05)
    return list(steady.answers)


def wait_for_failure(steady: Steady) -> None:
    end_s = time.monotonic() + 30
    while not steady.failed and time.monotonic() < end_s:
        time.sleep(0.05)


def test_a_server_that_is_not_there_fails_every_request() -> None:
    with Steady(f"http://127.0.0.1:{free_port()}", some_requests(), rate=100) as steady:
        wait_for_failure(steady)
    assert steady.failed > 0
    assert not steady.answers


def test_the_true_probabilities_have_the_lowest_normalized_entropy() -> None:
    true = np.array([0.01, 0.2, 0.05, 0.1])
    best = normalized_entropy(true, true)
    assert best < normalized_entropy(1.1 * true, true) < 1
    assert normalized_entropy(np.full(4, true.mean()), true) == pytest.approx(1)


def test_the_retrained_model_must_be_better_on_the_last_days() -> None:
    days = [Quality(date(2026, 11, day), 0.9, 0.91) for day in range(1, 7)]
    assert worse(days) == []
    assert worse([Quality(date(2026, 11, 1), 0.95, 0.94), *days]) == []
    assert "2026-11-07" in worse([*days, Quality(date(2026, 11, 7), 0.95, 0.94)])[0]
