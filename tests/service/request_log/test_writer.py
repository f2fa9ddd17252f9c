"""The request log's writer: no request waits for the disk, memory is limited, and every lost line is counted."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from contract.segments import unfinished_files
from contract.units import BUCKETS, REQUEST_LOG_SALT, bucket
from service.request_log import writer
from service.request_log.writer import RequestLog
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.test_segments import full_at
from tests.support.request_log import BODY, a_line, read_log, read_unfinished

MIB = 1024**2


def a_log(folder: Path, **settings: Any) -> tuple[RequestLog, Metrics]:
    metrics = Metrics()
    values = {"bundle": folder, "request_log": folder, "request_log_sample": 1.0, **settings}
    return RequestLog(Settings(**values), metrics), metrics


def dropped(metrics: Metrics, reason: str) -> float:
    return metrics.not_logged.labels(reason)._value.get()  # type: ignore[no-any-return]


def written(metrics: Metrics) -> float:
    return metrics.logged._value.get()  # type: ignore[no-any-return]


def wait_until(condition: Any) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition was not met within 30 s")


@pytest.mark.parametrize("sample", [0.0, 0.0001, 0.3, 0.9999, 1.0])
def test_units_are_sampled_by_their_bucket(tmp_path: Path, sample: float) -> None:
    log, _ = a_log(tmp_path, request_log_sample=sample)
    units = [f"u{number}" for number in range(5000)]
    sampled = [unit for unit in units if log.samples(unit)]
    assert sampled == [unit for unit in units if bucket(REQUEST_LOG_SALT, unit) < round(sample * BUCKETS)]
    without_unit = sum(log.samples(None) for _ in range(5000)) / 5000
    assert abs(without_unit - sample) < 0.04
    assert (without_unit == sample) or 0 < sample < 1
    log.close()


def test_if_the_disk_is_not_writable_only_lines_are_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "log"
    log, metrics = a_log(folder)
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    for _ in range(3):
        log.offer(a_line())
    wait_until(lambda: dropped(metrics, "write") == 3)
    assert caplog.text.count("cannot be written") == 1
    folder.unlink()
    log.offer(a_line())
    log.close()
    assert len(read_log(folder)) == 1


def test_the_log_does_not_count_as_writable_before_a_line_was_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(writer, "SYNC_S", 0.02)
    folder = tmp_path / "log"
    log, metrics = a_log(folder)
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    for number in range(3):
        log.offer(a_line())
        wait_until(lambda count=number + 1: dropped(metrics, "write") == count)
        time.sleep(0.1)  # Meanwhile, there is nothing to sync, and no file to finish.
    assert caplog.text.count("cannot be written") == 1
    assert "written again" not in caplog.text
    folder.unlink()
    log.offer(a_line())
    wait_until(lambda: written(metrics) == 1)
    log.close()
    assert caplog.text.count("written again") == 1


def test_lines_that_a_failed_fsync_removes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_S", 0.1)
    log, metrics = a_log(tmp_path)
    log.offer(a_line())
    wait_until(lambda: written(metrics) == 1)
    time.sleep(1)  # until it is synced

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", fail)
        for _ in range(3):
            log.offer(a_line())
        wait_until(lambda: dropped(metrics, "write") == 3)
    log.close()
    assert dropped(metrics, "write") == 3
    assert len(read_log(tmp_path)) == 1


def test_a_full_disk_loses_counted_lines_and_no_others(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path)
    with full_at(5000):
        for _ in range(40):
            log.offer(a_line())
        wait_until(lambda: dropped(metrics, "write") + written(metrics) == 40)
    assert 0 < written(metrics) < 40
    log.offer(a_line())
    log.close()
    assert len(read_log(tmp_path)) == written(metrics)


def test_a_folder_that_is_removed_is_created_again(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path / "log")
    for lines in (1, 2):
        log.offer(a_line())
        wait_until(lambda lines=lines: written(metrics) == lines)
        if lines == 1:
            shutil.rmtree(tmp_path / "log")
    log.close()
    assert len(read_log(tmp_path / "log")) == 1
    assert dropped(metrics, "write") == 0


def stop_disk(log: RequestLog, folder: Path) -> int:
    """Replace the log's open file by a FIFO that nobody reads, so that writes block. Return a reader of the FIFO."""
    fifo = folder / "requests-0.ndjson.part"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log._segments._file = fifo.open("wb", buffering=0)
    log._segments._path = fifo
    log._segments._opened_s = time.time()
    return reader


