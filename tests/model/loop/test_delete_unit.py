"""A deleted unit is in no log, and a later join does not bring it back."""

from pathlib import Path

import polars as pl
import pytest

from contract.segments import REQUESTS, UNFINISHED
from model.cli.delete_unit import main
from model.loop.join import join
from model.loop.output import Settings
from tests.support.loop_logs import START_S, event, request, score_id, write_logs, write_segment

SETTINGS = Settings(window_s=60, lateness_s=0)
UNTIL_MS = int((START_S + 100 * 3600) * 1000)


def test_a_deleted_unit_is_in_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [request(number, unit=unit) for number, unit in enumerate(("u1", "u2", None, "u1"))]
    paths = write_logs(tmp_path, [*lines, b"{"], [event("impression", score_id(number), 1) for number in range(4)])
    out = tmp_path / "joined"
    join(paths, out, SETTINGS, UNTIL_MS)
    assert main(["u1", str(tmp_path / "log"), str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "deleted 2 lines of request logs and 2 rows of joined logs\n"
    assert "1 lines cannot be read, and were kept" in printed.err
    assert next((tmp_path / "log").iterdir()).read_bytes() == b"\n".join([*lines[1:3], b"{", b""])
    joined = join(paths, out, SETTINGS, UNTIL_MS)
    assert not joined.hours.kept
    assert set(pl.read_parquet(out / "hours")["unit"]) == {"u2", None}
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["requests-20261130T200000.000000-1.ndjson"]


def test_a_unit_that_is_in_no_log_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_segment(tmp_path / "log", REQUESTS, [request(1, unit="p:9e5a892880ec73244b2a7244ef00dfdf")])
    assert main(["u1", str(tmp_path / "log")]) == 0
    assert "warning: no line and no row has the unit 'u1'. Check its spelling. If" in capsys.readouterr().err


def test_lines_in_unfinished_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_segment(tmp_path / "log", REQUESTS, [request(1, unit="u1")], ending=UNFINISHED)
    assert main(["u1", str(tmp_path / "log")]) == 1
    assert "have 1 more lines of this unit" in capsys.readouterr().err


def test_a_file_without_the_unit_is_not_changed(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "log", REQUESTS, [request(1, unit="u1")])
    before = path.stat()
    assert main(["u2", str(tmp_path / "log")]) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_folder_without_logs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["u1", str(tmp_path)]) == 2
    assert "is neither a request log nor a joined log" in capsys.readouterr().err
