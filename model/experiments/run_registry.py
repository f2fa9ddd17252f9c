"""The finished runs of a folder of experiments: lines of results/runs.jsonl, which are not trained again."""

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from model.experiment_config import Experiment, with_model_type
from model.experiments.run_folder import DataFacts, RunMetrics

RESULTS = "results"  # the folder beside the experiments' TOML files with finished runs, reports and pictures
RUNS = "runs.jsonl"
Key = tuple[Experiment, int, str]  # settings, seed, fingerprint of the data


class FinishedRun(msgspec.Struct, frozen=True):
    """One line of runs.jsonl.

    Attributes:
        digest: The digest of the settings without name and seed.
        experiment: All settings.
        data: What the run was trained on.
        metrics: What it measured.
        versions: The versions of Python and the libraries, and the machine.
        finished: UTC, ISO 8601.
    """

    digest: str
    experiment: Experiment
    data: DataFacts
    metrics: RunMetrics
    versions: dict[str, str | int]
    finished: str


def settings(experiment: Experiment) -> Experiment:
    """Return the experiment without name and seed: what two runs must share for their mean to make sense."""
    training = msgspec.structs.replace(experiment.training, seed=0)
    return msgspec.structs.replace(experiment, name="", training=training)


def digest(experiment: Experiment) -> str:
    """Return 16 hexadecimal digits that identify the settings."""
    return hashlib.sha256(msgspec.json.encode(settings(experiment))).hexdigest()[:16]


def key(experiment: Experiment, fingerprint: str) -> Key:
    """Return what identifies a run: its settings, its seed and its data.

    The settings are compared, not their digest: a key of [model] or [training] that is newer than a run has its default
    in the run's settings, but is not part of the run's digest.
    """
    return settings(experiment), experiment.training.seed, fingerprint


def results_folder(toml: Path) -> Path:
    """Return the folder for the results of an experiment's or a sweep's TOML file."""
    return toml.parent / RESULTS


def run_list(toml: Path) -> "RunList":
    """Return the list of finished runs that the experiments in this TOML file's folder share.

    Raises:
        ValueError: If there is only a list where versions before 0.8 kept it. Its runs would be trained again.
    """
    path, old = results_folder(toml) / RUNS, toml.parent / RUNS
    if old.exists() and not path.exists():
        raise ValueError(f"{old}: finished runs are kept in {path} since version 0.8. Move the file there.")
    return RunList(path)


class RunList:
    """A runs.jsonl. Several processes may append to it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[FinishedRun]:
        """Return all runs.

        A last line without a line end is left out: its writer was killed or is still writing.

        Raises:
            ValueError: If a line is not a run. The message has its number.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return [self._decode(line, n) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def index(self) -> dict[Key, FinishedRun]:
        """Return the runs by key. If a key occurs more than once, as after a merge, the first run counts."""
        runs: dict[Key, FinishedRun] = {}
        for run in self.read():
            runs.setdefault(key(run.experiment, run.data.fingerprint), run)
        return runs

    def find(self, experiment: Experiment, fingerprint: str) -> FinishedRun | None:
        """Return the run with these settings, this seed and these data, if there is one."""
        return self.index().get(key(experiment, fingerprint))

    def append(self, run: FinishedRun) -> None:
        """Write a run as one whole line, which is on disk when this returns. A partial last line is removed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = self.path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                print(f"{self.path}: the last line was incomplete and was removed", file=sys.stderr)
                os.ftruncate(file.fileno(), end)
            line = msgspec.json.encode(run) + b"\n"
            try:
                if os.write(file.fileno(), line) < len(line):
                    raise OSError(f"{self.path}: the disk is full")
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def _decode(self, line: bytes, number: int) -> FinishedRun:
        try:
            document = msgspec.json.decode(line, type=dict[str, Any])
            document["experiment"] = with_model_type(document["experiment"])
            return msgspec.convert(document, FinishedRun)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}:{number}: {error}. Fix or remove the line.") from error


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Try to claim a run for this process, and yield whether it succeeded.

    The claim is a file lock, which ends with the process, however that ends. The file is removed afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # The previous owner may have removed the file after we opened it. A lock on a removed file excludes nobody.
        try:
            claimed = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            claimed = False
        try:
            yield claimed
        finally:
            if claimed:
                path.unlink(missing_ok=True)
