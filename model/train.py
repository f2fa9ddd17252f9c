"""ctr-train: an experiment and its prepared data in, a run folder out."""

import argparse
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model.data.folder import add_data_argument
from model.data.prepared import Prepared, read_prepared
from model.experiment import Experiment, read_experiment
from model.fit import Epoch, Split, fit, predict
from model.folder import check_replaceable, new_folder
from model.metrics import evaluate
from model.run import METRICS, RunMetrics, write_run
from model.stec import stec_for


class LiveTable:
    """One line an epoch, and a bar for the rows of the current one. Into a file, a plain line an epoch."""

    def __init__(self, experiment: Experiment, rows: int) -> None:
        self._table = Table(title=f"{experiment.name}, seed {experiment.training.seed}")
        for column in ("epoch", "loss", "valid AUC", "valid logloss", "lr", "rows/s"):
            self._table.add_column(column, justify="right")
        self._bar = Progress(
            TextColumn("epoch"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn()
        )
        self._task = self._bar.add_task("rows", total=rows)
        self.live = Live(Group(self._table, self._bar), console=Console(), refresh_per_second=4)

    def on_rows(self, rows: int) -> None:
        self._bar.advance(self._task, rows)

    def on_epoch(self, epoch: Epoch) -> None:
        cells = (
            f"{epoch.loss:.5f}",
            f"{epoch.valid.auc:.5f}",
            f"{epoch.valid.logloss:.5f}",
            f"{epoch.learning_rate:.0e}",
        )
        best = "*" if epoch.improved else ""
        self._table.add_row(f"{epoch.epoch}{best}", *cells, f"{epoch.rows_per_s:,.0f}")
        self._bar.reset(self._task)
        if not self.live.console.is_terminal:
            print(f"epoch {epoch.epoch}{best}", "loss {} valid AUC {} logloss {} lr {}".format(*cells), flush=True)


def load_split(prepared: Prepared, name: str) -> Split:
    """train, valid or test as the loop takes it.

    Raises:
        ValueError: when all its rows are clicks, or none: it could not be judged after hours of training.
    """
    ids, values, labels = prepared.split(name)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{prepared.folder}: {name} has only clicks, or none: AUC needs both")
    # Copies: torch wants memory that it may write to, and the files are mapped read-only.
    return Split(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(values.copy()), torch.from_numpy(labels))


def train(experiment: Experiment, data: Path, out: Path) -> RunMetrics:
    """Trains one seed and writes the run.

    Raises:
        ValueError: when the data is not prepared, or not by this experiment, or `out` is something else than a run.
    """
    check_replaceable(out, METRICS)
    prepared = read_prepared(data / experiment.data.prepared)
    if prepared.facts.data != experiment.data:
        raise ValueError(f"{prepared.folder} was prepared with another [data] section: run ctr-prepare again")
    splits = {name: load_split(prepared, name) for name in ("train", "valid", "test")}
    torch.manual_seed(experiment.training.seed)
    model = stec_for(prepared.schema, prepared.vocabulary_sizes, experiment.model)
    table = LiveTable(experiment, len(splits["train"]))
    with table.live:
        history = fit(
            model,
            model.embedding_parameters(),
            splits["train"],
            splits["valid"],
            experiment.training,
            table.on_epoch,
            table.on_rows,
        )
    best = max((e for e in history if e.improved), key=lambda e: e.epoch)
    metrics = RunMetrics(
        seed=experiment.training.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        best_epoch=best.epoch,
        seconds=sum(len(splits["train"]) / e.rows_per_s for e in history),
        valid=best.valid,
        test=evaluate(splits["test"].labels.numpy(), predict(model, splits["test"])),
        history=history,
    )
    with new_folder(out, METRICS) as folder:
        write_run(folder, experiment, model, prepared.schema, prepared.vocabulary, metrics)
    return metrics


def main() -> int:
    parser = argparse.ArgumentParser(prog="ctr-train", description=__doc__)
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file")
    add_data_argument(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="the run folder to write; an older run there is replaced"
    )
    parser.add_argument("--seed", type=int, help="instead of the experiment's own")
    arguments = parser.parse_args()
    try:
        experiment = read_experiment(arguments.experiment)
        if arguments.seed is not None:
            training = msgspec.structs.replace(experiment.training, seed=arguments.seed)
            experiment = msgspec.structs.replace(experiment, training=training)
        metrics = train(experiment, arguments.data, arguments.out)
    except (OSError, ValueError) as error:
        print(f"ctr-train: {error}", file=sys.stderr)
        return 2
    print(f"best epoch {metrics.best_epoch}: test AUC {metrics.test.auc:.5f}, test logloss {metrics.test.logloss:.5f}")
    print(f"run: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
