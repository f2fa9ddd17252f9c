"""SIGTERM stops the server at any time with exit code 0, after it has answered earlier requests."""

import json
import signal
import socket
import time
from pathlib import Path

from tests.support.app import a_request
from tests.support.processes import a_free_port, client_for, eventually, get, serving, start


def test_sigterm_stops_the_server_with_exit_code_0(bundle: Path) -> None:
    with serving(bundle) as server:
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=30)
        assert server.process.returncode == 0, errors
        assert "Traceback" not in errors


def test_sigterm_lets_a_request_finish(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(a_request(timeout_ms=5000)).encode()
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + body[:10])
            get(f"{server.url}/livez")  # After this response, the worker has read the head.
            server.process.send_signal(signal.SIGTERM)
            connection.sendall(body[10:])
            assert b"200 OK" in connection.recv(100)
        assert server.process.wait(30) == 0


def test_sigterm_during_startup_stops_the_server_with_exit_code_0(bundle: Path) -> None:
    port = a_free_port()
    with start(CTR_BUNDLE=str(bundle), CTR_PORT=str(port)) as process:
        wait_until_the_port_is_open(port)  # The server opens the port before the bundle.
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert out == ""
    assert "Started server process" not in errors
    assert "Traceback" not in errors


def test_sighup_during_startup_has_no_effect(bundle: Path) -> None:
    port = a_free_port()
    with start(CTR_BUNDLE=str(bundle), CTR_PORT=str(port)) as process:
        try:
            wait_until_the_port_is_open(port)
            process.send_signal(signal.SIGHUP)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("curl ")  # The server is ready.
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def wait_until_the_port_is_open(port: int) -> None:
    for _ in range(3000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server did not start")


def test_readyz_returns_503_on_an_open_connection_while_the_server_drains(bundle: Path) -> None:
    slowly = serving(bundle, CTR_DRAIN_NOTICE_MS="5000")
    with slowly as server, client_for(server.url) as client:
        assert client.get("/readyz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/readyz").status_code == 503, "the server is draining")
        ready = client.get("/readyz")
        assert ready.headers["content-type"] == "application/problem+json"
        assert "draining" in ready.json()["detail"]
        assert client.post("/v1/score", json=a_request(timeout_ms=5000)).status_code == 200
        assert server.process.wait(30) == 0
