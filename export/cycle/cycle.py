"""Run a day: join, prepare, score, train, calibrate, export, gate, add.

Every step is complete when its outputs have been renamed to their names, and its digests are in state.json. Running the
day again repeats only the steps that are not complete, or whose inputs have changed. cycle.json is written last.
"""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec
import polars as pl

from contract.gate import GateReport, read_gate_report
from export.cycle.days import (
    DAY,
    JOINED,
    DayFolder,
    check_has_rows,
    check_is_final,
    hour_files,
)
from export.cycle.experiment import check_experiment, day_toml, held_out_since, window_of
from export.cycle.progressive import Progressive, progressive_validation
from export.cycle.report import NOT_CALIBRATED, Report, Rows, read_report, write_report
from export.cycle.retention import remove_old
from export.cycle.run_step import Runner
from export.cycle.start import (
    WarmStart,
    bundle_version,
    check_is_older,
    is_current,
    last_accepted_run,
    served_version,
    warm_start,
)
from export.cycle.state import TOO_FEW_CLICKS, read_state, write_state
from export.cycle.steps import (
    Settings,
    add_step,
    calibrate_step,
    export_step,
    gate_step,
    join_step,
    prepare_step,
    score_step,
    train_step,
)
from model.atomic_folder import write_whole
from model.data.prepare.prepared import read_prepared
from model.data_config import Data, SplitByTime
from model.experiment_config import Experiment
from model.experiments.run_check import METRICS
from model.experiments.run_folder import RunMetrics

LOCK = "cycle.lock"


class Busy(ValueError):
    """Another ctr-cycle, or a step that it left behind, is running in the working folder."""


@dataclass(frozen=True)
class Result:
    """The result of ctr-cycle.

    Attributes:
        report: The report of the day.
        is_new: Whether this call finished the day.
        removed: The folders of old days that were removed.
    """

    report: Report
    is_new: bool
    removed: Sequence[Path]


def run_cycle(settings: Settings, on_step: Callable[[str], None]) -> Result:
    """Run a day to its end, or do nothing if it is finished.

    Args:
        settings: The settings.
        on_step: Called with a line about each step.

    Raises:
        NotFinal: Events may still arrive for the day.
        Busy: Another process works in the working folder.
        StepFailed: A step failed. Running the day again continues with this step.
        ValueError: The experiment, the log or a file of the working folder cannot be used. The message names it.
    """
    check_folders(settings)
    experiment, split = check_experiment(settings.experiment, settings.label)
    window_days = window_of(settings.window_days, split)
    folder = DayFolder(settings.work, settings.day)
    with locked(settings.work) as lock:
        folder.folder.mkdir(parents=True, exist_ok=True)
        report = read_report(folder.report)
        is_new = report is None
        if report is None:
            state = read_state(folder.state)
            runner = Runner(state, folder.state, folder.log, lock, on_step)
            report = Cycle(settings, folder, experiment, split, window_days, runner).run()
            write_report(folder.report, folder.text, report)
        served = served_version(settings.store, folder, report.version)
        needed = last_accepted_run(DayFolder(settings.work, settings.day + DAY), served)
        return Result(report, is_new, remove_old(folder, settings.keep, needed))


