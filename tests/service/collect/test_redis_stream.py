"""The Redis stream: entries are acknowledged only when they are on the disk, whatever happens to Redis."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.collect import Collect, an_event, collecting, start_collect, stored_ids, stored_lines
from tests.support.processes import a_free_port, eventually, get, metric, post
from tests.support.redis_server import RedisServer, start_redis, stopped

STREAM, GROUP = "ctr-events", "ctr-collect"


@contextmanager
def reading(folder: Path, server: RedisServer, **settings: str) -> Iterator[Collect]:
    defaults = {"CTR_COLLECT_REDIS_URL": server.url, "CTR_COLLECT_REDIS_RECLAIM_S": "0.5"}
    with collecting(folder, **(defaults | settings)) as collect:
        yield collect


def add(client: "redis.Redis", *events: Any) -> None:
    for event in events:
        client.xadd(STREAM, {"event": event if isinstance(event, bytes) else json.dumps(event)})


def acknowledged(url: str) -> float:
    return metric(url, "ctr_collect_redis_entries_total")


def pending(client: "redis.Redis") -> int:
    count: int = client.xpending(STREAM, GROUP)["pending"]
    return count


def test_entries_are_stored_and_then_acknowledged(tmp_path: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client, reading(tmp_path, redis_server) as server:
        add(client, *(an_event(str(number)) for number in range(250)), [an_event("a"), an_event("b")])
        eventually(lambda: acknowledged(server.url) == 251, "all entries are acknowledged")
        assert pending(client) == 0
        assert client.xlen(STREAM) == 251
        assert server.stop() == 0
    assert stored_ids(tmp_path) == [*map(str, range(250)), "a", "b"]


def test_entries_can_be_deleted_after_they_are_stored(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = {"CTR_COLLECT_REDIS_DELETE": "true"}
    with redis_server.client() as client, reading(tmp_path, redis_server, **settings) as server:
        add(client, an_event(), an_event())
        eventually(lambda: acknowledged(server.url) == 2, "all entries are acknowledged")
        assert client.xlen(STREAM) == 0


def test_invalid_entries_are_kept_in_a_separate_file(tmp_path: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client, reading(tmp_path, redis_server) as server:
        add(client, b"\xff{", [an_event("good"), an_event("bad", x=1)])
        client.xadd(STREAM, {"another": "field"})
        client.xadd(STREAM, {"event": b" " * (1024**2 + 1)})
        eventually(lambda: acknowledged(server.url) == 4, "all entries are acknowledged")
        assert metric(server.url, 'ctr_collect_events_total{outcome="invalid",type="unknown"}') == 4
        assert server.stop() == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read().count("has invalid events") == 4
    assert stored_ids(tmp_path) == ["good"]
    (file,) = (tmp_path / "invalid").glob("invalid-*.ndjson")
    kept = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["event"][:5] for line in kept] == ["\\xff{", '[{"ev', "", "     "]
    assert [line["invalid"][0]["position"] for line in kept] == [0, 1, 0, 0]
    assert "unknown: 'x'" in kept[1]["invalid"][0]["reason"]


def test_entries_of_a_dead_consumer_are_taken_over(tmp_path: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        add(client, an_event("left"))
        client.xreadgroup(GROUP, "dead", {STREAM: ">"})
        assert pending(client) == 1
        with reading(tmp_path, redis_server) as server:
            eventually(lambda: acknowledged(server.url) == 1, "the entry is acknowledged")
            assert pending(client) == 0
            assert server.stop() == 0
    assert stored_ids(tmp_path) == ["left"]


def test_a_kill_loses_no_entry(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = {"CTR_COLLECT_REDIS_URL": redis_server.url, "CTR_COLLECT_REDIS_RECLAIM_S": "0.5"}
    ids = [str(number) for number in range(4000)]
    with redis_server.client() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        with client.pipeline(transaction=False) as pipeline:
            for event_id in ids:
                pipeline.xadd(STREAM, {"event": json.dumps(an_event(event_id))})
            pipeline.execute()
        for pause_s in (0.0, 0.05, 0.1):
            with start_collect(tmp_path, a_free_port(), **settings) as process:
                had = client.xinfo_groups(STREAM)[0]["entries-read"]
                eventually(lambda had=had: client.xinfo_groups(STREAM)[0]["entries-read"] != had, "reading")  # type: ignore[misc]
                time.sleep(pause_s)
                process.kill()
        with reading(tmp_path, redis_server) as server:
            eventually(
                lambda: pending(client) == 0 and client.xinfo_groups(STREAM)[0]["lag"] == 0, "everything acknowledged"
            )
            assert server.stop() == 0
    assert set(stored_ids(tmp_path)) == set(ids)


def test_a_stopped_redis_loses_nothing_and_does_not_affect_http(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with (
        start_redis(tmp_path / "redis") as redis_server,
        redis_server.client() as client,
        reading(tmp_path / "events", redis_server) as server,
    ):
        add(client, an_event("before"))
        eventually(lambda: acknowledged(server.url) == 1, "the entry is acknowledged")
        with stopped(redis_server):
            eventually(lambda: metric(server.url, "ctr_collect_redis_up") == 0, "Redis counts as down")
            start_s = time.monotonic()
            assert post(f"{server.url}/v1/events", json=an_event("http")).status_code == 202
            assert time.monotonic() - start_s < 2
            assert get(f"{server.url}/readyz").status_code == 200
        add(client, an_event("after"))
        eventually(lambda: acknowledged(server.url) == 2, "the entry is acknowledged")
        assert metric(server.url, "ctr_collect_redis_up") == 1
        assert server.stop() == 0
    assert sorted(stored_ids(tmp_path / "events")) == ["after", "before", "http"]


def test_redis_may_start_later_and_lose_the_stream(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    port = a_free_port()
    url = f"redis://:a-secret-word@127.0.0.1:{port}/0"
    with collecting(tmp_path / "events", CTR_COLLECT_REDIS_URL=url) as server:
        eventually(lambda: metric(server.url, "ctr_collect_redis_up") == 0, "Redis counts as down")
        with start_redis(tmp_path / "redis", port=port) as redis_server, redis_server.client() as client:
            add(client, an_event("first"))
            eventually(lambda: acknowledged(server.url) == 1, "the entry is acknowledged")
            client.flushall()
            add(client, an_event("second"))
            eventually(lambda: acknowledged(server.url) == 2, "the entry is acknowledged")
            assert server.stop() == 0
    assert stored_ids(tmp_path / "events") == ["first", "second"]


def test_a_full_disk_leaves_entries_in_the_stream(tmp_path: Path, redis_server: RedisServer) -> None:
    settings = {"CTR_COLLECT_MAX_BYTES": str(1024**2)}
    big = [an_event("x" * 100) for _ in range(900)]
    with redis_server.client() as client:
        with reading(tmp_path, redis_server, **settings) as server:
            for _ in range(5):
                add(client, big)
            eventually(lambda: metric(server.url, "ctr_collect_write_failures_total") >= 1, "the folder is full")
            assert server.stop() == 0
        stored = len(stored_ids(tmp_path))
        assert stored < 4500
        assert pending(client) > 0
        with reading(tmp_path, redis_server) as server:
            eventually(lambda: pending(client) == 0, "all entries are acknowledged")
            assert server.stop() == 0
    assert len(stored_ids(tmp_path)) == 4500


def test_events_that_waited_for_a_full_disk_are_received_when_they_are_stored(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    full = tmp_path / "events-1.ndjson"
    with (
        redis_server.client() as client,
        reading(tmp_path, redis_server, CTR_COLLECT_MAX_BYTES=str(1024**2)) as server,
    ):
        full.write_bytes(bytes(1024**2))
        eventually(lambda: metric(server.url, "ctr_collect_writable") == 0, "the folder is full")
        add(client, an_event("waiting"))
        eventually(lambda: metric(server.url, "ctr_collect_write_failures_total") >= 1, "the event waits")
        room_s = time.time()
        full.unlink()
        eventually(lambda: acknowledged(server.url) == 1, "the entry is acknowledged")
        assert server.stop() == 0
    (event,) = stored_lines(tmp_path)
    assert datetime.fromisoformat(event["received"]).timestamp() > room_s - 0.001


def test_the_lag_of_the_group_is_a_metric(tmp_path: Path, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        add(client, *(an_event(str(number)) for number in range(300)))
        client.xreadgroup(GROUP, "another", {STREAM: ">"}, count=20)
        with reading(tmp_path, redis_server, CTR_COLLECT_REDIS_RECLAIM_S="3600") as server:
            eventually(lambda: metric(server.url, "ctr_collect_redis_pending_entries") == 20, "the lag is measured")
            eventually(lambda: metric(server.url, "ctr_collect_redis_unread_entries") == 0, "the lag is measured")


@pytest.mark.parametrize("text", ["redis://host:1/0?nonsense=1", "http://host"])
def test_a_wrong_url_prevents_startup(tmp_path: Path, text: str) -> None:
    with start_collect(tmp_path, 0, CTR_COLLECT_REDIS_URL=text) as process:
        assert process.wait(30) == 2
        assert process.stderr is not None
        assert "CTR_COLLECT_REDIS_URL: not a valid Redis URL" in process.stderr.read()
