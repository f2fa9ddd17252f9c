"""ctr-sweep: a base experiment, or several, at many points, the best chosen on valid alone.

Finished runs are lines of results/runs.jsonl beside the base experiments: a second call trains only what is missing,
and several processes share the work. Writes results/NAME.md beside NAME.toml.
"""

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
from model.experiments.report import merged
from model.experiments.run_registry import FinishedRun, key, results_folder, run_list
from model.experiments.seeds import Place, run_missing, with_seed
from model.experiments.significance import mean_and_std
from model.experiments.sweep_config import Base, Point, read_sweep
from model.experiments.trial import OpenedLog, open_log
from model.training.device import CPU
from model.training.early_stopping import Epoch

WIDE = 200  # columns of text, into a file
COLUMNS = ("point", "seeds", "valid AUC", "valid logloss", "test AUC", "test logloss", "parameters", "FLOPs", "s")


@dataclass(frozen=True)
class Measured:
    """A point and the runs that it has so far, of `seeds`."""

    point: Point
    runs: list[FinishedRun]
    seeds: int

    @property
    def complete(self) -> bool:
        return len(self.runs) == self.seeds

    def score(self, monitor: str) -> float:
        """On valid, the higher the better. Of a point with runs."""
        valid = [r.metrics.valid for r in self.runs]
        return statistics.mean(v.auc if monitor == "auc" else -v.logloss for v in valid)

    def figures(self) -> list[str]:
        """The cells behind the point's."""
        if not self.runs:
            return ["0", *[""] * (len(COLUMNS) - 2)]
        metrics = [r.metrics for r in self.runs]
        return [
            str(len(metrics)),
            mean_and_std([m.valid.auc * 100 for m in metrics], 2),
            mean_and_std([m.valid.logloss for m in metrics], 4),
            mean_and_std([m.test.auc * 100 for m in metrics], 2),
            mean_and_std([m.test.logloss for m in metrics], 4),
            f"{metrics[0].parameters:,}",
            "" if metrics[0].flops is None else f"{metrics[0].flops:,}",
            f"{sum(m.seconds for m in metrics):.0f}",
        ]


class SweepTable:
    """All points, filled as their runs end, in this process or another. Into a file, a plain line a run."""

    def __init__(self, title: str, points: Sequence[Point], seeds: int, place: Place) -> None:
        self._title, self._points, self._seeds, self._place = title, points, seeds, place
        self._now = ""
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
            Console(width=WIDE).print(self._table())

    def measured(self) -> list[Measured]:
        runs, data = self._place.runs.index(), self._place.log.facts.fingerprint
        seeds = range(1, self._seeds + 1)
        return [
            Measured(p, [runs[k] for n in seeds if (k := key(with_seed(p.experiment, n), data)) in runs], self._seeds)
            for p in self._points
        ]

    def show(self, now: str) -> None:
        self._now = now
        if self._live.console.is_terminal:
            self._live.update(self._table())

    def line(self, text: str) -> None:
        if not self._live.console.is_terminal:
            print(text, flush=True)

    def _table(self) -> Table:
        table = Table(title=self._title, caption=self._now)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "point" else "right")
        for measured in self.measured():
            table.add_row(measured.point.experiment.name, *measured.figures())
        return table


class PointWatch:
    """One run, as the sweep's table shows it."""

    def __init__(self, table: SweepTable, experiment: Experiment) -> None:
        self._table, self._what = table, f"{experiment.name}, seed {experiment.training.seed}"

    def __enter__(self) -> Self:
        self._table.show(f"now {self._what}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.show("")

    def on_epoch(self, epoch: Epoch) -> None:
        self._table.show(f"now {self._what}: epoch {epoch.epoch}, valid AUC {epoch.valid.auc:.5f}")

    def on_rows(self, rows: int) -> None:
        pass


def sweep(path: Path, data: Path, device: torch.device = CPU) -> list[list[Measured]]:
    """Makes the runs that are missing and writes the page. Returns each base's points, the best on valid first.

    A point whose training fails, by a learning rate that is too high or for want of memory, is told and not ranked.
    """
    plan, bases = read_sweep(path)
    points = [point for base in bases for point in base.points]
    log: OpenedLog = open_log(bases[0].experiment.data, data)
    place = Place(log, run_list(path.parent / bases[0].toml), data, device=device)
    table = SweepTable(path.stem, points, plan.seeds, place)

    def on_finished(run: FinishedRun) -> None:
        valid = run.metrics.valid
        seed = f"{run.experiment.name}, seed {run.metrics.seed}"
        table.line(f"{seed}: valid AUC {valid.auc:.5f}, valid logloss {valid.logloss:.5f}")
        table.show("")

    def on_failed(experiment: Experiment, error: Exception) -> None:
        table.failures[f"{experiment.name}, seed {experiment.training.seed}"] = str(error)
        table.line(f"{experiment.name}, seed {experiment.training.seed}: {error}")

    wanted = [with_seed(p.experiment, seed) for p in points for seed in range(1, plan.seeds + 1)]
    with table:
        run_missing(wanted, place, lambda experiment, rows: PointWatch(table, experiment), on_finished, on_failed)
    found = iter(table.measured())
    ranked = [rank([*islice(found, len(base.points))], base.experiment.training.monitor) for base in bases]
    results = results_folder(path)
    results.mkdir(exist_ok=True)  # If every run failed, no run has made it.
    write_whole(results / f"{path.stem}.md", markdown(path.stem, bases, ranked, table.failures).encode())
    return ranked


def rank(points: Sequence[Measured], monitor: str) -> list[Measured]:
    """The best on valid first; those that lack a run come last, for fewer seeds may only be luckier ones."""
    complete = sorted((m for m in points if m.complete), key=lambda m: m.score(monitor), reverse=True)
    return [*complete, *(m for m in points if not m.complete)]


def markdown(title: str, bases: Sequence[Base], ranked: Sequence[Sequence[Measured]], failures: dict[str, str]) -> str:
    lines = [f"# {title}", ""]
    for base, points in zip(bases, ranked, strict=True):
        lines += [f"## {base.experiment.name}", ""] if len(bases) > 1 else []
        lines += [*_section(base, points), ""]
    lines += [f"- {name} failed: {error}" for name, error in failures.items()]
    versions = [run.versions for points in ranked for measured in points for run in measured.runs]
    if versions:
        lines += ["- Versions: " + ", ".join(f"{name} {v}" for name, v in merged(versions).items()) + "."]
    return "\n".join([*lines, ""])


def _section(base: Base, ranked: Sequence[Measured]) -> list[str]:
    """What was tried around one base, and its table."""
    monitor = "AUC" if base.experiment.training.monitor == "auc" else "logloss"
    tried = f"{len(ranked)} points around {base.experiment.name} (`{base.toml}`), {ranked[0].seeds} seed(s) each."
    if ranked[0].complete:
        told = f"Chosen by valid {monitor} alone: **{ranked[0].point.label}**; the test columns had no say."
    else:
        told = "No point has all its runs: none is chosen."
    head = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    rows = ("| " + " | ".join([measured.point.label, *measured.figures()]) + " |" for measured in ranked)
    return [f"{tried} {told}", "", *head, *rows]
