"""Several workers on one port: their counts add up, a dead one is replaced, and nobody outlives the supervisor."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.runtime.cpu_quota import available_cpus
from tests.support.app import a_request
from tests.support.processes import Server, children, eventually, is_alive, metric, score, served_by, serving, sockets

OK_COUNT = 'ctr_request_seconds_count{outcome="ok"}'


@pytest.fixture
def two(bundle: Path) -> Iterator[Server]:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: metric(server.url, "ctr_workers") == 2, "two workers")
        eventually(lambda: served_by(server, 20) == 2, "both take connections")
        yield server


def test_the_counts_of_all_workers_add_up_and_survive_a_dead_one(two: Server) -> None:
    before = metric(two.url, OK_COUNT)
    for _ in range(30):
        score(two)
    assert metric(two.url, OK_COUNT) == before + 30
    rows = metric(two.url, "ctr_candidates_total")
    victim = children(two.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not is_alive(victim) and metric(two.url, "ctr_workers") == 2, "a worker in its place")
    assert metric(two.url, OK_COUNT) == before + 30
    assert metric(two.url, "ctr_candidates_total") == rows
    assert metric(two.url, "ctr_worker_deaths_total") == 1
    score(two)
    assert metric(two.url, OK_COUNT) == before + 31
    assert metric(two.url, 'ctr_request_latency_seconds{quantile="0.5"}') > 0


def test_requests_go_on_while_a_worker_dies(two: Server) -> None:
    os.kill(children(two.process.pid)[0], signal.SIGKILL)
    for _ in range(50):  # each on a new connection, which the dead one had none of
        score(two)


def test_no_worker_outlives_a_supervisor_that_was_killed(two: Server) -> None:
    workers = children(two.process.pid)
    two.process.kill()
    two.process.wait(30)
    eventually(lambda: not any(map(is_alive, workers)), "the end of the workers")


def test_sigterm_ends_all_with_0_and_leaves_no_metrics_behind(two: Server) -> None:
    workers = children(two.process.pid)
    environment = dict(
        line.split("=", 1) for line in Path(f"/proc/{workers[0]}/environ").read_text().split("\0") if line
    )
    metrics = Path(environment["PROMETHEUS_MULTIPROC_DIR"])
    assert metrics.is_dir()
    two.process.send_signal(signal.SIGTERM)
    assert two.process.wait(30) == 0
    assert not any(map(is_alive, workers))
    assert not metrics.exists()


def test_a_worker_that_dies_again_and_again_does_not_take_the_cpu(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        (worker,) = children(server.process.pid)
        start_s = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: children(server.process.pid) not in ([worker], []), "another worker")
        assert time.monotonic() - start_s >= 0.1  # it had lived for a moment only
        score(server)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_workers_are_as_many_as_the_quota_allows(tmp_path: Path, files: dict[str, str], cpus: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (cpus or len(os.sched_getaffinity(0)))


def test_a_worker_that_joins_gets_its_share_of_the_connections(bundle: Path) -> None:
    """Clients that keep their connections would leave it without work."""
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: metric(server.url, "ctr_workers") == 2, "two workers")
        eventually(lambda: served_by(server, 20) == 2, "both take connections")
        with ExitStack() as stack:
            killed, left = children(server.process.pid)
            os.kill(killed, signal.SIGKILL)
            clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=30)) for _ in range(16)]
            for client in clients:  # all on the one that is left, unless this takes longer than a start
                assert client.post("/v1/score", json=a_request()).status_code == 200
            eventually(lambda: len({*ready(server)} - {killed}) == 2, "another worker")

            def is_spread() -> bool:
                for client in clients:
                    assert client.post("/v1/score", json=a_request()).status_code == 200
                return 4 <= sockets(left) <= 12 + SOCKETS_OF_ITS_OWN

            eventually(is_spread, "the connections are spread")


SOCKETS_OF_ITS_OWN = 4  # the one that it listens on, the supervisor's, and the event loop's


def ready(server: Server) -> list[int]:
    return [pid for pid in children(server.process.pid) if sockets(pid) >= 3]
