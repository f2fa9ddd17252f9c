"""Steps run once, unless their arguments, inputs or outputs change. Old days lose their large folders."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import psutil
import pytest

from export.cli.calibrate import parser as calibrate_parser
from export.cli.export import parse_arguments as export_arguments
from export.cli.gate import parser as gate_parser
from export.cli.predict import parser as predict_parser
from export.cycle.cycle import Busy, locked
from export.cycle.days import DayFolder
from export.cycle.retention import remove_old
from export.cycle.run_step import Runner, Step, StepFailed
from export.cycle.state import State, read_state, write_state
from export.cycle.steps import Settings, calibrate_step, export_step, gate_step, join_step, score_step
from export.gate.report import REPORT


class Site:
    """A folder with a runner, and the steps that were run."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.source, self.target = folder / "source.json", folder / "target.json"
        self.source.write_text("[1]")
        self.lines: list[str] = []
        self._state = folder / "state.json"
        self._folder, self._lock = folder, lock

    def run(self, *arguments: str, codes: Sequence[int] = (0,)) -> bool:
        """Run a step that copies a JSON file. Return whether it was run, in a new process."""
        step = Step(
            "copy",
            "json.tool",
            [str(self.source), str(self.target), *arguments],
            lambda: [self.target],
            files=[self.source],
            codes=codes,
        )
        self.lines.clear()
        state = read_state(self._state)
        Runner(state, self._state, self.log, self._lock, self.lines.append).run(step)
        assert read_state(self._state) == state
        return self.lines != ["copy: complete, not repeated"]

    def log(self, step: str) -> Path:
        return self._folder / f"{step}.log"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    with (tmp_path / "lock").open("wb") as lock:
        return Site(tmp_path, os.dup(lock.fileno()))


def test_a_step_is_repeated_only_if_something_has_changed(site: Site) -> None:
    assert site.run()
    assert site.log("copy").read_text().startswith(f"$ {sys.executable} -m json.tool")
    assert not site.run()
    assert site.run("--indent=2")
    assert not site.run("--indent=2")
    site.source.write_text("[2]")
    assert site.run("--indent=2")
    site.target.write_text("[3]")
    assert site.run("--indent=2")
    site.target.unlink()
    assert site.run("--indent=2")
    assert "2" in site.target.read_text()
    assert not site.run("--indent=2")


def test_a_failed_step_shows_the_end_of_its_log_and_is_repeated(site: Site) -> None:
    site.source.write_text("{")
    with pytest.raises(StepFailed, match=r"(?s)copy failed with exit code 1. The end of .*copy.log:.*Expecting"):
        site.run()
    site.source.write_text("[1]")
    assert site.run()


def test_an_exit_code_can_be_a_result(site: Site) -> None:
    site.source.write_text("{")
    assert site.run(codes=(0, 1))
    assert read_state(site.source.parent / "state.json").steps["copy"].code == 1
    assert not site.run(codes=(0, 1))


def test_a_full_disk_is_named_and_the_step_can_be_repeated(site: Site) -> None:
    target, site.target = site.target, Path("/dev/full")
    with pytest.raises(StepFailed, match=r"(?s)copy failed with .*No space left on device.*The disk with .* MiB free"):
        site.run()
    site.target = target
    step = Step("copy", "json.tool", [str(site.source), str(target)], lambda: [target])
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        Runner(State(), target, lambda _: Path("/dev/full"), 0, site.lines.append).run(step)
    assert site.run()


def test_an_interrupted_step_is_stopped_and_not_recorded(site: Site) -> None:
    step = Step("serve", "http.server", ["0", "--bind", "127.0.0.1"], lambda: [site.target])
    state = State()
    runner = Runner(state, site.target, site.log, os.open(site.source, os.O_RDONLY), site.lines.append)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(step)
    timer.join()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert not [child for child in psutil.Process().children() if "http.server" in child.cmdline()]
    assert state.steps == {}


def test_a_damaged_state_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_state(path, State(served="v1"))
    assert read_state(path).served == "v1"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"state.json cannot be read .* Delete it to run the day from the beginning"):
        read_state(path)


