"""Whether A is better than B or only luckier: Welch's t-test over seeds, or a paired bootstrap over test rows.

Welch's unpaired t-test is the paper's. In the paired bootstrap both models see the same resample, so what they share
cancels. It draws RESAMPLES seeded resamples of all rows with replacement, and leaves out resamples of one class only,
which have no AUC. An Outcome is the difference on the rows themselves, the 2.5th and 97.5th percentile of the
resamples' differences, and the two-sided p: twice the share of resamples on the rarer side of zero, at least
2 / (resamples + 1).
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from model.experiments.run_registry import FinishedRun, RunList

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 1

Outcome = tuple[float, float, float, float]
Floats = NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """A minus B: of the means, its 95% confidence interval, and the p of no difference, two-sided."""

    value: float
    low: float
    high: float
    p: float


class LogKeys(msgspec.Struct, frozen=True):
    """The keys of [data] that decide which rows test has."""

    reader: str
    folder: str
    split: str = "row"
    split_seed: int = 1

    def __str__(self) -> str:
        return f"{self.reader} in {self.folder}, split {self.split}, split_seed {self.split_seed}"


@dataclass(frozen=True)
class Seeds:
    """What each of an experiment's seeds measured on test.

    log, fingerprint: which data, for only one log's numbers compare; older reports have no fingerprint.
    """

    name: str
    log: LogKeys
    fingerprint: str | None
    aucs: list[float]
    loglosses: list[float]


class Measured(msgspec.Struct, frozen=True):
    """On test."""

    auc: Annotated[float, Meta(gt=0, le=1)]
    logloss: Annotated[float, Meta(ge=0)]


class ReportedRun(msgspec.Struct, frozen=True):
    seed: int
    test: Measured


class ReportedExperiment(msgspec.Struct, frozen=True):
    name: str
    data: LogKeys


class ReportedData(msgspec.Struct, frozen=True):
    fingerprint: str | None = None


class Report(msgspec.Struct, frozen=True):
    """What is read of a NAME.json, which ctr-train --seeds writes. data, flops: None in an older one."""

    experiment: ReportedExperiment
    runs: Annotated[list[ReportedRun], Meta(min_length=1)]
    parameters: Annotated[int, Meta(ge=0)]
    flops: Annotated[int, Meta(ge=0)] | None = None
    data: ReportedData | None = None

    def __post_init__(self) -> None:
        if len({run.seed for run in self.runs}) < len(self.runs):
            raise ValueError("it has a seed twice")

    @property
    def seeds(self) -> Seeds:
        """For a comparison."""
        tests = [run.test for run in self.runs]
        fingerprint = self.data.fingerprint if self.data else None
        aucs, losses = [t.auc for t in tests], [t.logloss for t in tests]
        return Seeds(self.experiment.name, self.experiment.data, fingerprint, aucs, losses)


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Unpaired, of unequal variances (scipy.stats.ttest_ind).

    Raises:
        ValueError: for fewer than two values on a side, or when no value differs from its side's others.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} seeds: Welch's test needs two or more on each side")
    if len(set(a)) == len(set(b)) == 1:
        raise ValueError("the seeds of each side have one value: there is no spread to compare the difference with")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side without spread: precise enough, by the other's
        result = stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(float(np.mean(a) - np.mean(b)), float(interval.low), float(interval.high), float(result.pvalue))


def read_seeds(what: str, runs: Path | None) -> Seeds:
    """A report's seeds, or those in `runs` of the settings and data that a name or digest there stands for.

    Raises:
        ValueError: when `what` is neither, or stands for several settings or data.
    """
    if Path(what).suffix == ".json":
        return read_report(Path(what)).seeds
    if runs is None:
        raise ValueError(
            f"{what}: no report (.json), and two run folders or none; for a name or digest, add --runs RUNS.jsonl"
        )
    every = RunList(runs).index()
    meant = {(kind, data) for (kind, _, data), r in every.items() if _is_called(r, what)}
    if not meant:
        raise ValueError(f"{runs} has no run with the name or digest {what!r}")
    if len(meant) > 1:
        raise ValueError(f"{what!r} stands for different settings or data in {runs}: give a digest, or split the file")
    found = [r for (kind, _, data), r in every.items() if (kind, data) in meant]
    tests = [r.metrics.test for r in found]
    log = msgspec.convert(msgspec.to_builtins(found[0].experiment.data), LogKeys)
    return Seeds(what, log, found[0].data.fingerprint, [t.auc for t in tests], [t.logloss for t in tests])


def _is_called(run: FinishedRun, what: str) -> bool:
    return run.experiment.name == what or run.digest.startswith(what)


def read_report(path: Path) -> Report:
    """Raises ValueError, with the file's name, for one that is not there or is no report."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such report") from error
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no report of ctr-train --seeds ({error})") from error


def compare_seeds(a: Seeds, b: Seeds) -> dict[str, Difference]:
    """By metric. Raises ValueError as check_same_log() does, and as welch() does."""
    check_same_log(a, b)
    return {"test AUC": welch(a.aucs, b.aucs), "test logloss": welch(a.loglosses, b.loglosses)}


def check_same_log(a: Seeds, b: Seeds) -> None:
    """Raises ValueError when the two are of different logs, or of one that was prepared differently."""
    if a.log != b.log:
        raise ValueError(f"{a.name} is of the log {a.log} and {b.name} of {b.log}: their numbers do not compare")
    if a.fingerprint and b.fingerprint and a.fingerprint != b.fingerprint:
        raise ValueError(f"{a.name} and {b.name} are of differently prepared data: their numbers do not compare")


def p_text(p: float) -> str:
    """Four digits; none of them means nothing."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def mean_and_std(values: Sequence[float], digits: int) -> str:
    """The deviation is the sample's; one value has none."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def bootstrap_auc(labels: Floats, ctr_a: Floats, ctr_b: Floats, resamples: int = RESAMPLES) -> Outcome:
    """Of AUC(a) - AUC(b). All arrays are (rows)."""
    auc_a, auc_b = WeightedAuc(labels, ctr_a), WeightedAuc(labels, ctr_b)
    return _bootstrap(lambda counts: auc_a(counts) - auc_b(counts), len(labels), resamples)


def bootstrap_mean(values: Floats, resamples: int = RESAMPLES) -> Outcome:
    """Of the mean over rows of a paired difference."""
    return _bootstrap(lambda counts: float(counts @ values / len(values)), len(values), resamples)


class WeightedAuc:
    """AUC with a count for each row, exact with ties, in linear time once the predictions are sorted."""

    def __init__(self, labels: Floats, ctr: Floats) -> None:
        self._clicks = labels > 0.5
        distinct, self._group = np.unique(ctr, return_inverse=True)
        self._groups = len(distinct)

    def __call__(self, counts: NDArray[np.int64]) -> float:
        clicks, others = (self._by_group(np.where(kind, counts, 0)) for kind in (self._clicks, ~self._clicks))
        if not (clicks.any() and others.any()):
            return np.nan
        below = np.cumsum(others) - others
        return float(clicks @ (below + others / 2) / (clicks.sum() * others.sum()))

    def _by_group(self, counts: NDArray[np.int64]) -> Floats:
        return np.bincount(self._group, weights=counts, minlength=self._groups)


def _bootstrap(difference: Callable[[NDArray[np.int64]], float], rows: int, resamples: int) -> Outcome:
    random = np.random.default_rng(SEED)
    drawn = np.array(
        [difference(np.bincount(random.integers(rows, size=rows), minlength=rows)) for _ in range(resamples)]
    )
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    rarer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
    return difference(np.ones(rows, np.int64)), float(low), float(high), p
