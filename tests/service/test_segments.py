"""Segments: they contain only complete lines, whatever happens to the disk and the folder."""

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.segments import REQUESTS, UNFINISHED, finished_files
from service.segments import Segments

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
