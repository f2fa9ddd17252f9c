"""Several workers on one port: metrics are summed, exited workers are replaced, and none outlives the supervisor."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.app import a_request
from tests.support.processes import (
    Server,
    accepting_workers,
    children,
    client_for,
    eventually,
    is_alive,
    metric,
    score,
    serving,
    sockets,
)

OK_COUNT = 'ctr_request_seconds_count{outcome="ok"}'


@pytest.fixture
def two(bundle: Path) -> Iterator[Server]:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: accepting_workers(server) == 2, "both workers accept connections")
        yield server


def test_counts_are_summed_over_all_workers_and_survive_the_exit_of_a_worker(two: Server) -> None:
    before = metric(two.url, OK_COUNT)
    for _ in range(30):
        score(two)
    assert metric(two.url, OK_COUNT) == before + 30
    rows = metric(two.url, "ctr_candidates_total")
    victim = children(two.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: metric(two.url, "ctr_worker_deaths_total") == 1, "the exit is counted")
    eventually(lambda: metric(two.url, "ctr_workers") == 2, "a new worker is running")
    assert metric(two.url, OK_COUNT) == before + 30
    assert metric(two.url, "ctr_candidates_total") == rows
    score(two)
    assert metric(two.url, OK_COUNT) == before + 31
    assert metric(two.url, 'ctr_request_latency_seconds{quantile="0.5"}') > 0


def test_new_connections_are_served_after_a_worker_is_killed(two: Server) -> None:
    os.kill(children(two.process.pid)[0], signal.SIGKILL)
    for _ in range(50):  # Each request uses a new connection, so none of them belonged to the killed worker.
        score(two)


def test_no_worker_outlives_a_killed_supervisor(two: Server) -> None:
    workers = children(two.process.pid)
    two.process.kill()
    two.process.wait(30)
    eventually(lambda: not any(map(is_alive, workers)), "all workers have exited")


def test_sigterm_stops_all_workers_and_removes_the_metrics_folder(two: Server) -> None:
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


def test_a_worker_that_exits_soon_after_its_start_is_replaced_after_a_delay(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        (worker,) = children(server.process.pid)
        start_s = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: children(server.process.pid) not in ([worker], []), "another worker is running")
        assert time.monotonic() - start_s >= 0.1  # It exited soon after its start.
        score(server)


def test_a_new_worker_gets_its_share_of_the_connections(bundle: Path) -> None:
    """Otherwise, the new worker would get no requests from clients that keep their connections open."""
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: accepting_workers(server) == 2, "both workers accept connections")
        with ExitStack() as stack:
            killed, left = children(server.process.pid)
            os.kill(killed, signal.SIGKILL)
            clients = [stack.enter_context(client_for(server.url)) for _ in range(16)]
            for client in clients:  # The remaining worker accepts all of them, unless the new one is ready first.
                assert client.post("/v1/score", json=a_request()).status_code == 200
            eventually(lambda: len({*ready(server)} - {killed}) == 2, "a new worker is running")

            def is_balanced() -> bool:
                for client in clients:
                    assert client.post("/v1/score", json=a_request()).status_code == 200
                return 4 <= sockets(left) <= 12 + OTHER_SOCKETS

            eventually(is_balanced, "the connections are balanced")


OTHER_SOCKETS = 4  # The listening socket, the supervisor's, and those of the event loop.


def ready(server: Server) -> list[int]:
    return [pid for pid in children(server.process.pid) if sockets(pid) >= 3]
