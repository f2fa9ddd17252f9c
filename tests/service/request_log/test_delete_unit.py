"""Deleting the lines of a unit, while servers and shippers work on the same folder."""

from pathlib import Path

import pytest

from contract.request_log_deletion import rewrite
from contract.segments import finished_files
from service.request_log.delete_unit import main
from service.request_log.writer import RequestLog
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.request_log.test_writer import wait_until, written
from tests.support.request_log import FIRST_FORMAT_LINE, a_line, read_log, read_unfinished


def write_log(folder: Path, *units: str | None) -> Path:
    """Write a complete file with a line for each unit."""
    log = RequestLog(Settings(bundle=folder, request_log=folder, request_log_sample=1.0), Metrics())
    for unit in units:
        log.offer(a_line(unit=unit))
    log.close()
    return finished_files(folder)[-1]


def test_the_lines_of_a_unit_are_deleted_and_all_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = write_log(tmp_path, "u1", "u2", None, "u1", "p:u1")
    shipped = shipped.rename(f"{shipped}.shipped")
    untouched = write_log(tmp_path, "u2")
    untouched.write_bytes(untouched.read_bytes() + FIRST_FORMAT_LINE + b"cut")
    before = untouched.read_bytes(), untouched.stat().st_mtime_ns
    assert main(["u1", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{shipped}: deleted 2 lines\ndeleted 2 lines from 1 files\n"
    assert "1 lines cannot be read, and were kept" in printed.err
    assert [line.unit for line in read_log(shipped)] == ["u2", None, "p:u1"]
    assert b'"unit":"u1"' not in shipped.read_bytes()  # The documented grep finds nothing.
    assert (untouched.read_bytes(), untouched.stat().st_mtime_ns) == before
    assert shipped.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == sorted([shipped, untouched])


def test_lines_in_files_that_are_being_written_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics()
    log = RequestLog(Settings(bundle=tmp_path, request_log=tmp_path, request_log_sample=1.0), metrics)
    log.offer(a_line(unit="u1"))
    wait_until(lambda: written(metrics) == 1)
    assert main(["u1", str(tmp_path)]) == 1
    assert "have 1 more lines of this unit. Run this command again after 5 minutes" in capsys.readouterr().err
    assert len(read_unfinished(tmp_path)) == 1
    log.close()
    assert main(["u1", str(tmp_path)]) == 0
    assert read_log(tmp_path) == []


def test_a_file_that_is_shipped_meanwhile_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_log(tmp_path, "u1", "u2")
    shipped = Path(f"{path}.shipped")

    def ship(_: int) -> None:
        path.rename(shipped)

    monkeypatch.setattr("contract.request_log_deletion.os.fsync", ship)
    assert rewrite(path, "u1")["own"] == 1
    assert list(tmp_path.iterdir()) == [shipped]
    monkeypatch.undo()
    assert main(["u1", str(tmp_path)]) == 0
    assert [line.unit for line in read_log(tmp_path)] == ["u2"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["u1", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
