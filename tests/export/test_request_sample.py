"""The sample of a request log: its window, its size, and what a folder must contain."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from contract.request_log import LoggedCandidate
from export.request_sample import DAY_MS, RequestSample, sample_requests
from tests.support.loop_logs import START_S, request
from tests.support.permissions import another_user, public_folder
from tests.support.request_log import FIRST_FORMAT_LINE
from tests.support.small_bundle import FIELDS as SCHEMA

START_MS = round(START_S * 1000)


def write(folder: Path, name: str, lines: Iterable[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
    return path


def numbers(sample: RequestSample) -> list[int]:
    return [int(line.request_id.removeprefix("r")) for line in sample.lines]


def test_the_window_is_the_newest_24_hours(tmp_path: Path) -> None:
    hours = [request(hour, hour * 3600) for hour in range(72)]
    write(tmp_path / "a", "requests-a.ndjson", hours[:40])
    write(tmp_path / "b", "requests-b.ndjson.shipped", hours[40:60])
    write(tmp_path / "b", "requests-c.ndjson", hours[60:])
    paths = [tmp_path / "a", tmp_path / "b"]
    newest = sample_requests(paths, None, SCHEMA)
    assert numbers(newest) == list(range(48, 72))
    assert newest.until_ms - newest.since_ms == DAY_MS
    until = sample_requests(paths, START_MS + 48 * 3600 * 1000, SCHEMA)
    assert (numbers(until), until.total) == (list(range(24, 48)), 24)
    assert until.period == "2026-12-01T20:00:00Z to 2026-12-02T20:00:00Z"


def test_a_growing_log_gives_the_same_sample(tmp_path: Path) -> None:
    first = write(tmp_path / "a", "requests-a.ndjson", [request(number, number) for number in range(50)])
    unfinished = write(tmp_path / "a", "requests-b.ndjson.part", [request(50, 50)])
    until_ms = START_MS + 100_000
    before = sample_requests([tmp_path / "a"], until_ms, SCHEMA)
    assert numbers(before) == list(range(50))
    first.rename(first.with_name("requests-a.ndjson.shipped"))
    unfinished.unlink()
    write(tmp_path / "a", "requests-c.ndjson", [request(100, 100), request(101, 101)])
    after = sample_requests([tmp_path / "a"], until_ms, SCHEMA)
    assert (after.lines, after.total) == (before.lines, before.total)


def test_requests_that_were_not_scored_and_unreadable_lines_are_skipped(tmp_path: Path) -> None:
    failed = request(1, outcome="deadline_exceeded", candidates=[])
    bad = LoggedCandidate(0, "a", {}, ctr=0.1, inclusion=0.0)
    lines = [request(0), failed, b"{", request(2)[:-9], request(3).replace(b'"format":2', b'"format":9')]
    write(tmp_path / "a", "requests-a.ndjson", [*lines, request(4, candidates=[bad])])
    sample = sample_requests([tmp_path / "a"], None, SCHEMA)
    assert numbers(sample) == [0]
    assert (sample.skipped.unreadable, sample.skipped.newer) == (3, 1)


def test_lines_of_the_first_format_are_read_without_skipped_candidates(tmp_path: Path) -> None:
    without_id = FIRST_FORMAT_LINE.replace(b'"id":8', b'"id":null')
    write(tmp_path / "a", "requests-a.ndjson", [FIRST_FORMAT_LINE, without_id])
    sample = sample_requests([tmp_path / "a"], None, SCHEMA)
    assert [[one.id for one in line.candidates or []] for line in sample.lines] == [["ad-7", 8], ["ad-7"]]


def test_a_large_log_gives_evenly_spread_requests_and_some_candidates_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.request_sample.MAX_REQUESTS", 100)
    candidates = [LoggedCandidate(row, str(row), {}, 0.1, -2.2, 0.5) for row in range(40)]
    lines = [request(number, number, candidates) for number in range(1000)]
    write(tmp_path / "a", "requests-a.ndjson", lines)
    sample = sample_requests([tmp_path / "a"], None, SCHEMA)
    assert (numbers(sample), sample.total) == (list(range(0, 1000, 16)), 1000)
    chosen = [one for line in sample.lines for one in line.candidates or []]
    assert {len(line.candidates or []) for line in sample.lines} == {10}
    assert {one.inclusion for one in chosen} == {0.125}
    assert len({one.candidate for one in chosen}) == 40
    assert sample_requests([tmp_path / "a"], None, SCHEMA).lines == sample.lines


def test_too_few_requests_and_hashed_fields_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "requests-a.ndjson", [request(number, hashed=["user"]) for number in range(10)])
    hashed = sample_requests([tmp_path / "a"], None, SCHEMA)
    assert hashed.problem == f"{hashed} has hashed values of user, which the model does not know"
    write(tmp_path / "a", "requests-a.ndjson", [request(number, hashed=["other"]) for number in range(10)])
    few = sample_requests([tmp_path / "a"], None, SCHEMA)
    assert few.problem == f"{few} has 10 scored requests in its last 24 hours; expected at least 500"
    monkeypatch.setattr("export.request_sample.MIN_REQUESTS", 10)
    assert sample_requests([tmp_path / "a"], None, SCHEMA).problem is None
    assert sample_requests([tmp_path / "a"], START_MS - 1, SCHEMA).total == 0


def test_a_wrong_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        sample_requests([tmp_path / "absent"], None, SCHEMA)
    with pytest.raises(ValueError, match="no segments"):
        sample_requests([tmp_path], None, SCHEMA)


@pytest.mark.parametrize("denied", ["a", "a/requests-a.ndjson"])
def test_what_cannot_be_read_is_a_problem(denied: str) -> None:
    with public_folder() as root:
        write(root / "a", "requests-a.ndjson", [request(0)])
        (root / denied).chmod(0)
        with another_user():
            sample = sample_requests([root / "a"], None, SCHEMA)
    assert sample.problem is not None
    assert sample.problem.startswith(f"the request log in {root}/a cannot be read: ")
    assert denied in sample.problem
