"""The progress display of ctr-train."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model.experiment_config import Experiment, other_weights
from model.training.early_stopping import Epoch
from model.training.metrics import Metrics


class TrainingProgress(Protocol):
    """Shows the progress of one run. The context is entered when the run starts and exited when it ends."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def on_epoch(self, epoch: Epoch) -> None: ...
    def on_rows(self, rows: int) -> None: ...


def with_base_rate(metrics: Metrics) -> str:
    """Return a split's logloss and, if they were measured, the base rate's logloss and the normalized entropy."""
    if metrics.base_logloss is None or metrics.normalized_entropy is None:
        return f"{metrics.logloss:.5f}"
    base = f"base rate {metrics.base_logloss:.5f}, normalized entropy {metrics.normalized_entropy:.4f}"
    return f"{metrics.logloss:.5f} ({base})"


def rate_text(rate: float) -> str:
    """Format a learning rate with up to two digits: 1e-03 or 2.5e-04."""
    return f"{rate:.1e}".replace(".0e", "e")


class EpochTable:
    """A table with a row per evaluation, and a progress bar for the rows of the current epoch.

    If the output is not a terminal, this prints a plain line per evaluation.
    """

    def __init__(self, experiment: Experiment, rows: int) -> None:
        """Create the table.

        Args:
            experiment: The experiment that is trained.
            rows: The number of training rows.
        """
        self._table = Table(title=f"{experiment.name}, seed {experiment.training.seed}")
        columns = ["epoch", "loss", "valid AUC", "valid logloss", "base rate", "norm. entropy", "lr", "rows/s", "s"]
        self._other = other_weights(experiment.training)
        if self._other:
            columns += [f"{self._other} AUC", f"{self._other} logloss"]
        for column in columns:
            self._table.add_column(column, justify="right")
        self._bar = Progress(
            TextColumn("epoch"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn()
        )
        self._rows = rows
        self._task = self._bar.add_task("rows", total=rows)
        self._live = Live(Group(self._table, self._bar), console=Console(), refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live.console.is_terminal:  # otherwise rich would print one empty bar
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def on_rows(self, rows: int) -> None:
        """Advance the progress bar."""
        self._bar.advance(self._task, rows)

    def on_epoch(self, epoch: Epoch) -> None:
        """Add a row, and reset the progress bar after an epoch. A star marks the best weights so far."""
        cells = (
            f"{epoch.loss:.5f}",
            f"{epoch.valid.auc:.5f}",
            f"{epoch.valid.logloss:.5f}",
            "" if epoch.valid.base_logloss is None else f"{epoch.valid.base_logloss:.5f}",
            "" if epoch.valid.normalized_entropy is None else f"{epoch.valid.normalized_entropy:.4f}",
            rate_text(epoch.learning_rate),
        )
        best, other_best = ("*" if improved else "" for improved in (epoch.improved, epoch.other_improved))
        others = () if epoch.other_valid is None else (epoch.other_valid.auc, epoch.other_valid.logloss)
        other_cells = [f"{value:.5f}{other_best}" for value in others]
        seconds = "" if epoch.wall_s is None else f"{epoch.wall_s:.1f}"
        self._table.add_row(f"{epoch}{best}", *cells, f"{epoch.rows_per_s:,.0f}", seconds, *other_cells)
        if epoch.part < 1:
            self._bar.update(self._task, completed=epoch.part * self._rows)
        else:
            self._bar.reset(self._task)
        if not self._live.console.is_terminal:
            valid = f"valid AUC {epoch.valid.auc:.5f} logloss {with_base_rate(epoch.valid)}"
            other = f" {self._other} AUC {other_cells[0]} logloss {other_cells[1]}" if other_cells else ""
            time = seconds and f" {seconds} s"
            print(
                f"epoch {epoch}{best} loss {epoch.loss:.5f} {valid} lr {rate_text(epoch.learning_rate)}{other}{time}",
                flush=True,
            )
