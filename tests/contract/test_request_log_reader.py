"""Reading a request log: every format, files that change meanwhile, and logs larger than the memory."""

import tracemalloc
from pathlib import Path

import msgspec
import pytest

from contract.request_log import FORMAT, LoggedCandidate, LogLine
from contract.request_log_reader import Skipped, current_name, read_lines
from tests.support.request_log import FIRST_FORMAT_LINE

LINE = LogLine(
    time="2026-11-30T12:00:00.000+00:00",
    score_id="019ad6f3-5c00-7a4e-9f1d-2b8c6e0d4a31",
    request_id="r",
    model="m",
    version="v",
    unit="u1",
    context={"user": "u1"},
    candidates=[LoggedCandidate(3, "ad-7", {"item": 4082}, 0.25, -1.5, 0.1)],
    candidate_count=9,
    degraded=[],
    hashed=[],
)
FAILED = LogLine(time="", score_id=LINE.score_id, request_id="r", model="m", version="v", outcome="overloaded")


def encoded(*lines: LogLine) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def test_all_formats_are_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    newer = msgspec.json.encode({"format": FORMAT + 1, "everything": "differs"}) + b"\n"
    uneven = FIRST_FORMAT_LINE.replace(b"0.25,null", b"0.25")
    cut = encoded(LINE)[:-20]
    path = tmp_path / "requests-1.ndjson"
    path.write_bytes(encoded(LINE, FAILED) + newer + FIRST_FORMAT_LINE + b"\n[1]\n\xff\n" + uneven + cut)
    skipped = Skipped()
    lines = list(read_lines([tmp_path], skipped))
    assert lines[:2] == [LINE, FAILED]
    assert skipped == Skipped(unreadable=5, newer=1)
    (old,) = lines[2:]
    assert (old.format, old.score_id, old.unit, old.outcome, old.candidate_count) == (1, "", None, "scored", 2)
    assert old.candidates == [
        LoggedCandidate(0, "ad-7", {"item": 4082}, 0.25, None, 1.0),
        LoggedCandidate(1, 8, {"item": "4001"}, None, None, 1.0),
    ]


def test_shipped_files_are_read_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    for number, ending in enumerate((".ndjson.shipped", ".ndjson", ".ndjson.part", ".new")):
        line = msgspec.structs.replace(LINE, request_id=f"r{number}")
        (tmp_path / f"requests-{number}{ending}").write_bytes(encoded(line))
    assert [line.request_id for line in read_lines([tmp_path], Skipped())] == ["r0", "r1"]


def test_a_file_that_is_shipped_or_deleted_while_the_log_is_read(tmp_path: Path) -> None:
    files = [tmp_path / f"requests-{number}.ndjson" for number in range(3)]
    for file in files:
        file.write_bytes(encoded(LINE))
    skipped = Skipped()
    lines = read_lines([tmp_path], skipped)
    next(lines)
    shipped = files[1].rename(f"{files[1]}.shipped")
    files[2].unlink()
    assert current_name(files[1]) == shipped
    assert len(list(lines)) == 1
    assert skipped == Skipped(files=1)


def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_lines([tmp_path / "nothing.ndjson"], Skipped()))


def test_the_memory_does_not_depend_on_the_size_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "requests-1.ndjson").write_bytes(encoded(LINE) * 20_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_lines([tmp_path], Skipped())) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # The file has 6 MB.
