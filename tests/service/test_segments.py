"""Segments: they contain only complete lines, whatever happens to the disk and the folder."""

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.segments import REQUESTS, UNFINISHED, finished_files
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
