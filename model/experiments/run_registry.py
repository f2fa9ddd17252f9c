"""The finished runs of a folder of experiments: lines of results/runs.jsonl, appended whole, never trained twice."""

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

RESULTS = "results"  # the folder beside the experiments' TOML files: finished runs, reports and pictures
RUNS = "runs.jsonl"
Key = tuple[Experiment, int, str]  # settings, seed, fingerprint of the data


class FinishedRun(msgspec.Struct, frozen=True):
    """digest: of the settings without name and seed. finished: UTC, ISO 8601."""

    digest: str
    experiment: Experiment
    data: DataFacts
    metrics: RunMetrics
    versions: dict[str, str | int]
    finished: str


def settings(experiment: Experiment) -> Experiment:
    """What two runs must share for their mean to be one: all but the name and the seed."""
    training = msgspec.structs.replace(experiment.training, seed=0)
    return msgspec.structs.replace(experiment, name="", training=training)


def digest(experiment: Experiment) -> str:
    return hashlib.sha256(msgspec.json.encode(settings(experiment))).hexdigest()[:16]


def key(experiment: Experiment, fingerprint: str) -> Key:
    """Settings, not their digest: a key that is new since a run has its default there."""
    return settings(experiment), experiment.training.seed, fingerprint


def results_folder(toml: Path) -> Path:
    """Return the folder for the results of an experiment's or a sweep's TOML file."""
    return toml.parent / RESULTS


def run_list(toml: Path) -> "RunList":
    """Return the list of finished runs that the experiments in this TOML file's folder share.

    Raises:
        ValueError: When only the place that versions before 0.8 used has a list; its runs would be trained again.
    """
    path, old = results_folder(toml) / RUNS, toml.parent / RUNS
    if old.exists() and not path.exists():
        raise ValueError(f"{old}: finished runs are kept in {path} since version 0.8. Move the file there.")
    return RunList(path)


class RunList:
    """A runs.jsonl. Several processes may append to it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[FinishedRun]:
        """A last line without an end is left out: its writer was killed, or is still writing.

        Raises:
            ValueError: for a line that is no run, with its number.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return [self._decode(line, n) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def index(self) -> dict[Key, FinishedRun]:
        """The runs by what they are of; of several of one key, as a merge may leave them, the first."""
        runs: dict[Key, FinishedRun] = {}
        for run in self.read():
            runs.setdefault(key(run.experiment, run.data.fingerprint), run)
        return runs

    def find(self, experiment: Experiment, fingerprint: str) -> FinishedRun | None:
        """The run with these settings, this seed and these data."""
        return self.index().get(key(experiment, fingerprint))

    def append(self, run: FinishedRun) -> None:
        """One write of the whole line, on disk when this returns. What a killed writer left half is cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = self._cut_torn_line(file.fileno())
            line = msgspec.json.encode(run) + b"\n"
            try:
                if os.write(file.fileno(), line) < len(line):
                    raise OSError(f"{self.path}: the disk is full")
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def _cut_torn_line(self, file: int) -> int:
        """Returns where the next line begins."""
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            print(f"{self.path}: its last line was half written and is cut off", file=sys.stderr)
            os.ftruncate(file, end)
        return end

    def _decode(self, line: bytes, number: int) -> FinishedRun:
        try:
            document = msgspec.json.decode(line, type=dict[str, Any])
            document["experiment"] = with_model_type(document["experiment"])
            return msgspec.convert(document, FinishedRun)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, line {number}: {error}: mend the line, or remove it") from error


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yields whether the run is ours: a lock that ends with the process, however it ends. Removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Its owner may have removed it between our opening and our locking: then it keeps nobody out.
        try:
            ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            ours = False
        try:
            yield ours
        finally:
            if ours:
                path.unlink(missing_ok=True)
