"""Connections are spread evenly over the workers, whether clients connect simultaneously or one after another."""

import time
from contextlib import ExitStack
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit

import pytest

from service.http.connection_counts import ConnectionCounts, WorkerSlot
from tests.support.processes import Server, children, eventually, metric, served_by, serving, sockets


@pytest.mark.timing
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_clients_that_connect_one_after_another_are_spread_evenly(bundle: Path, pause_s: float) -> None:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: metric(server.url, "ctr_workers") == 2, "two workers are running")
        eventually(lambda: served_by(server, 20) == 2, "both workers accept connections")
        rounds = [shares(server, 16, pause_s) for _ in range(5)]
        # Two rounds may be uneven: on a busy machine, a worker may be suspended for longer than the other one yields.
        assert sum(5 <= first <= 11 and 5 <= second <= 11 for first, second in rounds) >= 3, rounds


def shares(server: Server, clients: int, pause_s: float) -> list[int]:
    """Open this many connections, and return how many of them each worker accepted."""
    workers = children(server.process.pid)
    address = ("127.0.0.1", urlsplit(server.url).port)
    before = idle_sockets(workers)

    def taken() -> list[int]:
        return [sockets(worker) - were for worker, were in zip(workers, before, strict=True)]

    with ExitStack() as opened:
        for _ in range(clients):
            opened.enter_context(create_connection(address, timeout=10))
            time.sleep(pause_s)
        eventually(lambda: sum(taken()) == clients, "the last connections are accepted")
        return taken()


def idle_sockets(workers: list[int]) -> list[int]:
    """Wait until the counts are stable, so earlier connections are closed. Return the open sockets of each worker."""
    seen: list[list[int]] = []
    while len(seen) < 5 or any(counts != seen[-1] for counts in seen[-5:]):
        seen.append([sockets(worker) for worker in workers])
        time.sleep(0.05)
    return seen[-1]


def test_a_worker_yields_if_it_has_more_connections_than_another(tmp_path: Path) -> None:
    first, second = WorkerSlot(ConnectionCounts(tmp_path, slots=3), 0), WorkerSlot(ConnectionCounts(tmp_path), 1)
    assert not first.exceeds_another(5)  # There is no other worker.
    second.set(4)
    assert first.exceeds_another(5)
    assert not first.exceeds_another(4)
    second.clear()
    assert not first.exceeds_another(5)


def test_a_process_that_opens_the_counts_later_reads_earlier_values(tmp_path: Path) -> None:
    counts = ConnectionCounts(tmp_path, slots=2)
    counts.set(0, 7)
    assert ConnectionCounts(tmp_path).min_of_others(1) == 7
    assert ConnectionCounts(tmp_path).min_of_others(0) is None
