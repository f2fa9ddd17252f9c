"""HTTP over a socket: oversized heads, upgrades, pipelining and invalid input."""

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.app import a_request
from tests.support.processes import (
    BODY,
    HEAD,
    LENGTH,
    Server,
    answer,
    client_for,
    connected,
    eventually,
    get,
    metric,
    serving,
)

JSON = {"Content-Type": "application/json"}
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"


def send_until_refused(connection: socket.socket, piece: bytes, pieces: int) -> None:
    with suppress(ConnectionError):
        for _ in range(pieces):
            connection.sendall(piece)


@pytest.mark.timing
@pytest.mark.parametrize(
    "start",
    [
        HEAD + b"X-Endless: ",
        HEAD,
        b"GET /",
        b"\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Trailer: ",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;extension=",
    ],
)
def test_an_endless_head_gets_431_and_closes_the_connection(server: Server, start: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(start)
        start_s = time.perf_counter()
        send_until_refused(connection, b"x" * 10_000, 100)
        assert get(f"{server.url}/livez").status_code == 200
        assert time.perf_counter() - start_s < 5  # the timeout for heads
        status, problem = answer(connection)
        assert (status, problem["status"]) in ((431, 431), (400, 400))
        assert status == 431 or start == b"\r\n"  # After b"\r\n", the letters are an invalid method.


def test_a_head_in_one_piece_has_the_same_limits(server: Server) -> None:
    for headers in (b"X: %b\r\n" % (b"x" * 70_000), b"X: y\r\n" * 201, b"X: %b\r\n" % (b"x" * 1000) * 70):
        with connected(server) as connection:
            connection.sendall(HEAD + headers + LENGTH + BODY)
            status, problem = answer(connection)
            assert status == 431
            assert "200 headers" in problem["detail"]
            assert problem["request_id"]
            assert connection.recv(1) == b""


def test_a_head_within_the_limits_is_accepted(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"X: y\r\n" * 190 + b"Y: %b\r\n" % (b"y" * 60_000) + LENGTH + BODY)
        assert answer(connection)[0] == 200


def test_a_large_body_in_small_chunks_is_accepted(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 30_000)
        connection.sendall(b"%x\r\n%b\r\n0\r\nX-Trailer: y\r\n\r\n" % (len(BODY), BODY))
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("upgrade", [H2C, b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("cut", [0, 1, 30, 150, 400])
def test_a_request_for_an_upgrade_keeps_its_body(server: Server, upgrade: bytes, cut: int) -> None:
    request = HEAD + upgrade + LENGTH + BODY
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request[:cut])
            time.sleep(0.02)
            connection.sendall(request[cut:])
            status, scored = answer(connection)
            assert (status, len(scored["scores"])) == (200, 2)


def test_requests_with_and_without_upgrade_can_be_pipelined(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall((HEAD + H2C + LENGTH + BODY + HEAD + LENGTH + BODY) * 2)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 4:
            piece = connection.recv(10_000)
            assert piece
            received += piece


@pytest.mark.parametrize(
    "text", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET \xff / HTTP/1.1\r\n\r\n"]
)
def test_invalid_http_gets_a_problem_document(server: Server, text: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(text)
        status, problem = answer(connection)
    assert (status, problem["status"], problem["title"]) == (400, 400, "Bad Request")


def test_connect_is_refused(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        assert answer(connection)[0] == 405


def test_an_invalid_chunk_gets_a_problem_document(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        time.sleep(0.05)
        connection.sendall(b"no length\r\n")
        assert answer(connection)[0] == 400


@pytest.mark.parametrize(
    ("whole", "broken", "status"),
    [
        (1, b"hello\r\n\r\n", 400),
        (3, b"hello\r\n\r\n", 400),
        (2, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nno length\r\n", 400),
        (2, HEAD + b"X: y\r\n" * 201, 431),
        (2, b"CONNECT x:1 HTTP/1.1\r\n\r\n", 405),
        (65, HEAD + LENGTH + BODY, 429),
        (65, HEAD + H2C + LENGTH + BODY, 429),
    ],
)
def test_complete_requests_are_answered_before_the_connection_is_closed(
    server: Server, whole: int, broken: bytes, status: int
) -> None:
    with connected(server) as connection:
        connection.sendall((HEAD + LENGTH + BODY) * whole + broken)
        text = read_all(connection)
    assert statuses_of(text) == [200] * whole + [status]


def test_no_response_follows_one_that_closes_the_connection(bundle: Path) -> None:
    """A 429 for a request that expects `100 Continue` closes the connection, because the body may or may not follow."""
    body = json.dumps(a_request(candidates=[{"id": 1, "features": {}}] * 1000, timeout_ms=5000)).encode()
    two = HEAD + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n" + HEAD + b"Connection: close\r\n" + LENGTH + BODY
    full = serving(bundle, CTR_WORKERS="1", CTR_MAX_IN_FLIGHT="1", CTR_TIMEOUT_MS="5000")
    with full as server, connected(server) as fills:
        for _ in range(20):
            fills.sendall((HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 10)
            with connected(server) as connection:
                connection.sendall(two)
                statuses = statuses_of(read_all(connection))
            if statuses[0] == 429:
                break
    assert statuses == [429]


def test_a_client_disconnect_releases_all_of_its_pipelined_requests(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        for _ in range(20):
            with connected(server) as connection:
                connection.sendall((HEAD + LENGTH + BODY) * 2)
        eventually(lambda: metric(server.url, "ctr_in_flight_requests") == 0, "no request is in flight")
        eventually(lambda: metric(server.url, "ctr_connections") <= 1, "only the connection for the metrics is open")


def test_any_number_of_upgrades_can_be_pipelined(server: Server) -> None:
    """There are more requests than Python's stack is deep."""
    with connected(server) as connection:
        connection.sendall((b"GET /livez HTTP/1.1\r\n" + H2C + b"\r\n") * 3000)
        assert statuses_of(read_all(connection)) == [200] * 65 + [429]


def test_trailers_are_ignored(server: Server) -> None:
    body = json.dumps(a_request()).encode()  # Without timeout_ms, the header X-Timeout-Ms would apply.
    with connected(server) as connection:
        chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"X-Timeout-Ms: never\r\n\r\n")
        assert answer(connection)[0] == 200


def test_bad_clients_are_not_logged(bundle: Path) -> None:
    with serving(bundle) as server:
        for text in (HEAD + H2C + LENGTH + BODY, b"hello\r\n\r\n", HEAD + b"X: y\r\n" * 201 + b"\r\n"):
            with connected(server) as connection:
                connection.sendall(text)
                answer(connection)
        server.process.terminate()
        _, errors = server.process.communicate(timeout=30)
    assert "WARNING" not in errors
    assert "ERROR" not in errors


def test_a_client_that_sends_its_next_request_after_the_response_has_one_request_in_flight(bundle: Path) -> None:
    """If there are as many clients as the limit allows, no request is refused."""

    def ask(server: Server, times: int) -> list[int]:
        with client_for(server.url) as client:
            return [client.post("/v1/score", content=BODY, headers=JSON).status_code for _ in range(times)]

    limited = serving(bundle, CTR_WORKERS="1", CTR_MAX_IN_FLIGHT="3", CTR_TIMEOUT_MS="5000")
    with limited as server, ThreadPoolExecutor(3) as clients:
        statuses = [status for answers in clients.map(ask, [server] * 3, [150] * 3) for status in answers]
    assert statuses == [200] * 450


def test_a_client_that_stops_reading_is_disconnected(bundle: Path) -> None:
    candidates = [{"id": "i" * 1900 + str(number), "features": {"ad": 1}} for number in range(1000)]
    body = json.dumps(a_request(candidates=candidates, timeout_ms=5000)).encode()
    short_timeouts = serving(bundle, CTR_WORKERS="1", CTR_HEAD_TIMEOUT_MS="1000", CTR_KEEP_ALIVE_MS="60000")
    with short_timeouts as server, socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = server.url.removeprefix("http://").split(":")
        silent.connect((host, int(port)))
        for _ in range(2):
            silent.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        eventually(
            lambda: metric(server.url, 'ctr_request_seconds_count{outcome="ok"}') == 2, "both requests are answered"
        )
        eventually(lambda: metric(server.url, "ctr_connections") <= 1, "only the connection for the metrics is open")


def test_a_head_request_is_not_subject_to_admission_control(bundle: Path) -> None:
    limited = serving(bundle, CTR_WORKERS="1", CTR_MAX_IN_FLIGHT="1", CTR_TIMEOUT_MS="5000")
    with limited as server, connected(server) as connection:
        connection.sendall(HEAD + LENGTH + BODY)
        connection.sendall(b"HEAD /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        both = read_all(connection)
    assert both.startswith(b"HTTP/1.1 200")
    head = both[both.rindex(b"HTTP/1.1 ") :]
    assert head.startswith(b"HTTP/1.1 405")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", [b"score", b"explain"])
def test_an_error_before_an_expected_body_closes_the_connection(server: Server, path: bytes) -> None:
    """The client may or may not send the body, so the next bytes could be a body or a request."""
    head = HEAD.replace(b"json", b"text").replace(b"score", path)
    with connected(server) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 300\r\n\r\n")
        text = read_all(connection)
    assert statuses_of(text) == [404 if path == b"explain" else 415]  # The small bundle has no explanations.
    assert b"\r\nconnection: close\r\n" in text


def statuses_of(text: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", text)]


def read_all(connection: socket.socket) -> bytes:
    text = b""
    while piece := connection.recv(65536):
        text += piece
    return text
