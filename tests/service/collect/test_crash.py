"""After kill -9 at any moment, every event that was answered with 202 is in the files."""

import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.collect import an_event, is_ready, start_collect, stored_ids
from tests.support.processes import a_free_port, client_for, eventually

SENDERS = 3


class Senders:
    """Clients that send events, and send them again until they are acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[str] = set()
        self._url = url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        count = 0
        with client_for(self._url) as client:
            while not self._stopping.is_set():
                ids = [f"{number}-{count}-{position}" for position in range(20)]
                try:
                    answer = client.post("/v1/events", json=[an_event(event_id) for event_id in ids])
                except httpx.TransportError:
                    time.sleep(0.01)
                    continue
                assert answer.status_code == 202
                self.acknowledged.update(ids)
                count += 1

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.full)])
@pytest.mark.timeout(1200)
def test_kill_at_random_moments_loses_no_acknowledged_event(tmp_path: Path, rounds: int) -> None:
    port, moments = a_free_port(), random.Random(rounds)
    url = f"http://127.0.0.1:{port}"
    senders = Senders(url)
    try:
        for _ in range(rounds):
            before = len(senders.acknowledged)
            with start_collect(tmp_path, port) as process:
                eventually(lambda before=before: len(senders.acknowledged) > before, "events are stored")  # type: ignore[misc]
                time.sleep(moments.uniform(0, 0.3))
                process.kill()
    finally:
        senders.stop()
    with start_collect(tmp_path, port) as process:
        eventually(lambda: is_ready(url), "ready")
        process.terminate()
        assert process.wait(30) == 0
    stored = stored_ids(tmp_path)
    assert len(senders.acknowledged) >= rounds * 20
    assert senders.acknowledged <= set(stored)
