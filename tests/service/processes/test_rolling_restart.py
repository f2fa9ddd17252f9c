"""A rolling restart behind a load balancer that probes /readyz and keeps connections alive loses no request."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

import httpx
import pytest

from tests.support.app import a_request
from tests.support.processes import NO_TLS, Server, children, client_for, eventually, private_kib, serving

SETTINGS = {"CTR_WORKERS": "1", "CTR_TIMEOUT_MS": "5000", "CTR_DRAIN_NOTICE_MS": "3000"}


class Balancer:
    """A load balancer that sends requests to the ready servers over keep-alive connections, without retries."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.closed: list[int] = []
        self._ready: list[Server] = []
        self._lock = Lock()
        self._stop = Event()

    @contextmanager
    def running(self, servers: list[Server]) -> Iterator[None]:
        threads = [Thread(target=self._probe, args=(servers,)), *(Thread(target=self._ask) for _ in range(3))]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(self.answers) > 20, "requests are answered")
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)

    def _probe(self, servers: list[Server]) -> None:
        with httpx.Client(timeout=5, verify=NO_TLS) as client:
            while not self._stop.is_set():
                ready = [server for server in list(servers) if is_ready(client, server)]
                with self._lock:
                    self._ready = ready
                time.sleep(0.1)

    def _ask(self) -> None:
        with ExitStack() as stack:
            self._ask_alternately(stack)

    def _ask_alternately(self, stack: ExitStack) -> None:
        clients: dict[str, httpx.Client] = {}
        turn = 0
        while not self._stop.is_set():
            with self._lock:
                ready = list(self._ready)
            if not ready:
                time.sleep(0.01)
                continue
            turn += 1
            server = ready[turn % len(ready)]
            if server.url not in clients:
                clients[server.url] = stack.enter_context(client_for(server.url))
            answer = clients[server.url].post("/v1/score", json=a_request(timeout_ms=5000))
            self.answers.append(answer.status_code)
            if answer.headers.get("connection") == "close":
                self.closed.append(turn)


def is_ready(client: httpx.Client, server: Server) -> bool:
    with suppress(httpx.TransportError):
        return client.get(f"{server.url}/readyz").status_code == 200
    return False


def test_replacing_one_server_after_another_loses_no_request(bundle: Path) -> None:
    balancer = Balancer()
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(bundle, **SETTINGS)) for _ in range(2)]
        with balancer.running(servers):
            for _ in range(2):
                old = servers[0]
                servers.append(stack.enter_context(serving(bundle, **SETTINGS)))
                old.process.send_signal(signal.SIGTERM)
                assert old.process.wait(30) == 0
                servers.remove(old)
            before = len(balancer.answers)
            eventually(lambda: len(balancer.answers) > before + 20, "the new servers answer requests")
    assert balancer.answers == [200] * len(balancer.answers)
    assert balancer.closed  # Responses announced that the server would close the connection.


@pytest.mark.parametrize("requests", [1500, pytest.param(6000, marks=pytest.mark.full)])
def test_memory_is_flat_under_mixed_traffic(bundle: Path, requests: int) -> None:
    """The traffic has valid and invalid requests, new tokens and closed connections, like an hour on a small site."""
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000", CTR_CACHE_TOKENS="2000") as server:
        (worker,) = children(server.process.pid)
        mixed_traffic(server.url, requests // 3, first=0)
        before = private_kib(worker)
        mixed_traffic(server.url, requests, first=10_000)
        grown = private_kib(worker) - before
    assert grown < 4 * 1024


def mixed_traffic(url: str, requests: int, first: int) -> None:
    bad = [b"{", b"[" * 5000, b'{"context": {"user": []}, "candidates": []}', b"\xff"]
    headers = {"Content-Type": "application/json"}
    client = client_for(url)
    for number in range(first, first + requests):
        if number % 50 == 0:  # Close the connection and open a new one.
            client.close()
            client = client_for(url)
        if number % 10 == 0:
            assert client.post("/v1/score", content=bad[number // 10 % 4], headers=headers).status_code in (400, 422)
        context = {"user": f"new-{number}", f"ignored-{number}": 1}
        answer = client.post("/v1/score", json=a_request(context=context), headers={"X-Request-Id": f"r{number}"})
        assert answer.status_code == 200
    client.close()