def test_the_memory_is_limited_while_the_disk_is_stopped_and_no_request_waits(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path, request_log_queue_bytes=4 * MIB)
    reader = stop_disk(log, tmp_path)
    tracemalloc.start()
    longest_s = 0.0
    for number in range(2000):  # 40 MB
        line = a_line(BODY.replace(b"u1", b"x" * (20_000 + number % 2)))
        start_s = time.perf_counter()
        log.offer(line)
        longest_s = max(longest_s, time.perf_counter() - start_s)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * MIB
    assert 1700 < dropped(metrics, "queue") < 1900
    assert longest_s < 1  # The disk never continues.
    os.set_blocking(reader, True)
    threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, MIB), b"")], daemon=True).start()
    wait_until(lambda: dropped(metrics, "queue") + written(metrics) == 2000)
    wait_until(lambda: log._queued_bytes == 0)  # The queue accepts lines again.
    log.close()


def test_lines_that_a_stopped_disk_still_holds_back_at_the_end_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.request_log.writer.CLOSE_TIMEOUT_S", 0.5)
    log, metrics = a_log(tmp_path)
    reader = stop_disk(log, tmp_path)
    for _ in range(10):
        log.offer(a_line(BODY.replace(b"u1", b"x" * 20_000)))
    log.close()
    assert 0 < dropped(metrics, "close") == 10 - written(metrics)
    assert f"the last {dropped(metrics, 'close'):.0f} lines are lost" in caplog.text
    os.close(reader)


def test_a_line_larger_than_the_queue_is_logged_if_the_queue_is_empty(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path, request_log_queue_bytes=MIB)
    log.offer(a_line(BODY[:-1] + b" " * 2 * MIB + b"}"))
    wait_until(lambda: written(metrics) == 1)
    log.close()
    assert dropped(metrics, "queue") == 0


def test_lines_reach_the_disk_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(time.monotonic())
        fsync(descriptor)

    log, metrics = a_log(tmp_path)
    log.offer(a_line())
    wait_until(lambda: written(metrics) == 1)  # The file is open, so its folder has been synced.
    monkeypatch.setattr("service.segments.os.fsync", counted)
    start_s = time.monotonic()
    while time.monotonic() - start_s < 2.5:
        log.offer(a_line())
        time.sleep(0.005)
    last_s = time.monotonic()
    wait_until(lambda: synced and synced[-1] > last_s)
    assert 2 <= len(synced) <= 4
    time.sleep(1.5)
    assert len(synced) <= 4  # Without new lines, there is nothing to sync.
    log.close()


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.service.request_log.test_writer import a_log, written, wait_until
from tests.support.request_log import a_line
log, metrics = a_log(Path(sys.argv[1]))
for _ in range(500):
    log.offer(a_line())
wait_until(lambda: written(metrics) == 500)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_written_line(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_unfinished(tmp_path)) == 500
    a_log(tmp_path)[0].close()  # The next server finishes the file.
    assert not unfinished_files(tmp_path)
    assert len(read_log(tmp_path)) == 500


def test_the_file_of_a_killed_process_is_kept_up_to_its_last_complete_line(tmp_path: Path) -> None:
    log, _ = a_log(tmp_path)
    for _ in range(3):
        log.offer(a_line())
    log.close()
    (whole,) = tmp_path.glob("*.ndjson")
    left = tmp_path / "requests-20200101T000000.0-999999.ndjson.part"
    left.write_bytes(whole.read_bytes()[:-20])
    a_log(tmp_path)[0].close()
    assert len(read_log(tmp_path)) == 5


def test_the_deletion_of_files_that_were_not_shipped_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, metrics = a_log(tmp_path, request_log_max_bytes=MIB)
    body = BODY.replace(b"u1", b"x" * 50_000)
    for _ in range(60):
        log.offer(a_line(body))
    log.close()
    files = list(tmp_path.glob("*.ndjson"))
    assert len(files) > 1
    assert sum(path.stat().st_size for path in files) <= MIB
    deleted = metrics.unshipped_deleted._value.get()
    assert 0 < deleted == caplog.text.count("was deleted before it was shipped")
