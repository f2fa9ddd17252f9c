"""Running a sweep: training one or more base experiments at many points, and ranking the points on validation data."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from model.atomic_folder import write_whole
from model.experiment_config import Experiment
from model.experiments.report import merge_versions
from model.experiments.run_registry import FinishedRun, key, results_folder, run_list
from model.experiments.seeds import RunContext, run_missing, with_seed
from model.experiments.significance import mean_and_std
from model.experiments.sweep_config import Base, Point, read_sweep
from model.experiments.trial import open_log
from model.training.device import CPU
from model.training.early_stopping import Epoch
from model.training.metrics import Metrics

TEXT_WIDTH = 200  # characters per line if the output is not a terminal
COLUMNS = (
    *("point", "seeds", "weights", "valid AUC", "valid logloss", "test AUC", "test logloss", "parameters", "FLOPs"),
    "s",
)


@dataclass(frozen=True)
class PointRuns:
    """A point of a sweep and its finished runs, out of a total of `seeds` runs."""

    point: Point
    runs: list[FinishedRun]
    seeds: int

    @property
    def complete(self) -> bool:
        """Whether the runs of all seeds have finished."""
        return len(self.runs) == self.seeds

    def score(self, monitor: str) -> float:
        """Return the mean of the monitored validation metric, negated if lower is better."""
        return score_of(self.better_weights(monitor)[1], monitor)

    def better_weights(self, monitor: str) -> tuple[str, list[tuple[Metrics, Metrics]]]:
        """Return the weights whose mean on valid is better, raw or averaged, and the metrics of each run with them.

        Without an average in every run, these are the weights of the models.

        Returns:
            The name of the weights, and the metrics on valid and on test of each run.
        """
        selected = [(run.metrics.valid, run.metrics.test) for run in self.runs]
        others = [other for run in self.runs if (other := run.metrics.other) is not None]
        measured = [(other.valid, other.test) for other in others]
        if len(others) == len(self.runs) and score_of(measured, monitor) > score_of(selected, monitor):
            return others[0].weights, measured
        return self.runs[0].experiment.training.weights, selected

    def cells(self, monitor: str) -> list[str]:
        """Return the cells of the point's row, without its name."""
        if not self.runs:
            return ["0", *[""] * (len(COLUMNS) - 2)]
        weights, measured = self.better_weights(monitor)
        metrics = [run.metrics for run in self.runs]
        return [
            str(len(metrics)),
            weights,
            mean_and_std([valid.auc * 100 for valid, _ in measured], 2),
            mean_and_std([valid.logloss for valid, _ in measured], 4),
            mean_and_std([test.auc * 100 for _, test in measured], 2),
            mean_and_std([test.logloss for _, test in measured], 4),
            f"{metrics[0].parameters:,}",
            "" if metrics[0].flops is None else f"{metrics[0].flops:,}",
            f"{sum(m.seconds for m in metrics):.0f}",
        ]


def score_of(measured: Sequence[tuple[Metrics, Metrics]], monitor: str) -> float:
    """Return the mean of the monitored validation metric of runs, negated if lower is better."""
    return statistics.mean(valid.auc if monitor == "auc" else -valid.logloss for valid, _ in measured)


class SweepTable:
    """A table of all points that is updated as runs finish in this or another process.

    If the output is not a terminal, this prints a plain line per run, and the table at the end.
    """

    def __init__(self, title: str, points: Sequence[Point], seeds: int, context: RunContext) -> None:
        self._title, self._points, self._seeds, self._context = title, points, seeds, context
        self._caption = ""
        self.failures: dict[str, str] = {}
        self._live = Live(self._table(), console=Console(), refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if not self._live.console.is_terminal:
            Console(width=TEXT_WIDTH).print(self._table())

    def points(self) -> list[PointRuns]:
        """Return the points with the runs that have finished so far."""
        runs, data = self._context.runs.index(), self._context.log.facts.fingerprint
        seeds = range(1, self._seeds + 1)
        return [
            PointRuns(p, [runs[k] for n in seeds if (k := key(with_seed(p.experiment, n), data)) in runs], self._seeds)
            for p in self._points
        ]

    def update(self, caption: str) -> None:
        """Redraw the table with a caption about the current run."""
        self._caption = caption
        if self._live.console.is_terminal:
            self._live.update(self._table())

    def print_line(self, text: str) -> None:
        """Print a line if the output is not a terminal."""
        if not self._live.console.is_terminal:
            print(text, flush=True)

    def _table(self) -> Table:
        table = Table(title=self._title, caption=self._caption)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "point" else "right")
        for point in self.points():
            monitor = point.point.experiment.training.monitor
            table.add_row(point.point.experiment.name, *point.cells(monitor))
        return table


