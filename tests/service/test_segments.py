"""Segments: they contain only complete lines, whatever happens to the disk and the folder."""

import errno
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.segments import EVENTS, FINISHED, REQUESTS, SHIPPED, UNFINISHED, finished_files
from service.segments import Segments, remove_oldest

LINE = b"x" * 19_999 + b"\n"


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes. A longer write is truncated, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines_of(folder: Path) -> list[bytes]:
    return [line for path in finished_files(folder) for line in path.read_bytes().splitlines(keepends=True)]


def test_a_line_that_a_full_disk_truncates_is_removed(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 1 << 30, time.time, REQUESTS, "CTR_REQUEST_LOG")
    segments.write(LINE)
    with full_at(30_000):
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                segments.write(LINE)
        segments.write(b"short\n")
    segments.write(LINE)
    segments.close()
    assert lines_of(tmp_path) == [LINE, b"short\n", LINE]


def test_a_folder_that_is_moved_keeps_its_lines_and_later_lines_go_to_a_new_folder(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "log", 1 << 30, time.time, REQUESTS, "CTR_REQUEST_LOG")
    segments.write(b"first\n")
    shutil.move(tmp_path / "log", tmp_path / "old")
    segments.write(b"second\n")
    segments.close()
    (left,) = (tmp_path / "old").glob(f"*{UNFINISHED}")
    assert left.read_bytes() == b"first\n"
    assert lines_of(tmp_path / "log") == [b"second\n"]
    Segments(
        tmp_path / "old", 1 << 30, time.time, REQUESTS, "CTR_REQUEST_LOG"
    )  # The next writer in the folder finishes the file.
    assert lines_of(tmp_path / "old") == [b"first\n"]


def test_a_failed_fsync_removes_what_was_written_since_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    segments = Segments(tmp_path, 1 << 30, time.time, EVENTS, "CTR_COLLECT_FOLDER")
    segments.write(b"first\n")
    segments.sync()
    segments.write(b"second\nthird\n")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            segments.sync()
    segments.write(b"fourth\n")
    segments.sync()
    segments.close()
    assert lines_of(tmp_path) == [b"first\n", b"fourth\n"]


def test_events_that_were_not_shipped_are_never_deleted(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 100_000, time.time, EVENTS, "CTR_COLLECT_FOLDER")
    for _ in range(10):
        segments.write(LINE)
    segments.close()
    files = finished_files(tmp_path)
    assert lines_of(tmp_path) == [LINE] * 10
    for path in files[:2]:
        path.rename(path.with_name(path.name.removesuffix(FINISHED) + SHIPPED))
    segments.write(LINE)
    segments.close()
    assert finished_files(tmp_path)[:-1] == files[2:]


def test_a_file_is_finished_when_it_has_the_given_age(tmp_path: Path) -> None:
    now = [1000.0]
    segments = Segments(tmp_path, 1 << 30, lambda: now[0], EVENTS, "CTR_COLLECT_FOLDER", max_age_s=5.0)
    segments.write(b"first\n")
    now[0] += 4.9
    segments.close_if_old()
    assert lines_of(tmp_path) == []
    now[0] += 0.2
    segments.close_if_old()
    assert lines_of(tmp_path) == [b"first\n"]


def test_a_file_is_finished_after_the_clock_was_set_back(tmp_path: Path) -> None:
    now = [2e9]
    segments = Segments(tmp_path, 1 << 30, lambda: now[0], EVENTS, "CTR_COLLECT_FOLDER", max_age_s=5.0)
    segments.write(b"first\n")
    now[0] -= 365 * 86_400
    segments.close_if_old()
    assert lines_of(tmp_path) == [b"first\n"]


def write_files(folder: Path, *names: str) -> list[Path]:
    """Write files of 1,000 bytes each. Their numbers stand for their age: 1 is the oldest."""
    for name in names:
        (folder / f"requests-{name}").write_bytes(b"x" * 1000)
    return [folder / f"requests-{name}" for name in names]


def test_shipped_files_are_removed_first_and_then_the_oldest_others(tmp_path: Path) -> None:
    names = ("1.ndjson", "2.ndjson.shipped", "3.ndjson", "4.ndjson.shipped", "5.ndjson", "6.ndjson.part")
    files = dict(zip(range(1, 7), write_files(tmp_path, *names), strict=True))
    assert remove_oldest(tmp_path, REQUESTS, 6000) == []
    assert remove_oldest(tmp_path, REQUESTS, 5000) == []
    assert {number for number, file in files.items() if not file.exists()} == {2}
    assert remove_oldest(tmp_path, REQUESTS, 3500) == [files[1]]
    assert {number for number, file in files.items() if not file.exists()} == {1, 2, 4}
    assert remove_oldest(tmp_path, REQUESTS, 0) == [files[3], files[5]]
    assert list(tmp_path.iterdir()) == [files[6]]  # the file that a process is writing


def test_files_of_the_other_log_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "events-1.ndjson.shipped").write_bytes(b"x" * 1000)
    assert remove_oldest(tmp_path, REQUESTS, 0) == []
    assert len(list(tmp_path.iterdir())) == 1
