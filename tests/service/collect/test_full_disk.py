"""A full disk or folder answers 503, loses no acknowledged event, and recovers by itself."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.segments import FINISHED, SHIPPED, finished_files
from service.collect.errors import StorageFull
from service.collect.event_folder import EventFolder
from service.collect.metrics import CollectMetrics
from service.collect.settings import CollectSettings
from tests.support.collect import Collect, an_event, collecting, start_collect, stored_ids, stored_lines
from tests.support.processes import a_free_port, client_for, eventually, get, metric, post

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "ctr-collect-test", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(server: Collect, prefix: str) -> list[str]:
    """Send events until the answer is 503. Return the ids of the acknowledged ones."""
    acknowledged: list[str] = []
    with client_for(server.url) as client:
        for number in range(1000):
            ids = [f"{prefix}-{number}-{position}" for position in range(100)]
            answer = client.post("/v1/events", json=[an_event(event_id) for event_id in ids])
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["type"] == "urn:problem-type:ctr:storage-full"
                return acknowledged
            assert answer.status_code == 202
            acknowledged += ids
    raise AssertionError("the disk did not become full")


def becomes_ready(server: Collect, status: int) -> None:
    eventually(lambda: get(f"{server.url}/readyz").status_code == status, f"readyz answers {status}")


def test_a_full_disk_loses_no_acknowledged_event(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(MIB))
    with collecting(small_disk / "events") as server:
        acknowledged = fill(server, "before")
        becomes_ready(server, 503)
        assert get(f"{server.url}/livez").status_code == 200
        assert metric(server.url, "ctr_collect_writable") == 0
        assert metric(server.url, "ctr_collect_write_failures_total") >= 1
        ballast.unlink()
        becomes_ready(server, 200)
        acknowledged += fill(server, "after")
        server.process.kill()
        server.process.wait(30)
    # The next start finishes the file, although the disk is still full.
    with start_collect(small_disk / "events", a_free_port()) as process:
        eventually(lambda: len(stored_lines(small_disk / "events")) > 0, "the file is finished")
        process.terminate()
        assert process.wait(30) == 0
    stored = [event["event_id"] for event in stored_lines(small_disk / "events")]
    assert len(acknowledged) > 1000
    assert stored == acknowledged


def test_events_are_not_stored_again_and_again_while_invalid_entries_cannot_be_stored(tmp_path: Path) -> None:
    folder = EventFolder(CollectSettings(folder=tmp_path), CollectMetrics())
    (tmp_path / "invalid").rmdir()
    (tmp_path / "invalid").touch()
    for _ in range(2):  # The reader of the stream tries again until both are stored.
        with pytest.raises(StorageFull):
            folder.store(b"event\n", b"invalid\n")
    (tmp_path / "invalid").unlink()
    folder.store(b"event\n", b"invalid\n")
    folder.close()
    assert [path.read_bytes() for path in finished_files(tmp_path)] == [b"event\n"]


def test_a_full_folder_answers_503_until_files_are_shipped_and_deletes_nothing_else(tmp_path: Path) -> None:
    with collecting(tmp_path, CTR_COLLECT_MAX_BYTES=str(MIB), CTR_COLLECT_SEGMENT_S="1") as server:
        acknowledged = fill(server, "before")
        becomes_ready(server, 503)
        eventually(lambda: len(stored_lines(tmp_path)) == len(acknowledged), "the files are finished")
        assert sum(path.stat().st_size for path in finished_files(tmp_path)) <= MIB
        oldest, *others = finished_files(tmp_path)
        shipped = [json.loads(line)["event_id"] for line in oldest.read_bytes().splitlines()]
        oldest.rename(oldest.with_name(oldest.name.removesuffix(FINISHED) + SHIPPED))
        becomes_ready(server, 200)
        more = fill(server, "after")
        assert server.stop() == 0
    assert all(path.exists() for path in others)
    stored = [event["event_id"] for event in stored_lines(tmp_path)]
    assert set(stored) == set(acknowledged + more) - set(shipped)


def test_a_folder_that_is_moved_keeps_its_events_and_later_ones_go_to_a_new_folder(tmp_path: Path) -> None:
    with collecting(tmp_path / "events") as server:
        assert post(f"{server.url}/v1/events", json=an_event("first")).status_code == 202
        (tmp_path / "events").rename(tmp_path / "moved")
        eventually((tmp_path / "events").is_dir, "the folder is created again")
        becomes_ready(server, 200)
        assert post(f"{server.url}/v1/events", json=an_event("second")).status_code == 202
        assert server.stop() == 0
    with collecting(tmp_path / "moved") as server:
        assert server.stop() == 0
    assert stored_ids(tmp_path / "events") == ["second"]
    assert stored_ids(tmp_path / "moved") == ["first"]