class PointProgress:
    """The progress of one run, shown in the caption of the sweep's table."""

    def __init__(self, table: SweepTable, experiment: Experiment) -> None:
        self._table, self._run = table, run_name(experiment)

    def __enter__(self) -> Self:
        self._table.update(f"training {self._run}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.update("")

    def on_epoch(self, epoch: Epoch) -> None:
        """Show the epoch in the caption."""
        self._table.update(f"training {self._run}: epoch {epoch}, valid AUC {epoch.valid.auc:.5f}")

    def on_rows(self, rows: int) -> None:
        """Do nothing, because a sweep has no progress bar for rows."""


def sweep(path: Path, data: Path, device: torch.device = CPU) -> list[list[PointRuns]]:
    """Train the missing runs of a sweep and write its report.

    If training fails at a point, for example because the learning rate is too high or memory runs out, the point is
    reported but not ranked.

    Args:
        path: The sweep's TOML file.
        data: The base folder for the experiments' relative paths.
        device: The device to train on.

    Returns:
        The points of each base experiment, sorted by validation metric, best first.
    """
    config, bases = read_sweep(path)
    points = [point for base in bases for point in base.points]
    log = open_log(bases[0].experiment.data, data)
    context = RunContext(log, run_list(path.parent / bases[0].toml), data, device=device)
    table = SweepTable(path.stem, points, config.seeds, context)

    def on_finished(run: FinishedRun) -> None:
        valid, name = run.metrics.valid, run_name(run.experiment)
        table.print_line(f"{name}: valid AUC {valid.auc:.5f}, valid logloss {valid.logloss:.5f}")
        table.update("")

    def on_failed(experiment: Experiment, error: Exception) -> None:
        table.failures[run_name(experiment)] = str(error)
        table.print_line(f"{run_name(experiment)}: {error}")

    experiments = [with_seed(p.experiment, seed) for p in points for seed in range(1, config.seeds + 1)]
    with table:
        run_missing(experiments, context, lambda e, rows: PointProgress(table, e), on_finished, on_failed)
    found = iter(table.points())
    ranked = [rank([*islice(found, len(base.points))], base.experiment.training.monitor) for base in bases]
    results = results_folder(path)
    results.mkdir(parents=True, exist_ok=True)  # If every run failed, no run has created it.
    write_whole(results / f"{path.stem}.md", markdown(path.stem, bases, ranked, table.failures).encode())
    return ranked


def run_name(experiment: Experiment) -> str:
    """Return the name of a run."""
    return f"{experiment.name}, seed {experiment.training.seed}"


def rank(points: Sequence[PointRuns], monitor: str) -> list[PointRuns]:
    """Sort points by validation metric, best first. Incomplete points come last: a mean of few seeds may be luck."""
    complete = sorted((p for p in points if p.complete), key=lambda p: p.score(monitor), reverse=True)
    return [*complete, *(p for p in points if not p.complete)]


def markdown(title: str, bases: Sequence[Base], ranked: Sequence[Sequence[PointRuns]], failures: dict[str, str]) -> str:
    """Return the sweep's report as Markdown, with a section for each base experiment."""
    lines = [f"# {title}", ""]
    for base, points in zip(bases, ranked, strict=True):
        lines += [f"## {base.experiment.name}", ""] if len(bases) > 1 else []
        lines += [*section(base, points), ""]
    lines += [f"- {name} failed: {error}" for name, error in failures.items()]
    versions = [run.versions for points in ranked for point in points for run in point.runs]
    if versions:
        lines += ["- Versions: " + ", ".join(f"{name} {v}" for name, v in merge_versions(versions).items()) + "."]
    return "\n".join([*lines, ""])


def section(base: Base, ranked: Sequence[PointRuns]) -> list[str]:
    """Return the lines about one base experiment: which point was chosen, and a table of all points."""
    monitor = "AUC" if base.experiment.training.monitor == "auc" else "logloss"
    summary = f"{len(ranked)} points around {base.experiment.name} (`{base.toml}`), {ranked[0].seeds} seed(s) each."
    if ranked[0].complete:
        choice = f"Chosen by valid {monitor} alone, without looking at test: **{ranked[0].point.label}**."
    else:
        choice = "No point has completed all its runs, so none is chosen."
    if (metrics := next((run.metrics for point in ranked for run in point.runs), None)) and metrics.test.base_logloss:
        choice += (
            f" The base rate's logloss is {metrics.valid.base_logloss:.4f} on valid and "
            f"{metrics.test.base_logloss:.4f} on test."
        )
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    cells = ([point.point.label, *point.cells(base.experiment.training.monitor)] for point in ranked)
    rows = (f"| {' | '.join(row)} |" for row in cells)
    return [f"{summary} {choice}", "", *head, *rows]