@dataclass(frozen=True)
class Cycle:
    """A day that is not finished.

    Attributes:
        settings: The settings.
        folder: The folder of the day.
        experiment: The user's experiment.
        split: How its log is split.
        window_days: How many days the log covers.
        runner: Runs the steps.
    """

    settings: Settings
    folder: DayFolder
    experiment: Experiment
    split: SplitByTime
    window_days: int
    runner: Runner

    @property
    def first_day(self) -> date:
        """The first day of the window."""
        return self.settings.day - (self.window_days - 1) * DAY

    def run(self) -> Report:
        """Run the steps that are not complete, and return the report."""
        folder = self.folder
        hours = self.join()
        served = self.begin(hours)
        progressive = self.score(served) if served else None
        self.runner.run(prepare_step(folder))
        start = warm_start(folder, self.experiment, served)
        self.runner.on_step(
            f"training continues the run of {start.day.day}" if start.day else f"training starts cold: {start.reason}"
        )
        self.runner.run(train_step(folder, self.settings.device, start.day))
        if self.runner.run(calibrate_step(folder, self.settings.by)).code == TOO_FEW_CLICKS:
            self.runner.on_step(NOT_CALIBRATED)
        self.runner.run(export_step(folder, self.settings.requests))
        version = bundle_version(folder.bundle)
        gate = self.gate(served) if served else None
        if gate is None or gate.verdict == "pass":
            self.add(version, gate is not None)
        return self.report(hours, served, start, progressive, gate)

    def join(self) -> Sequence[Path]:
        """Update the joined log, and return the files of the window.

        Raises:
            NotFinal: Events may still arrive for the day.
        """
        day, joined = self.settings.day, self.settings.work / JOINED

        def final_hours() -> Sequence[Path]:
            check_is_final(day, joined)
            hours = hour_files(joined, self.first_day, day)
            check_has_rows(day, hours, joined)
            return hours

        done = self.runner.run(join_step(self.settings, self.first_day, final_hours))
        return list(map(Path, done.outputs))

    def begin(self, hours: Sequence[Path]) -> str:
        """Write the experiment of the day, and return the version that the store served when the day began.

        Raises:
            ValueError: That version was made on a later day.
        """
        write_whole(self.folder.experiment, day_toml(self.settings.experiment, self.folder, hours).encode())
        state = self.runner.state
        state.served = served_version(self.settings.store, self.folder, state.served)
        check_is_older(self.folder, state.served)
        write_state(self.folder.state, state)
        return state.served

    def score(self, served: str) -> Progressive:
        """Score the day with the served version, and return its metrics."""
        data = self.experiment.data
        keep = list(dict.fromkeys(filter(None, (data.label, data.weight, data.unit))))
        self.runner.run(score_step(self.folder, self.settings.store, served, keep))
        return progressive_validation(self.folder.scored, served, data.label, data.weight, data.unit)

    def gate(self, served: str) -> GateReport:
        """Compare the new version with the served one on rows that neither was trained on."""
        since = held_out_since(self.folder.day, self.split)
        options = [*self.settings.gate, *self.segments()]
        self.runner.run(gate_step(self.folder, self.settings.store, served, since, options))
        return read_gate_report(self.folder.gate)

    def segments(self) -> list[str]:
        """Return the arguments of ctr-gate for the calibrated field. It is named by its column in the log."""
        if (field := self.settings.by) is None:
            return []
        sources = {spec.name: spec.source for spec in self.experiment.data.fields}
        return ["--by", sources.get(field) or field]

    def add(self, version: str, gated: bool) -> None:
        """Add the version to the store."""
        store, activate = self.settings.store, self.settings.activate
        step = add_step(self.folder, store, version, gated, activate)
        if activate and is_current(store, version):
            # ctr-cycle was killed before it could record the step. ctr-store would now refuse the gate's report,
            # because it does not compare with the current version, which is this one.
            self.runner.record(step, self.runner.inputs(step))
        else:
            self.runner.run(step)

    def report(
        self,
        hours: Sequence[Path],
        served: str,
        start: WarmStart,
        progressive: Progressive | None,
        gate: GateReport | None,
    ) -> Report:
        """Return the report of the day."""
        verdict = "pass" if gate is None else gate.verdict
        metrics = msgspec.json.decode((self.folder.run / METRICS).read_bytes(), type=RunMetrics)
        return Report(
            day=self.settings.day.isoformat(),
            window=(self.first_day.isoformat(), self.settings.day.isoformat()),
            outcome="added" if verdict == "pass" else verdict,
            version=bundle_version(self.folder.bundle),
            activated=verdict == "pass" and self.settings.activate,
            served=served,
            warm=start.day.day.isoformat() if start.day else None,
            cold=start.reason,
            log=log_rows(self.folder, hours, self.experiment.data),
            steps=self.runner.used,
            progressive=progressive,
            valid=metrics.valid,
            test=metrics.test,
            gate=gate,
        )


def check_folders(settings: Settings) -> None:
    """Check that the working folder is not one of the folders that the steps read, or the store.

    Raises:
        ValueError: If it is, or if it is not a folder.
    """
    work = settings.work
    if work.exists() and not work.is_dir():
        raise ValueError(f"--out {work}: this is not a folder. Choose another one.")
    folders = {"--store": [settings.store], "--requests": settings.requests, "--events": settings.events}
    for option, paths in folders.items():
        if any(path.resolve() == work.resolve() for path in paths):
            raise ValueError(f"--out {work}: this is also the folder of {option}. Choose another one.")


def log_rows(folder: DayFolder, hours: Sequence[Path], data: Data) -> dict[str, Rows]:
    """Return the rows and clicks of the day and of each split."""
    day = [path for path in hours if path.name.startswith(folder.day.isoformat())]
    labels = pl.concat([pl.read_parquet(path, columns=[data.label], glob=False) for path in day])[data.label]
    splits = read_prepared(folder.prepared).facts.splits
    rows = {name: Rows(part.rows, round(part.rows * part.click_rate)) for name, part in splits.items()}
    return {"the day": Rows(len(labels), int(labels.sum()))} | rows


@contextmanager
def locked(work: Path) -> Iterator[int]:
    """Hold the lock of the working folder, and yield its file descriptor.

    Raises:
        Busy: Another process holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"{work}: another ctr-cycle is running in this folder, or a step of one that was killed. Wait until it "
                f"ends, or find it with: fuser {work / LOCK}"
            ) from error
        yield lock.fileno()
