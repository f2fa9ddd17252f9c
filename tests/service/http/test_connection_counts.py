"""Connections are shared out among the workers, however their clients come."""

import time
from contextlib import ExitStack
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit

import pytest

from service.http.connection_counts import Board, Place
from tests.support.processes import Server, children, eventually, metric, served_by, serving, sockets


@pytest.mark.timing
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_clients_that_connect_one_after_the_other_are_shared_out_evenly(bundle: Path, pause_s: float) -> None:
    with serving(bundle, CTR_WORKERS="2", CTR_TIMEOUT_MS="5000") as server:
        eventually(lambda: metric(server.url, "ctr_workers") == 2, "two workers")
        eventually(lambda: served_by(server, 20) == 2, "both take connections")
        rounds = [shares(server, 16, pause_s) for _ in range(5)]
        # in one of them a busy machine may let a worker stand still for longer than the other one waits for it
        assert sum(5 <= first <= 11 and 5 <= second <= 11 for first, second in rounds) >= 3, rounds


def shares(server: Server, clients: int, pause_s: float) -> list[int]:
    """How many of so many connections each worker has."""
    workers = children(server.process.pid)
    address = ("127.0.0.1", urlsplit(server.url).port)
    before = idle_sockets(workers)

    def taken() -> list[int]:
        return [sockets(worker) - were for worker, were in zip(workers, before, strict=True)]

    with ExitStack() as opened:
        for _ in range(clients):
            opened.enter_context(create_connection(address, timeout=10))
            time.sleep(pause_s)
        eventually(lambda: sum(taken()) == clients, "the last ones are taken")
        return taken()


def idle_sockets(workers: list[int]) -> list[int]:
    """What each worker has open when all connections have ended: as often as it takes to see the same for a while."""
    seen: list[list[int]] = []
    while len(seen) < 5 or any(counts != seen[-1] for counts in seen[-5:]):
        seen.append([sockets(worker) for worker in workers])
        time.sleep(0.05)
    return seen[-1]


def test_the_one_with_more_connections_than_another_steps_aside(tmp_path: Path) -> None:
    first, second = (Place(Board(tmp_path, places=3), 0), Place(Board(tmp_path), 1))
    assert not first.has_more(5)  # nobody else is there
    second.put(4)
    assert first.has_more(5)
    assert not first.has_more(4)
    second.leave()
    assert not first.has_more(5)


def test_a_place_is_seen_by_whoever_opens_the_board_later(tmp_path: Path) -> None:
    board = Board(tmp_path, places=2)
    board.put(0, 7)
    assert Board(tmp_path).fewest_of_others(1) == 7
    assert Board(tmp_path).fewest_of_others(0) is None
