"""What a day starts from: the version that the store serves, and the run whose weights training continues."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from contract.bundle import MANIFEST, SCHEMA
from contract.schema import read_schema
from contract.store import VERSIONS, read_pointer
from export.cycle.days import DayFolder, all_days, earlier_days
from export.cycle.report import Report, read_report
from model.experiment_config import Experiment
from model.experiments.run_check import METRICS
from model.experiments.run_folder import check_digests, read_run_experiment
from model.experiments.warm import check_same_fields, check_same_model


@dataclass(frozen=True)
class WarmStart:
    """Where training starts.

    Attributes:
        day: The earlier day whose run training continues, or None for a cold start.
        reason: Why training starts cold, or "".
    """

    day: DayFolder | None
    reason: str = ""


class Version(msgspec.Struct, frozen=True):
    """The part of a manifest that names the version."""

    version: str


def served_version(store: Path, folder: DayFolder, before: str) -> str:
    """Return the version that the store served before this day's version, or "" if there is none.

    Args:
        store: The store.
        folder: The day.
        before: What this function returned when the day began, or "". It counts if this day's own version has already
            been activated, but ctr-cycle was killed before it recorded that.
    """
    pointer = read_pointer(store)
    if pointer is None:
        return ""
    return before if pointer.version == bundle_version(folder.bundle) else pointer.version


def check_is_older(folder: DayFolder, served: str) -> None:
    """Check that the served version was not made on a later day, so that it was not trained on this day.

    Args:
        folder: The day.
        served: The version that the store serves, or "".

    Raises:
        ValueError: If it was.
    """
    for later in all_days(folder.work):
        if later.day > folder.day and (report := read_report(later.report)) is not None and report.version == served:
            raise ValueError(
                f"the store serves the version of {later.day}, whose window may contain {folder.day}. Leave this day "
                "out, because the windows of later days contain its rows, or go back first with ctr-store rollback."
            )


def is_current(store: Path, version: str) -> bool:
    """Return whether a store serves a version."""
    pointer = read_pointer(store)
    return pointer is not None and pointer.version == version


def bundle_version(bundle: Path) -> str:
    """Return the version of a bundle, or "" if there is none or it is damaged. The day exports it again."""
    try:
        return msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Version).version
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def stored_bundle(store: Path, version: str) -> Path:
    """Return the folder of a version in a store."""
    return store / VERSIONS / version


def accepted_days(folder: DayFolder) -> list[tuple[DayFolder, Report]]:
    """Return the earlier days whose version was added to the store, newest first."""
    reports = [(day, read_report(day.report)) for day in earlier_days(folder)]
    return [(day, report) for day, report in reports if report is not None and report.outcome == "added"]


def last_accepted_run(folder: DayFolder, served: str) -> DayFolder | None:
    """Return the day whose run the next training continues, or None.

    It is the day of the served version if that was made in this folder, or else the newest accepted day.

    Args:
        folder: The day that is about to be trained.
        served: The version that the store serves.
    """
    days = [(day, report) for day, report in accepted_days(folder) if (day.run / METRICS).is_file()]
    ordered = sorted(days, key=lambda pair: pair[1].version != served)  # stable: the others stay newest first
    return ordered[0][0] if ordered else None


def warm_start(folder: DayFolder, experiment: Experiment, served: str) -> WarmStart:
    """Return the run that training continues. It must have the same model and the same fields.

    Args:
        folder: The day, whose log is prepared.
        experiment: The experiment to train.
        served: The version that the store serves.
    """
    day = last_accepted_run(folder, served)
    if day is None:
        return WarmStart(None, "no earlier day has a run whose version was added")
    try:
        check_digests(day.run)
        earlier = read_run_experiment(day.run)
        earlier_schema = read_schema(day.run / SCHEMA)
    except (OSError, ValueError, RecursionError) as error:
        return WarmStart(None, f"the run of {day.day} is damaged: {error}")
    try:
        check_same_model(day.run, earlier.model, experiment.model)
        check_same_fields(day.run, earlier_schema, read_schema(folder.prepared / SCHEMA))
    except ValueError as error:
        reason = str(error).removeprefix(f"--warm {day.run}: ").split(". ")[0]
        return WarmStart(None, f"the experiment has changed since {day.day}: {reason}")
    return WarmStart(day)
