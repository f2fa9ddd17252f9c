"""The commands of a day, in their order."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from contract.bundle import MANIFEST
from contract.calibration import CALIBRATION
from contract.gate import read_gate_report
from export.cycle.days import DAY, JOINED, DayFolder, start_of
from export.cycle.run_step import Step
from export.cycle.start import bundle_version, stored_bundle
from export.cycle.state import TOO_FEW_CLICKS
from model.experiments.run_folder import DIGESTS
from model.loop.output import HOURS

GATE_CODES = (0, 1, 3)  # pass, fail, not enough clicks; see export/cli/gate.py


@dataclass(frozen=True)
class Settings:
    """The arguments of ctr-cycle. All paths are absolute.

    Attributes:
        experiment: The user's experiment.
        requests: The folders of the request log.
        events: The folders of ctr-collect.
        store: The store.
        work: The working folder.
        day: The day to run.
        window_days: How many days the log of a day covers, including the day itself. None for the default.
        click_window_s: How long after an impression its click may happen.
        lateness_s: How long after that events may arrive.
        until: See ctr-join, or None.
        rename: See ctr-join.
        by: The field of the segments of the calibration, or None.
        gate: Further arguments of ctr-gate.
        activate: Whether to make the new version current.
        keep: How many days keep their large folders.
        device: Where to train.
    """

    experiment: Path
    requests: Sequence[Path]
    events: Sequence[Path]
    store: Path
    work: Path
    day: date
    window_days: int | None
    click_window_s: int
    lateness_s: int
    until: str | None
    rename: Sequence[str]
    by: str | None
    gate: Sequence[str]
    activate: bool
    keep: int
    device: str

    @property
    def label(self) -> str:
        """The column of the joined log with the clicks."""
        names = [rename.removeprefix("click=") for rename in self.rename if rename.startswith("click=")]
        return names[-1] if names else "click"


def join_step(settings: Settings, first: date, hours: Callable[[], Sequence[Path]]) -> Step:
    """Return the step that updates the joined log.

    Args:
        settings: The settings.
        first: The first day of the window.
        hours: Returns the files of the window, or raises an error if the day is not final.
    """
    arguments = [*map(str, (*settings.requests, *settings.events)), "--out", str(settings.work / JOINED)]
    arguments += ["--window", f"{settings.click_window_s}s", "--lateness", f"{settings.lateness_s}s"]
    arguments += [] if settings.until is None else ["--until", settings.until]
    arguments += [word for rename in settings.rename for word in ("--rename", rename)]
    return Step("join", "model.cli.join", arguments, hours, also=[first.isoformat()])


def prepare_step(folder: DayFolder) -> Step:
    """Return the step that prepares the log of the window."""
    arguments = [str(folder.experiment), "--data", str(folder.work)]
    return Step("prepare", "model.cli.prepare", arguments, lambda: [folder.prepared], ["join"], [folder.experiment])


def score_step(folder: DayFolder, store: Path, served: str, keep: Sequence[str]) -> Step:
    """Return the step that scores the day with the served version, before anything is trained on the day.

    Args:
        folder: The day.
        store: The store.
        served: The served version.
        keep: The columns that the metrics need.
    """
    bundle = stored_bundle(store, served)
    hours = Path(glob.escape(str(folder.work / JOINED / HOURS))) / f"{folder.day}T*.parquet"
    arguments = [str(bundle), str(hours), "--out", str(folder.scored), "--config", str(folder.experiment)]
    arguments += [word for column in keep for word in ("--keep", column)]
    return Step(
        "score",
        "export.cli.predict",
        arguments,
        lambda: [folder.scored],
        ["join"],
        [bundle / MANIFEST, folder.experiment],
    )


def train_step(folder: DayFolder, device: str, warm: DayFolder | None) -> Step:
    """Return the step that trains the model, from the weights of an earlier day if there is one."""
    arguments = [str(folder.experiment), "--data", str(folder.work), "--out", str(folder.run), "--device", device]
    files = [folder.experiment]
    if warm is not None:
        arguments += ["--warm", str(warm.run)]
        files.append(warm.run / DIGESTS)
    return Step("train", "model.cli.train", arguments, lambda: [folder.run], ["prepare"], files)


def calibrate_step(folder: DayFolder, by: str | None) -> Step:
    """Return the step that fits the calibration to valid, and writes it into the run if there are enough clicks."""
    return Step(
        "calibrate",
        "export.cli.calibrate",
        [str(folder.run), "--data", str(folder.work), *([] if by is None else ["--by", by])],
        outputs=lambda: [folder.run / CALIBRATION],
        after=["prepare", "train"],
        codes=(0, TOO_FEW_CLICKS),
    )


def export_step(folder: DayFolder, requests: Sequence[Path]) -> Step:
    """Return the step that writes the bundle.

    Args:
        folder: The day.
        requests: The folders of the request log. They grow, but the requests of the day, on which the reference is
            measured, are all there once the day is final. So the log is not among the inputs, as in join_step().
    """
    arguments = [str(folder.run), str(folder.bundle), "--data", str(folder.work)]
    arguments += ["--requests", *map(str, requests), "--requests-until", start_of(folder.day + DAY).isoformat()]
    return Step("export", "export.cli.export", arguments, lambda: [folder.bundle], ["prepare", "train", "calibrate"])


def gate_step(folder: DayFolder, store: Path, served: str, since: datetime, options: Sequence[str]) -> Step:
    """Return the step that compares the new bundle with the served version on the end of the day.

    Args:
        folder: The day.
        store: The store.
        served: The served version.
        since: The first moment whose rows neither model was trained on.
        options: Further arguments of ctr-gate.
    """
    old = stored_bundle(store, served)

    def report() -> Sequence[Path]:
        found = read_gate_report(folder.gate)
        if (found.new, found.old) != (bundle_version(folder.bundle), served):
            raise ValueError(f"{folder.gate} compares other versions than the new one with {served}. Delete it.")
        return [folder.gate]

    return Step(
        "gate",
        "export.cli.gate",
        [
            *(str(folder.bundle), str(old), str(folder.work / JOINED), "--out", str(folder.gate.parent)),
            *("--since", since.isoformat(), "--until", start_of(folder.day + DAY).isoformat(), *options),
        ],
        outputs=report,
        after=["join", "export"],
        files=[old / MANIFEST],
        codes=GATE_CODES,
    )


def add_step(folder: DayFolder, store: Path, version: str, gated: bool, activate: bool) -> Step:
    """Return the step that adds the bundle to the store.

    Args:
        folder: The day.
        store: The store.
        version: The version of the bundle.
        gated: Whether there is a report of ctr-gate.
        activate: Whether to make the version current.
    """
    return Step(
        "add",
        "service.models.store",
        [
            *("add", str(store), str(folder.bundle)),
            *(["--gate", str(folder.gate)] if gated else []),
            *(["--activate"] if activate else []),
        ],
        outputs=lambda: [stored_bundle(store, version) / MANIFEST],
        after=["export", *(["gate"] if gated else [])],
    )
