"""The two models of a gate: their versions, and whether they may have been trained on the rows."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from contract.bundle import open_bundle
from export.gate.rows import Period, time_text
from export.run_or_bundle import is_bundle
from model.data.readers.split import seconds_of
from model.data_config import Data, SplitByTime
from model.experiments.run_folder import WEIGHTS, read_run_experiment


class GatedModel(msgspec.Struct, frozen=True):
    """A model of a gate.

    Attributes:
        name: The name of its experiment.
        version: The version of the bundle, or "run:NAME" for a run, which has no version.
        training: What is known about whether it was trained on the rows.
        suspect: Whether it may have been trained on the rows.
    """

    name: str
    version: str
    training: str
    suspect: bool

    @property
    def label(self) -> str:
        """The name, and the beginning of a bundle's version."""
        return self.name if self.version.startswith("run:") else f"{self.name} {self.version[:12]}"


def model_of(folder: Path, period: Period, data: Path) -> GatedModel:
    """Return what a report states about a model.

    Args:
        folder: The folder of a bundle or run.
        period: The rows.
        data: The base folder for a run's relative paths.
    """
    if is_bundle(folder):
        manifest = open_bundle(folder, verify=False).manifest
        moment = datetime.fromisoformat(manifest.created)
        text = f"exported at {manifest.created}"
        if moment.timestamp() * 1000 <= period.since_ms:
            return GatedModel(manifest.name, manifest.version, f"{text}, before the first row", False)
        return GatedModel(
            manifest.name, manifest.version, f"{text}, after the first row, so this cannot be checked", False
        )
    experiment = read_run_experiment(folder)
    training, suspect = training_of(experiment.data, period, data)
    return GatedModel(experiment.name, f"run:{experiment.name}", training, suspect)


def identity_of(folder: Path) -> str:
    """Return a text that changes if a bundle or the model of a run changes."""
    if is_bundle(folder):
        return open_bundle(folder, verify=False).manifest.version
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def training_of(source: Data, period: Period, data: Path) -> tuple[str, bool]:
    """Return what a run's [data] section says about training on the rows, and whether it may have been."""
    log, joined = (data / source.folder).resolve(), period.folder.resolve()
    if log != joined and log not in joined.parents and joined not in log.parents:
        return f"its log is in {source.folder}, so this cannot be checked", False
    if not isinstance(source.split, SplitByTime):
        return f"its [data] reads {source.folder}, and does not split it by time", True
    test_s, length_s = seconds_of(source.split.test), (period.until_ms - period.since_ms) / 1000
    text = f'its [data] reads {source.folder}, and keeps test = "{source.split.test}" at its end for testing'
    if test_s >= length_s:
        return f"{text}. These are the rows, if the log has not grown since ctr-prepare", False
    return f"{text}, but the period is longer", True


def training_warnings(models: Sequence[GatedModel], period: Period) -> list[str]:
    """Return a warning for each model that may have been trained on the rows."""
    text = f"{time_text(period.since_ms)} to {time_text(period.until_ms)}"
    return [
        f"{model.label} may have been trained on the rows from {text}: {model.training}. The gate needs rows that "
        "neither model was trained on. Name a later period with --since and --until."
        for model in models
        if model.suspect
    ]