def test_a_second_cycle_is_refused_while_a_step_of_the_first_is_running(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        with pytest.raises(Busy, match="another ctr-cycle is running"), locked(tmp_path):
            pass
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(Busy), locked(tmp_path):
        pass
    orphan.communicate(b"\n")
    with locked(tmp_path) as lock, (tmp_path / "cycle.lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_arguments_of_each_step_are_those_of_its_command(tmp_path: Path) -> None:
    folder = DayFolder(tmp_path, date(2026, 11, 30))
    store, since = tmp_path / "store", datetime(2026, 11, 30, 18, tzinfo=UTC)
    gate = gate_parser().parse_args(gate_step(folder, store, "v1", since, ["--margin", "0.01"]).arguments)
    assert (gate.new, gate.old, gate.joined) == (folder.bundle, store / "versions" / "v1", tmp_path / "joined")
    assert gate.out / REPORT == folder.gate
    assert (gate.since, gate.until) == ("2026-11-30T18:00:00+00:00", "2026-12-01T00:00:00+00:00")
    assert gate.margin == 0.01
    calibrate = calibrate_parser().parse_args(calibrate_step(folder, "slot").arguments)
    assert (calibrate.run, calibrate.joined, calibrate.data, calibrate.by) == (folder.run, [], tmp_path, "slot")
    score = predict_parser().parse_args(score_step(folder, store, "v1", ["click"]).arguments)
    assert (score.folder, score.out, score.config) == (store / "versions" / "v1", folder.scored, folder.experiment)
    assert score.files == [f"{tmp_path}/joined/hours/2026-11-30T*.parquet"]
    assert score.keep == ["click"]
    brackets = DayFolder(tmp_path / "[1]", folder.day)
    assert score_step(brackets, store, "v1", []).arguments[1] == f"{tmp_path}/[[]1]/joined/hours/2026-11-30T*.parquet"
    logs = [tmp_path / "a", tmp_path / "b"]
    export = export_arguments(export_step(folder, logs).arguments)
    assert (export.run, export.bundle, export.data) == (folder.run, folder.bundle, tmp_path)
    assert (export.requests, export.requests_until) == (logs, "2026-12-01T00:00:00+00:00")


def test_a_longer_window_repeats_the_join(site: Site, tmp_path: Path) -> None:
    """Its outputs are the hours of the window, although its command does not depend on the window."""
    settings = Settings(
        experiment=tmp_path / "shop.toml",
        requests=[tmp_path / "requests"],
        events=[tmp_path / "events"],
        store=tmp_path / "store",
        work=tmp_path / "work",
        day=date(2026, 12, 3),
        window_days=None,
        click_window_s=1800,
        lateness_s=86_400,
        until=None,
        rename=[],
        by=None,
        gate=[],
        activate=False,
        keep=7,
        device="cpu",
    )
    runner = Runner(State(), tmp_path / "state.json", site.log, 0, print)
    steps = [join_step(settings, date(2026, 12, day), list) for day in (1, 2, 1)]
    assert steps[0].arguments == steps[1].arguments
    inputs = [runner.inputs(step) for step in steps]
    assert inputs[0] == inputs[2] != inputs[1]


def test_old_days_keep_their_reports_and_the_run_that_is_needed(tmp_path: Path) -> None:
    days = [DayFolder(tmp_path, date(2026, 11, day)) for day in (26, 27, 28, 29, 30)]
    for day in days:
        for folder in (day.prepared, day.run, day.bundle):
            folder.mkdir(parents=True)
        day.report.touch()
    (days[0].folder / ".removed-run" / "weights").mkdir(parents=True)  # from a process that was killed
    removed = remove_old(days[4], 2, days[1])
    assert removed == [days[2].prepared, days[2].run, days[2].bundle, days[1].prepared, days[0].prepared, days[0].run,
                       days[0].bundle]  # fmt: skip
    assert all(day.report.exists() for day in days)
    assert [day.run.exists() for day in days] == [False, True, False, True, True]
    assert not list(tmp_path.glob("days/*/.removed-*"))
    assert remove_old(days[4], 2, days[1]) == []
