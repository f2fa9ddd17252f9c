"""`ctr-collect` from a client's and an operator's view, as a real process over HTTP."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from contract.segments import UNFINISHED
from tests.support.collect import Collect, an_event, collecting, stored_ids, stored_lines
from tests.support.processes import client_for, eventually, get, metric, post

NDJSON = {"Content-Type": "application/x-ndjson"}
KEY = "a-key-for-these-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collect]:
    """A running ctr-collect. Tests share it: do not stop it."""
    with collecting(tmp_path_factory.mktemp("collect"), CTR_COLLECT_MAX_EVENTS="200") as server:
        yield server


def unfinished_ids(folder: Path) -> list[str]:
    lines = [line for path in folder.glob(f"*{UNFINISHED}") for line in path.read_bytes().splitlines()]
    return [json.loads(line)["event_id"] for line in lines]


def test_objects_lists_and_lines_are_on_the_disk_when_the_answer_arrives(server: Collect) -> None:
    bodies = {
        "object": (json.dumps(an_event("object")), None),
        "list": (json.dumps([an_event("list"), an_event("list")]), None),
        "lines": ("\n".join(json.dumps(an_event("lines")) for _ in range(3)), NDJSON),
    }
    for number, (name, (body, headers)) in enumerate(bodies.items(), 1):
        answer = post(f"{server.url}/v1/events", content=body, headers=headers or {"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["stored"], answer.json()["invalid"]) == (202, number, [])
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert unfinished_ids(server.folder).count(name) == number


def test_invalid_events_are_listed_and_the_others_are_stored(server: Collect) -> None:
    before = metric(server.url, 'ctr_collect_events_total{outcome="invalid",type="unknown"}')
    answer = post(f"{server.url}/v1/events", json=[an_event("good"), an_event("bad", x=1), an_event("good")])
    assert answer.status_code == 202
    assert answer.json()["stored"] == 2
    (invalid,) = answer.json()["invalid"]
    assert (invalid["position"], invalid["reason"][:12]) == (1, "unknown: 'x'")
    assert unfinished_ids(server.folder).count("good") == 2
    assert "bad" not in unfinished_ids(server.folder)
    assert metric(server.url, 'ctr_collect_events_total{outcome="invalid",type="unknown"}') == before + 1


def test_a_request_without_a_valid_event_is_an_error_that_lists_the_reasons(server: Collect) -> None:
    answer = post(f"{server.url}/v1/events", json=[an_event(time="now"), 7])
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:problem-type:ctr:no-valid-event"
    assert [invalid["position"] for invalid in answer.json()["invalid"]] == [0, 1]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"[1,", {"Content-Type": "application/json"}, 400),
        (b"", NDJSON, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        (b"[" + b"1," * 200 + b"1]", NDJSON, 413),
        (b" " * (1024**2 + 1), NDJSON, 413),
    ],
)
def test_a_wrong_body_is_a_problem(server: Collect, content: bytes, headers: dict[str, str], status: int) -> None:
    answer = post(f"{server.url}/v1/events", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status


def test_duplicates_are_stored_because_the_join_removes_them(server: Collect) -> None:
    event = an_event("twice")
    for _ in range(2):
        assert post(f"{server.url}/v1/events", json=event).status_code == 202
    assert unfinished_ids(server.folder).count("twice") == 2


def test_metrics_count_what_was_stored(server: Collect) -> None:
    names = (
        'ctr_collect_events_total{outcome="stored",type="conversion"}',
        "ctr_collect_skewed_events_total",
        "ctr_collect_fsync_seconds_count",
        'ctr_collect_request_seconds_count{outcome="ok"}',
    )
    before = [metric(server.url, name) for name in names]
    late = an_event(type="conversion", value=2.5, time="2026-01-01T00:00:00Z")
    fast = an_event(type="conversion", time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600)))
    answer = post(f"{server.url}/v1/events", json=[fast, late])
    assert answer.json()["stored"] == 1
    assert [metric(server.url, name) - was for name, was in zip(names, before, strict=True)] == [1, 1, 1, 1]
    assert metric(server.url, "ctr_collect_free_bytes") > 0
    assert metric(server.url, "ctr_collect_writable") == 1


def test_probes_and_documentation(server: Collect) -> None:
    assert get(f"{server.url}/livez").text == "alive\n"
    assert get(f"{server.url}/readyz").text == "ready\n"
    assert get(f"{server.url}/docs").status_code == 200
    assert list(get(f"{server.url}/openapi.json").json()["paths"]) == ["/v1/events", "/livez", "/readyz", "/metrics"]
    assert get(f"{server.url}/v1/events").status_code == 405


def test_slow_clients_do_not_delay_others(tmp_path: Path) -> None:
    settings = {"CTR_COLLECT_HEAD_TIMEOUT_MS": "1000", "CTR_COLLECT_BODY_TIMEOUT_MS": "1000"}
    with collecting(tmp_path, **settings) as server:
        address = ("127.0.0.1", urlsplit(server.url).port or 0)
        slow = [socket.create_connection(address, timeout=30) for _ in range(20)]
        for number, connection in enumerate(slow):
            head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            connection.sendall(head[:40] if number % 2 else head + b"\r\n[")
        assert post(f"{server.url}/v1/events", json=an_event()).status_code == 202
        answers = [connection.recv(65536) for connection in slow]
        for connection in slow:
            connection.close()
    assert {answer.split(b" ")[1] for answer in answers} == {b"504", b"408"}


def test_a_client_needs_a_key_and_its_name_is_stored(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"shop {KEY}\n")
    with collecting(tmp_path / "events", CTR_COLLECT_API_KEYS_FILE=str(tmp_path / "keys")) as server:
        assert post(f"{server.url}/v1/events", json=an_event()).status_code == 401
        answer = post(f"{server.url}/v1/events", json=an_event(), headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 202
        assert server.stop() == 0
    (event,) = stored_lines(tmp_path / "events")
    assert event["client"] == "shop"


def test_sigterm_answers_what_is_in_flight_and_finishes_the_file(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    stopping = threading.Event()

    def send(number: int, url: str) -> None:
        with client_for(url) as client:
            for count in range(10_000):
                event_id = f"{number}-{count}"
                answer = client.post("/v1/events", json=an_event(event_id))
                assert answer.status_code == 202
                acknowledged.append(event_id)
                if stopping.is_set() or answer.headers.get("connection") == "close":
                    return

    with collecting(tmp_path, CTR_COLLECT_DRAIN_NOTICE_MS="2000") as server:
        senders = [threading.Thread(target=send, args=(number, server.url)) for number in range(4)]
        for sender in senders:
            sender.start()
        eventually(lambda: len(acknowledged) > 50, "events are stored")
        server.process.terminate()
        eventually(lambda: get(f"{server.url}/readyz").status_code == 503, "draining")
        stopping.set()
        for sender in senders:
            sender.join(30)
        assert server.process.wait(30) == 0
    assert not list(tmp_path.glob(f"*{UNFINISHED}"))
    assert sorted(stored_ids(tmp_path)) == sorted(acknowledged)


def test_a_file_is_finished_after_a_while_without_further_events(tmp_path: Path) -> None:
    with collecting(tmp_path, CTR_COLLECT_SEGMENT_S="1") as server:
        assert post(f"{server.url}/v1/events", json=an_event("e")).status_code == 202
        eventually(lambda: stored_ids(tmp_path) == ["e"], "the file is finished")


def test_requests_share_an_fsync(tmp_path: Path) -> None:
    with collecting(tmp_path) as server:

        def send() -> None:
            with client_for(server.url) as client:
                for _ in range(25):
                    assert client.post("/v1/events", json=an_event()).status_code == 202

        senders = [threading.Thread(target=send) for _ in range(8)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert metric(server.url, "ctr_collect_group_requests_sum") == 200
        assert metric(server.url, "ctr_collect_group_requests_count") < 200
        assert metric(server.url, "ctr_collect_fsync_seconds_count") < 200


def test_several_processes_may_share_a_folder(tmp_path: Path) -> None:
    with collecting(tmp_path) as one, collecting(tmp_path) as other:
        for number in range(10):
            for server in (one, other):
                assert post(f"{server.url}/v1/events", json=an_event(str(number))).status_code == 202
        assert len(list(tmp_path.glob(f"*{UNFINISHED}"))) == 2
        os.kill(one.process.pid, 9)
        one.process.wait(30)
        assert other.stop() == 0
        with collecting(tmp_path) as third:  # finishes the file of the process that was killed
            assert third.stop() == 0
    assert sorted(stored_ids(tmp_path)) == sorted([str(number) for number in range(10)] * 2)
