"""Which run training continues, and which version counts as served."""

import json
import os
import shutil
from datetime import date
from pathlib import Path

import msgspec
import pytest

from export.cycle.days import DayFolder
from export.cycle.report import Outcome, Report, markdown, read_report, write_report
from export.cycle.start import bundle_version, check_is_older, last_accepted_run, served_version, warm_start
from export.cycle.state import TOO_FEW_CLICKS, DoneStep
from model.experiments.run_check import METRICS
from model.experiments.run_folder import read_run_experiment
from model.training.metrics import Metrics

VERSIONS = [str(number) * 64 for number in range(10)]


def finish(work: Path, day: int, outcome: Outcome = "added", has_run: bool = True) -> DayFolder:
    """Write the folder of a finished day. Its version is VERSIONS[day]."""
    folder = DayFolder(work, date(2026, 11, day))
    folder.run.mkdir(parents=True)
    if has_run:
        (folder.run / METRICS).touch()
    report = Report(
        day=folder.day.isoformat(),
        window=("2026-11-01", folder.day.isoformat()),
        outcome=outcome,
        version=VERSIONS[day],
        activated=outcome == "added",
        served="",
        warm=None,
        cold="no earlier day",
        log={},
        steps={"train": DoneStep("ctr-train", "", {}, 1.0)},
        progressive=None,
        valid=Metrics(0.7, 0.2),
        test=Metrics(0.7, 0.2),
        gate=None,
    )
    write_report(folder.report, folder.text, report)
    return folder


def serve(store: Path, version: str) -> None:
    store.mkdir(exist_ok=True)
    (store / "current").write_text(json.dumps({"version": version}))


def started_from(work: Path, served: str = "") -> int | None:
    folder = last_accepted_run(DayFolder(work, date(2026, 11, 9)), served)
    return None if folder is None else folder.day.day


def test_training_continues_the_newest_run_whose_version_was_added(tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    assert started_from(tmp_path) is None
    for day in (3, 5):
        finish(tmp_path, day)
    finish(tmp_path, 6, "fail")
    finish(tmp_path, 7, has_run=False)
    finish(tmp_path, 8, "not enough clicks")
    assert started_from(tmp_path) == 5


def test_after_a_rollback_training_continues_the_run_of_the_served_version(tmp_path: Path) -> None:
    for day in (3, 4, 5):
        finish(tmp_path, day)
    assert started_from(tmp_path, VERSIONS[4]) == 4
    assert started_from(tmp_path, VERSIONS[9]) == 5  # a version that another folder made


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("experiment.json", "experiment.json is not what training wrote"),
        ("weights.safetensors", "weights.safetensors is not what training wrote"),
        ("schema.json", "schema.json is not what training wrote"),
        ("digests.json", "malformed"),
    ],
)
def test_training_starts_cold_if_the_earlier_run_is_damaged(
    name: str, reason: str, run_folder: Path, tmp_path: Path
) -> None:
    earlier, folder = finish(tmp_path, 3), DayFolder(tmp_path, date(2026, 11, 9))
    shutil.copytree(run_folder, earlier.run, dirs_exist_ok=True)
    shutil.copytree(run_folder, folder.prepared)
    experiment = read_run_experiment(run_folder)
    assert warm_start(folder, experiment, "").day == earlier
    (earlier.run / name).write_bytes(b"\xff{")
    start = warm_start(folder, experiment, "")
    assert start.day is None
    assert start.reason.startswith("the run of 2026-11-03 is damaged: ")
    assert reason in start.reason
    (earlier.run / name).unlink()
    if name != "digests.json":  # Runs by older versions have none.
        assert warm_start(folder, experiment, "").day is None


def test_the_day_s_own_version_is_not_what_was_served_before(tmp_path: Path) -> None:
    folder, store = DayFolder(tmp_path, date(2026, 11, 9)), tmp_path / "store"
    assert served_version(store, folder, "") == ""
    serve(store, VERSIONS[1])
    assert served_version(store, folder, VERSIONS[2]) == VERSIONS[1]
    folder.bundle.mkdir(parents=True)
    (folder.bundle / "manifest.json").write_text(json.dumps({"version": VERSIONS[3]}))
    assert served_version(store, folder, VERSIONS[2]) == VERSIONS[1]
    serve(store, VERSIONS[3])
    assert served_version(store, folder, VERSIONS[2]) == VERSIONS[2]


def test_a_version_that_was_made_on_a_later_day_must_not_be_served(tmp_path: Path) -> None:
    for day in (3, 5):
        finish(tmp_path, day)
    DayFolder(tmp_path, date(2026, 11, 6)).folder.mkdir()
    four = DayFolder(tmp_path, date(2026, 11, 4))
    for served in ("", VERSIONS[3], VERSIONS[9]):
        check_is_older(four, served)
    with pytest.raises(ValueError, match="serves the version of 2026-11-05, whose window may contain 2026-11-04"):
        check_is_older(four, VERSIONS[5])
    check_is_older(DayFolder(tmp_path, date(2026, 11, 5)), VERSIONS[5])


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = finish(tmp_path, 3, "fail")
    report = read_report(folder.report)
    assert report is not None
    assert folder.text.read_text() == markdown(report)
    assert "did not pass the gate, so the store stays as it is" in folder.text.read_text()
    assert read_report(tmp_path / "none.json") is None
    folder.report.write_text("{")
    with pytest.raises(ValueError, match=r"cycle.json cannot be read .* run its day again"):
        read_report(folder.report)
    folder.report.write_text('{"x": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"cycle.json cannot be read .* run its day again"):
        read_report(folder.report)
    folder.report.unlink()
    os.mkfifo(folder.report)
    with pytest.raises(ValueError, match=r"cycle.json is not a regular file"):
        read_report(folder.report)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"version": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_bundle_of_the_day_has_no_version(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert bundle_version(tmp_path) == ""


@pytest.mark.parametrize(("code", "is_calibrated"), [(0, True), (TOO_FEW_CLICKS, False)])
def test_the_report_states_that_a_model_is_not_calibrated(tmp_path: Path, code: int, is_calibrated: bool) -> None:
    report = read_report(finish(tmp_path, 1).report)
    assert report is not None
    steps = {"calibrate": DoneStep("ctr-calibrate", "", {}, 1.0, code)}
    page = markdown(msgspec.structs.replace(report, steps=steps))
    assert ("The model is not calibrated, because valid has too few clicks" in page) != is_calibrated
