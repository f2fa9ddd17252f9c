"""Whether A is better than B over several seeds: Welch's unpaired t-test, which the paper uses."""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from scipy import stats  # type: ignore[import-untyped]

from model.experiments.run_registry import RunList

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A minus B.

    Attributes:
        value: The difference of the means.
        low: The lower bound of the 95% confidence interval.
        high: The upper bound of the 95% confidence interval.
        p: The two-sided p-value under the hypothesis of no difference.
    """

    value: float
    low: float
    high: float
    p: float


class LogKeys(msgspec.Struct, frozen=True):
    """The keys of [data] that determine the rows of the test set."""

    reader: str
    folder: str
    split: str | dict[str, Any] = "row"
    split_seed: int = 1

    def __str__(self) -> str:
        return f"{self.reader} in {self.folder}, split {self.split}, split_seed {self.split_seed}"


@dataclass(frozen=True)
class Seeds:
    """The test metrics of all seeds of an experiment.

    Attributes:
        name: The experiment's name.
        log: The log. Only results on the same log can be compared.
        fingerprint: The fingerprint of the prepared data, or None in older reports.
        aucs: The test AUC of each seed.
        loglosses: The test logloss of each seed.
    """

    name: str
    log: LogKeys
    fingerprint: str | None
    aucs: list[float]
    loglosses: list[float]


class ReportedMetrics(msgspec.Struct, frozen=True):
    """The metrics of a run on a split, in a report."""

    auc: Annotated[float, Meta(gt=0, le=1)]
    logloss: Annotated[float, Meta(ge=0)]


class ReportedWeights(msgspec.Struct, frozen=True):
    """The weights of a run that its model does not have, in a report."""

    weights: str
    valid: ReportedMetrics
    test: ReportedMetrics


class ReportedRun(msgspec.Struct, frozen=True):
    """A run in a report. `other` is None if the weights were not averaged."""

    seed: int
    test: ReportedMetrics
    valid: ReportedMetrics | None = None
    other: ReportedWeights | None = None


class ReportedTraining(msgspec.Struct, frozen=True):
    """The keys of [training] that select weights, with the defaults of the versions that did not have them."""

    monitor: Literal["logloss", "auc"] = "logloss"
    weights: str = "raw"


class ReportedExperiment(msgspec.Struct, frozen=True):
    """The experiment of a report."""

    name: str
    data: LogKeys
    training: ReportedTraining = ReportedTraining()


class ReportedData(msgspec.Struct, frozen=True):
    """The data of a report."""

    fingerprint: str | None = None


class Report(msgspec.Struct, frozen=True):
    """The parts of a report's JSON that comparisons need. data and flops are None in older reports."""

    experiment: ReportedExperiment
    runs: Annotated[list[ReportedRun], Meta(min_length=1)]
    parameters: Annotated[int, Meta(ge=0)]
    flops: Annotated[int, Meta(ge=0)] | None = None
    data: ReportedData | None = None

    def __post_init__(self) -> None:
        if len({run.seed for run in self.runs}) < len(self.runs):
            raise ValueError("a seed occurs twice")

    @property
    def seeds(self) -> Seeds:
        """The test metrics of all seeds."""
        return self._seeds_with([run.test for run in self.runs])

    @property
    def better_weights(self) -> tuple[str, Seeds]:
        """The weights whose mean on valid is better, raw or averaged, and their test metrics of all seeds.

        Without an average in every run, these are the weights of the models.
        """
        valids = [run.valid for run in self.runs if run.valid is not None]
        others = [run.other for run in self.runs if run.other is not None]
        selected = self.experiment.training.weights
        if min(len(valids), len(others)) < len(self.runs):
            return selected, self.seeds
        if self._score(valids) >= self._score([other.valid for other in others]):
            return selected, self.seeds
        return others[0].weights, self._seeds_with([other.test for other in others])

    def _score(self, valids: Sequence[ReportedMetrics]) -> float:
        if self.experiment.training.monitor == "auc":
            return statistics.mean(valid.auc for valid in valids)
        return -statistics.mean(valid.logloss for valid in valids)

    def _seeds_with(self, tests: Sequence[ReportedMetrics]) -> Seeds:
        fingerprint = self.data.fingerprint if self.data else None
        aucs, losses = [t.auc for t in tests], [t.logloss for t in tests]
        return Seeds(self.experiment.name, self.experiment.data, fingerprint, aucs, losses)


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Run Welch's t-test, which is unpaired and allows unequal variances (scipy.stats.ttest_ind).

    Raises:
        ValueError: If a side has fewer than two values, or if neither side has any variance.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} seeds: Welch's t-test needs at least two on each side")
    if len(set(a)) == len(set(b)) == 1:
        raise ValueError("all seeds of each side have the same value, so there is no variance for a test")
    with warnings.catch_warnings():
        # scipy warns if one side has no variance, but the variance of the other side is sufficient.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(a) - np.mean(b)), float(interval.low), float(interval.high), float(result.pvalue))


def read_seeds(name: str, runs: Path | None) -> Seeds:
    """Return the seeds of a report, or of the runs in a runs.jsonl with a given name or digest.

    Args:
        name: The path of a report (.json), or a name or the beginning of a digest in `runs`.
        runs: A runs.jsonl, or None.

    Raises:
        ValueError: If there is no such report or run, or the runs have different settings or data.
    """
    if Path(name).suffix == ".json":
        return read_report(Path(name)).seeds
    if runs is None:
        raise ValueError(
            f"{name} is not a report (.json). To compare run folders, specify two. For a name or digest, add "
            "--runs RUNS.jsonl."
        )
    index = RunList(runs).index()
    matches = {
        (settings, data)
        for (settings, _, data), run in index.items()
        if run.experiment.name == name or run.digest.startswith(name)
    }
    if not matches:
        raise ValueError(f"{runs} has no run with the name or digest {name!r}")
    if len(matches) > 1:
        raise ValueError(f"{runs}: runs of {name!r} have different settings or data. Use a digest or split the file.")
    found = [run for (settings, _, data), run in index.items() if (settings, data) in matches]
    tests = [run.metrics.test for run in found]
    log = msgspec.convert(msgspec.to_builtins(found[0].experiment.data), LogKeys)
    return Seeds(name, log, found[0].data.fingerprint, [t.auc for t in tests], [t.logloss for t in tests])


def read_report(path: Path) -> Report:
    """Read a report's JSON.

    Raises:
        ValueError: If the file is missing or is not a report.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such report") from error
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a report of ctr-train --seeds ({error})") from error


def compare_seeds(a: Seeds, b: Seeds) -> dict[str, Difference]:
    """Return the differences by metric. Raises ValueError like check_same_log() and welch()."""
    check_same_log(a, b)
    return {"test AUC": welch(a.aucs, b.aucs), "test logloss": welch(a.loglosses, b.loglosses)}


def check_same_log(a: Seeds, b: Seeds) -> None:
    """Check that two experiments were trained on the same data.

    Raises:
        ValueError: If they use different logs, or the same log prepared differently.
    """
    if a.log != b.log:
        raise ValueError(f"{a.name} uses the log {a.log}, and {b.name} uses {b.log}; their results cannot be compared")
    if a.fingerprint and b.fingerprint and a.fingerprint != b.fingerprint:
        raise ValueError(f"{a.name} and {b.name} use differently prepared data; their results cannot be compared")


def p_text(p: float) -> str:
    """Format a p-value with four decimals."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def mean_and_std(values: Sequence[float], digits: int) -> str:
    """Return "mean ± standard deviation" of a sample, or just the value if there is only one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
