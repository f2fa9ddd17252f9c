"""Connections are spread evenly over the workers, whether clients connect simultaneously or one after another."""

import time
from contextlib import ExitStack
from pathlib import Path
from socket import create_connection
from statistics import median
from urllib.parse import urlsplit

import psutil
import pytest

from service.http.connection_counts import ConnectionCounts, WorkerSlot
from service.processes.server import CHECK_S
from service.telemetry.metrics_folder import FOLDER_VARIABLE
from tests.support.processes import Server, accepting_workers, children, client_ports, eventually, serving


@pytest.mark.timing
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_clients_that_connect_one_after_another_are_spread_evenly(bundle: Path, pause_s: float) -> None:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: accepting_workers(server) == 2, "both workers accept connections")
        rounds = [shares(server, 16, pause_s) for _ in range(5)]
        # Two rounds may be uneven: on a busy machine, a worker may be suspended for longer than the other one yields.
        assert sum(5 <= first <= 11 and 5 <= second <= 11 for first, second in rounds) >= 3, rounds


def shares(server: Server, clients: int, pause_s: float) -> list[int]:
    """Open this many connections, and return how many of them each worker accepted."""
    port = urlsplit(server.url).port
    workers = children(server.process.pid)
    eventually(lambda: not any(client_ports(worker, port) for worker in workers), "earlier connections are closed")
    with ExitStack() as opened:
        ports = set()
        for _ in range(clients):
            connection = opened.enter_context(create_connection(("127.0.0.1", port), timeout=10))
            ports.add(connection.getsockname()[1])
            time.sleep(pause_s)

        def accepted() -> list[int]:
            return [len(client_ports(worker, port) & ports) for worker in workers]

        eventually(lambda: sum(accepted()) == clients, "the last connections are accepted")
        return accepted()


def test_a_worker_publishes_its_count_as_soon_as_a_connection_is_closed(bundle: Path) -> None:
    """Otherwise, if all clients of a worker reconnect at once, the other workers would accept all of them."""
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        (worker,) = children(server.process.pid)
        counts = ConnectionCounts(Path(psutil.Process(worker).environ()[FOLDER_VARIABLE]))
        port = urlsplit(server.url).port

        def count() -> int | None:
            return counts.min_of_others(slot=-1)

        connections = [create_connection(("127.0.0.1", port), timeout=10) for _ in range(16)]
        eventually(lambda: count() == 16 == len(client_ports(worker, port)), "all connections are counted")
        waited_s = []
        for left, connection in reversed(list(enumerate(connections))):
            start_s = time.monotonic()
            connection.close()
            while count() != left:
                assert time.monotonic() - start_s < 60
                time.sleep(0.001)
            waited_s.append(time.monotonic() - start_s)
        # If the count were published only every CHECK_S, each wait but the first would be as long as that.
        assert median(waited_s) < CHECK_S / 2


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
