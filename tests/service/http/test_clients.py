"""Slow clients, clients that do not read, and too many clients, over real sockets."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from contract.bundle import open_bundle
from service.vocabulary.publish import publish
from tests.support.app import a_request
from tests.support.processes import (
    BODY,
    HEAD,
    LENGTH,
    Server,
    answer,
    connected,
    eventually,
    get,
    metric,
    post,
    serving,
)
from tests.support.redis_server import RedisServer, start_redis

PART = HEAD + LENGTH + BODY[:10]


@pytest.fixture(scope="module")
def short_timeouts(bundle: Path) -> Iterator[Server]:
    limits = {"CTR_HEAD_TIMEOUT_MS": "500", "CTR_BODY_TIMEOUT_MS": "500", "CTR_KEEP_ALIVE_MS": "1000"}
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000", CTR_MAX_CONNECTIONS="20", **limits) as server:
        yield server


def closed_after_s(connection: socket.socket, start_s: float) -> float:
    connection.settimeout(20)
    while connection.recv(65536):
        pass
    return time.monotonic() - start_s


@pytest.mark.parametrize("start", [b"", b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_without_a_complete_head_is_closed(short_timeouts: Server, start: bytes) -> None:
    start_s = time.monotonic()
    with connected(short_timeouts) as connection:
        connection.sendall(start)
        assert 0.3 < closed_after_s(connection, start_s) < 5


def test_a_head_that_arrives_byte_by_byte_gets_408(short_timeouts: Server) -> None:
    with connected(short_timeouts) as connection:
        start_s = time.monotonic()
        connection.settimeout(0.1)
        said = b""
        for byte in HEAD * 10:
            try:
                connection.sendall(bytes([byte]))
                said += connection.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if said:
                break
        assert said.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start_s < 5


def test_a_body_that_does_not_arrive_gets_504(short_timeouts: Server) -> None:
    with connected(short_timeouts) as connection:
        connection.sendall(PART)
        status, problem = answer(connection)
    assert status == 504
    assert "body did not arrive" in problem["detail"]


def test_an_idle_connection_is_closed_after_its_timeout(short_timeouts: Server) -> None:
    with connected(short_timeouts) as connection:
        connection.sendall(HEAD + LENGTH + BODY)
        start_s = time.monotonic()
        assert answer(connection)[0] == 200
        assert 0.5 < closed_after_s(connection, start_s) < 6


def test_connections_above_the_limit_wait_until_others_close(short_timeouts: Server) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(short_timeouts)).sendall(b"POST /v1/sc")
        start_s = time.monotonic()
        reply = post(f"{short_timeouts.url}/v1/score", json=a_request())
        assert reply.status_code == 200
        assert time.monotonic() - start_s < 10


def test_too_many_pipelined_requests_are_refused(short_timeouts: Server) -> None:
    asks = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with connected(short_timeouts) as connection:
        connection.sendall(asks)
        said = b""
        with suppress(ConnectionError):
            while piece := connection.recv(1_000_000):
                said += piece
    assert b"HTTP/1.1 429 " in said
    assert b"Read the responses first" in said


def test_a_client_that_does_not_read_responses_is_disconnected(short_timeouts: Server) -> None:
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(short_timeouts) as connection:
        start_s = time.monotonic()
        with pytest.raises(ConnectionError):
            keep_asking(connection, ask, start_s + 20)
    assert get(f"{short_timeouts.url}/livez").status_code == 200


def keep_asking(connection: socket.socket, ask: bytes, end_s: float) -> None:
    while time.monotonic() < end_s:
        connection.sendall(ask)
        time.sleep(0.001)


@pytest.fixture(scope="module")
def redis(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        with server.client() as client:
            publish(client, open_bundle(bundle))
        yield server


@pytest.fixture(scope="module")
def one_at_a_time(bundle: Path, redis: RedisServer) -> Iterator[Server]:
    settings = {"CTR_REDIS_URL": redis.url, "CTR_REDIS_TIMEOUT_MS": "1000", "CTR_CACHE_TOKENS": "0"}
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000", CTR_MAX_IN_FLIGHT="1", **settings) as server:
        yield server


@pytest.fixture
def narrow(one_at_a_time: Server, redis: RedisServer) -> Iterator[Server]:
    """A server that admits one request at a time. The request waits for a stopped Redis for 1 s, or until `thaw()`."""
    eventually(lambda: in_flight(one_at_a_time) == 0, "no request is in flight")
    redis.process.send_signal(signal.SIGSTOP)
    yield one_at_a_time
    thaw(redis)


def thaw(redis: RedisServer) -> None:
    redis.process.send_signal(signal.SIGCONT)


def in_flight(server: Server) -> float:
    return metric(server.url, "ctr_in_flight_requests")


@pytest.mark.timing
def test_a_request_above_the_limit_gets_429_immediately_and_keeps_its_connection(
    narrow: Server, redis: RedisServer
) -> None:
    before = metric(narrow.url, 'ctr_request_seconds_count{outcome="overloaded"}')
    with connected(narrow) as first, connected(narrow) as second:
        first.sendall(HEAD + LENGTH + BODY)
        eventually(lambda: in_flight(narrow) == 1, "the first request is in flight")
        for _ in range(3):
            second.sendall(HEAD + b"X-Request-Id: mine\r\n" + LENGTH + BODY)
            status, problem = answer(second)
            assert (status, problem["request_id"]) == (429, "mine")
            assert problem["type"] == "urn:problem-type:ctr:overloaded"
        # The request is sent in two pieces, the rest of the body after the response.
        second.sendall(PART)
        assert answer(second)[0] == 429
        thaw(redis)
        assert answer(first)[0] == 200
        eventually(lambda: in_flight(narrow) == 0, "no request is in flight")
        second.sendall(BODY[10:] + HEAD + LENGTH + BODY)
        assert answer(second)[0] == 200
    assert metric(narrow.url, 'ctr_request_seconds_count{outcome="overloaded"}') == before + 4


@pytest.mark.timing
def test_a_429_has_retry_after_and_other_routes_are_served(narrow: Server, redis: RedisServer) -> None:
    with connected(narrow) as first, connected(narrow) as second:
        first.sendall(HEAD + LENGTH + BODY)
        eventually(lambda: in_flight(narrow) == 1, "the first request is in flight")
        refused = post(f"{narrow.url}/v1/score", json=a_request())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert get(f"{narrow.url}/readyz").status_code == 200
        second.sendall(HEAD + b"Expect: 100-continue\r\n" + LENGTH)
        assert answer(second)[0] == 429
        assert second.recv(1) == b""  # The server closes it: the next bytes could be the body or a request.
        thaw(redis)
        assert answer(first)[0] == 200


@pytest.mark.timing
def test_clients_that_send_no_body_do_not_block_others(narrow: Server, redis: RedisServer) -> None:
    thaw(redis)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(narrow)).sendall(PART)
        time.sleep(0.1)
        assert post(f"{narrow.url}/v1/score", json=a_request()).status_code == 200
    eventually(lambda: in_flight(narrow) == 0, "no request is in flight")


@pytest.mark.timing
def test_a_client_disconnect_releases_its_in_flight_slot(narrow: Server, redis: RedisServer) -> None:
    with connected(narrow) as first:
        first.sendall(HEAD + LENGTH + BODY)
        eventually(lambda: in_flight(narrow) == 1, "the first request is in flight")
    eventually(lambda: in_flight(narrow) == 0, "no request is in flight")
    thaw(redis)
    assert post(f"{narrow.url}/v1/score", json=a_request()).status_code == 200


@pytest.mark.timing
def test_a_client_that_does_not_read_its_429_is_disconnected(narrow: Server) -> None:
    ask = HEAD + b"Content-Length: 0\r\n\r\n"
    with connected(narrow) as first, connected(narrow) as greedy:
        first.sendall(HEAD + LENGTH + BODY)
        eventually(lambda: in_flight(narrow) == 1, "the first request is in flight")
        with pytest.raises(ConnectionError):
            keep_asking(greedy, ask * 200, time.monotonic() + 20)


def test_unfinished_bodies_cannot_fill_the_memory(bundle: Path) -> None:
    limits = {
        "CTR_MAX_BUFFERED_BYTES": "400000",
        "CTR_MAX_BODY_BYTES": "400000",
        "CTR_BODY_TIMEOUT_MS": "20000",
        "CTR_WORKERS": "1",
    }
    body = b'{"context": {"user": "' + b"x" * 150_000
    with serving(bundle, **limits) as server, ExitStack() as stack:
        first = [stack.enter_context(connected(server)) for _ in range(2)]
        for connection in first:
            connection.sendall(HEAD + b"Content-Length: 300000\r\n\r\n" + body)

        def is_refused() -> bool:
            """Return whether a third body is refused. Until the server has read the first two, it is not."""
            with connected(server) as greedy:
                greedy.settimeout(1)
                with suppress(TimeoutError):
                    greedy.sendall(HEAD + b"Content-Length: 300000\r\n\r\n" + body)
                    status, problem = answer(greedy)
                    return status == 429 and "fill this server's buffer" in problem["detail"]
            return False

        eventually(is_refused, "a third body is refused")
        assert post(f"{server.url}/v1/score", json=a_request(timeout_ms=5000)).status_code == 200
        for connection in first:
            connection.close()
