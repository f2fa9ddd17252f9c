"""ctr-export says what it measured the reference on, and refuses wrong arguments before it writes anything."""

from pathlib import Path

import pytest

from contract.bundle import open_bundle
from contract.reference import REFERENCE
from export.cli.export import main
from model.data.prepare.prepared import read_prepared
from tests.support.loop_logs import request
from tests.support.runs import DATA


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A request log with 600 requests, one each minute."""
    folder = tmp_path / "log"
    folder.mkdir()
    lines = [request(number, 60.0 * number, [{"bid": 1.5}, {"bid": 2.5}]) for number in range(600)]
    (folder / "requests-a.ndjson").write_bytes(b"\n".join(lines) + b"\n{\n")
    return folder


def test_the_reference_is_measured_on_the_request_log(
    run_folder: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    until = ["--requests-until", "2026-12-01T06:00:00Z"]
    data = ["--data", str(tmp_path)]
    assert main([str(run_folder), str(first), *data, "--requests", str(log), *until]) == 0
    printed = capsys.readouterr()
    assert f"{REFERENCE}: measured on 1,200 candidates in 600 of the 600 scored requests from " in printed.out
    assert f"2026-11-30T06:00:00Z to 2026-12-01T06:00:00Z in the request log in {log}" in printed.out
    assert "skipped 1 lines that are truncated" in printed.err
    assert "ctr-export: no cascade: " in printed.err
    (log / "requests-b.ndjson").write_bytes(request(1000, 60.0 * 1000) + b"\n")
    assert main([str(run_folder), str(again), *data, "--requests", str(log), *until]) == 0
    assert (again / REFERENCE).read_bytes() == (first / REFERENCE).read_bytes()
    reference = open_bundle(first).reference
    assert reference is not None
    assert reference.numeric["bid"].missing == 0


def test_too_few_requests_give_a_bundle_without_a_reference_and_a_message(
    run_folder: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read_prepared(run_folder.parent / DATA.prepared).split("valid")[2]) == 750
    arguments = [str(run_folder), str(tmp_path / "bundle"), "--data", str(run_folder.parent)]
    assert main([*arguments, "--requests", str(log), "--requests-until", "2026-11-30T21:00:00Z"]) == 0
    assert f"no {REFERENCE}, because the request log in {log} has 60 scored requests" in capsys.readouterr().err
    assert open_bundle(tmp_path / "bundle").reference is None
    assert main(arguments) == 0
    assert f"{REFERENCE}: measured on 750 rows of the validation set" in capsys.readouterr().out


def test_a_wrong_path_or_time_is_an_error(
    run_folder: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run_folder), str(tmp_path / "bundle"), "--data", str(tmp_path)]
    for extra, message in (
        (["--requests", str(tmp_path / "absent")], "absent: no such file or folder"),
        (["--requests", str(log), "--requests-until", "noon"], "--requests-until: time 'noon' must be an ISO 8601"),
    ):
        assert main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--requests-until", "2026-11-30T21:00:00Z"])
    assert "--requests-until needs --requests" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
