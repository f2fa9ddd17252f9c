"""The finished runs of a folder of experiments. They are recorded in results/runs.jsonl and not trained again."""

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from model.experiment_config import (
    DATA_OF_0_11,
    STEC_OF_0_9,
    TRAINING_OF_0_9,
    Experiment,
    with_model_type,
    with_stored_defaults,
)
from model.experiments.run_folder import DataFacts, RunMetrics

RESULTS = "results"  # the folder for finished runs, reports and pictures, next to the experiments' TOML files
RUNS = "runs.jsonl"
Key = tuple[bytes, int, str]  # settings as JSON, seed, fingerprint of the data


class FinishedRun(msgspec.Struct, frozen=True):
    """One line of runs.jsonl.

    Attributes:
        digest: The digest of the settings, without name and seed.
        experiment: All settings.
        data: The data that the run was trained on.
        metrics: The run's metrics.
        versions: The versions of Python and the libraries, and the machine.
        finished: When the run finished, in UTC and ISO 8601 format.
    """

    digest: str
    experiment: Experiment
    data: DataFacts
    metrics: RunMetrics
    versions: dict[str, str | int]
    finished: str


def settings(experiment: Experiment) -> Experiment:
    """Return the experiment without name and seed. A mean over runs makes sense only if they agree in this."""
    training = msgspec.structs.replace(experiment.training, seed=0)
    return msgspec.structs.replace(experiment, name="", training=training)


def digest(experiment: Experiment) -> str:
    """Return 16 hexadecimal digits that identify the settings.

    Keys that are newer than version 0.9, or 0.11 in [data], count only if they are set, so that unfinished runs of
    these versions can be continued.
    """
    document = msgspec.to_builtins(settings(experiment))
    if isinstance(split := document["data"]["split"], dict) and split.get("train") is None:
        split.pop("train", None)
    for section, defaults in (("data", DATA_OF_0_11), ("model", STEC_OF_0_9), ("training", TRAINING_OF_0_9)):
        document[section] = {k: v for k, v in document[section].items() if (k, v) not in defaults.items()}
    return hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:16]


def key(experiment: Experiment, fingerprint: str) -> Key:
    """Return the key that identifies a run: its settings, seed and data.

    The key contains the settings, not their digest. If a key of [model] or [training] is newer than a run, the run's
    settings contain the key's default value, but the run's digest does not cover the key.
    """
    content = msgspec.json.encode(settings(experiment), order="deterministic")
    return content, experiment.training.seed, fingerprint


def results_folder(toml: Path) -> Path:
    """Return the folder for the results of an experiment or a sweep, given its TOML file."""
    return toml.parent / RESULTS


def run_list(toml: Path) -> "RunList":
    """Return the list of finished runs, which all experiments in this TOML file's folder share.

    Raises:
        ValueError: If the list exists only where versions before 0.8 stored it. Otherwise, its runs would be trained
            again.
    """
    path, old = results_folder(toml) / RUNS, toml.parent / RUNS
    if old.exists() and not path.exists():
        raise ValueError(f"{old}: since version 0.8, finished runs are stored in {path}. Move the file there.")
    return RunList(path)


class RunList:
    """A runs.jsonl. Several processes can append to it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[FinishedRun]:
        """Return all runs.

        A last line without a line break is skipped, because its writer was killed or is still writing.

        Raises:
            ValueError: If a line is not a run. The message contains the line number.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        return [self._decode(line, n) for n, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def index(self) -> dict[Key, FinishedRun]:
        """Return the runs by key. If a key occurs more than once, for example after a merge, the first run is used."""
        runs: dict[Key, FinishedRun] = {}
        for run in self.read():
            runs.setdefault(key(run.experiment, run.data.fingerprint), run)
        return runs

    def find(self, experiment: Experiment, fingerprint: str) -> FinishedRun | None:
        """Return the run with these settings, seed and data, or None."""
        return self.index().get(key(experiment, fingerprint))

    def append(self, run: FinishedRun) -> None:
        """Append a run as one complete line and sync it to disk. A partial last line is removed first."""
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
            document["experiment"] = with_stored_defaults(with_model_type(document["experiment"]))
            return msgspec.convert(document, FinishedRun)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}:{number}: {error}. Fix or remove the line.") from error


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Try to claim a run for this process, and yield whether this succeeded.

    The claim is a file lock, which is released when the process exits, even if it is killed. The file is removed
    afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # The previous owner may have removed the file after we opened it. A lock on a removed file is useless.
        try:
            claimed = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            claimed = False
        try:
            yield claimed
        finally:
            if claimed:
                path.unlink(missing_ok=True)
