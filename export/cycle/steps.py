"""The commands of a day, in their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from contract.bundle import MANIFEST
from contract.calibration import CALIBRATION
from export.cycle.days import JOINED, DayFolder
from export.cycle.run_step import Step
from export.cycle.start import stored_bundle
from model.experiments.run_folder import DIGESTS

TOO_FEW_CLICKS = 3  # the exit code of ctr-calibrate if it wrote no calibration
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
        window_days: How many days the log of a day covers, including the day itself.
        click_window_s: How long after an impression its click may happen.
        lateness_s: How long after that events may arrive.
        until: See ctr-join, or None.
        rename: See ctr-join.
        by: The field of the segments of the calibration, or None.
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
    window_days: int
    click_window_s: int
    lateness_s: int
    until: str | None
    rename: Sequence[str]
    by: str | None
    activate: bool
    keep: int
    device: str


def join_step(settings: Settings, hours: Sequence[Path]) -> Step:
    """Return the step that updates the joined log.

    Args:
        settings: The settings.
        hours: The files of the window that exist before the step.
    """
    arguments = [*map(str, (*settings.requests, *settings.events)), "--out", str(settings.work / JOINED)]
    arguments += ["--window", f"{settings.click_window_s}s", "--lateness", f"{settings.lateness_s}s"]
    arguments += [] if settings.until is None else ["--until", settings.until]
    arguments += [word for rename in settings.rename for word in ("--rename", rename)]
    return Step("join", "model.cli.join", arguments, hours)


def prepare_step(folder: DayFolder) -> Step:
    """Return the step that prepares the log of the window."""
    arguments = [str(folder.experiment), "--data", str(folder.work)]
    return Step("prepare", "model.cli.prepare", arguments, [folder.prepared], ["join"], [folder.experiment])


def score_step(folder: DayFolder, store: Path, served: str, hours: Sequence[Path], keep: Sequence[str]) -> Step:
    """Return the step that scores the day with the served version, before anything is trained on the day.

    Args:
        folder: The day.
        store: The store.
        served: The served version.
        hours: The files of the day.
        keep: The columns that the metrics need.
    """
    bundle = stored_bundle(store, served)
    arguments = [str(bundle), *map(str, hours), "--out", str(folder.scored), "--config", str(folder.experiment)]
    arguments += [word for column in keep for word in ("--keep", column)]
    return Step("score", "export.cli.predict", arguments, [folder.scored], ["join"], [bundle / MANIFEST])


def train_step(folder: DayFolder, device: str, warm: DayFolder | None) -> Step:
    """Return the step that trains the model, from the weights of an earlier day if there is one."""
    arguments = [str(folder.experiment), "--data", str(folder.work), "--out", str(folder.run), "--device", device]
    files = [folder.experiment]
    if warm is not None:
        arguments += ["--warm", str(warm.run)]
        files.append(warm.run / DIGESTS)
    return Step("train", "model.cli.train", arguments, [folder.run], ["prepare"], files)


def calibrate_step(folder: DayFolder, by: str | None) -> Step:
    """Return the step that fits the calibration to valid, and writes it into the run if there are enough clicks."""
    arguments = [str(folder.run), "--data", str(folder.work), *([] if by is None else ["--by", by])]
    outputs = [folder.run / CALIBRATION]
    codes = (0, TOO_FEW_CLICKS)
    return Step("calibrate", "export.cli.calibrate", arguments, outputs, ["prepare", "train"], codes=codes)


def export_step(folder: DayFolder) -> Step:
    """Return the step that writes the bundle."""
    arguments = [str(folder.run), str(folder.bundle), "--data", str(folder.work)]
    return Step("export", "export.cli.export", arguments, [folder.bundle], ["prepare", "train", "calibrate"])


def gate_step(folder: DayFolder, store: Path, served: str, held_out: Path) -> Step:
    """Return the step that compares the new bundle with the served version on rows that neither was trained on."""
    old = stored_bundle(store, served)
    arguments = [str(folder.bundle), str(old), str(held_out), "--out", str(folder.gate)]
    return Step(
        "gate",
        "export.cli.gate",
        arguments,
        [folder.gate],
        ["join", "export"],
        [old / MANIFEST],
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
    arguments = ["add", str(store), str(folder.bundle)]
    arguments += ["--gate", str(folder.gate)] if gated else []
    arguments += ["--activate"] if activate else []
    outputs = [stored_bundle(store, version) / MANIFEST]
    return Step("add", "service.models.store", arguments, outputs, ["export", *(["gate"] if gated else [])])
