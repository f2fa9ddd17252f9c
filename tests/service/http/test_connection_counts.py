"""Connections are spread evenly over the workers, whether clients connect at once or one after another."""

import time
from contextlib import ExitStack
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit

import pytest

from service.http.connection_counts import ConnectionCounts, WorkerSlot
from tests.service.processes.test_serve import Server, serving
from tests.service.processes.test_workers import served_by
from tests.support.processes import children, eventually, metric, sockets


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_clients_that_connect_one_after_another_are_spread_evenly(bundle: Path, pause_s: float) -> None:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: metric(server.url, "ctr_workers") == 2, "two workers")
        eventually(lambda: served_by(server, 20) == 2, "both take connections")
        rounds = [shares(server, 16, pause_s) for _ in range(5)]
        # On a busy machine, a worker may be suspended for longer than the other one yields. Two rounds may be uneven.
        assert sum(5 <= first <= 11 and 5 <= second <= 11 for first, second in rounds) >= 3, rounds


def shares(server: Server, clients: int, pause_s: float) -> list[int]:
    """Open this many connections, and return how many of them each worker has."""
    time.sleep(0.5)  # Until earlier connections are closed.
    workers = children(server.process.pid)
    address = ("127.0.0.1", urlsplit(server.url).port)
    before = [sockets(worker) for worker in workers]
    with ExitStack() as opened:
        for _ in range(clients):
            opened.enter_context(create_connection(address, timeout=10))
            time.sleep(pause_s)
        time.sleep(0.5)  # Until the last ones are accepted.
        return [sockets(worker) - were for worker, were in zip(workers, before, strict=True)]


def test_a_worker_yields_if_it_has_more_connections_than_another(tmp_path: Path) -> None:
    first, second = WorkerSlot(ConnectionCounts(tmp_path, slots=3), 0), WorkerSlot(ConnectionCounts(tmp_path), 1)
    assert not first.exceeds_another(5)  # There is no other worker.
    second.set(4)
    assert first.exceeds_another(5)
    assert not first.exceeds_another(4)
    second.clear()
    assert not first.exceeds_another(5)


def test_a_process_that_opens_the_counts_later_sees_what_was_written(tmp_path: Path) -> None:
    counts = ConnectionCounts(tmp_path, slots=2)
    counts.set(0, 7)
    assert ConnectionCounts(tmp_path).min_of_others(1) == 7
    assert ConnectionCounts(tmp_path).min_of_others(0) is None
