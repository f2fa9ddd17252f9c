"""Metrics of the average of several runs' logits, which a single model should be compared with."""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

from benchmarks import RESULTS
from loadtest.report import Table, write_report
from model.data.data_folder import add_data_argument
from model.experiment_config import common_data
from model.experiments.run_folder import open_run
from model.experiments.trial import open_log
from model.training.fit import predict_logits
from model.training.metrics import evaluate_split

TITLE = "The average of several runs"
TEXT = """The runs differ only in their seeds. The average is that of their logits, so it costs as much as all of them
to serve. It is a reference, not one of the compared models."""


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.ensemble", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; all runs share one log")
    parser.add_argument("--name", default="ensemble", help="the report is written to benchmarks/results/NAME.md")
    options = parser.parse_args()
    opened = [open_run(run) for run in options.runs]
    try:
        data = common_data([experiment for _, experiment, _, _ in opened])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    test = open_log(data, options.data).splits["test"]
    logits = torch.stack([predict_logits(model, test) for model, _, _, _ in opened])
    alone = [metrics.test for _, _, _, metrics in opened]
    average = evaluate_split(test, (logits.mean(0) + math.log(test.negative_rate)).sigmoid().numpy())
    rows = [
        [opened[0][1].name, f"{len(alone)} runs, mean", *cells(*(mean_of(alone, key) for key in ("auc", "logloss")))],
        [opened[0][1].name, "average of the logits", *cells(average.auc, average.logloss)],
    ]
    table = Table("", ["experiment", "model", "test AUC", "test logloss"], rows)
    command = f"python -m benchmarks.ensemble --data DIR --name {options.name} RUN..."
    write_report(RESULTS / f"{options.name}.md", TITLE, TEXT, [table], ["torch", "numpy", "scikit-learn"], command)
    return 0


def mean_of(metrics: list[object], key: str) -> float:
    return statistics.mean(getattr(measured, key) for measured in metrics)


def cells(auc: float, logloss: float) -> list[str]:
    return [f"{100 * auc:.2f}", f"{logloss:.4f}"]


if __name__ == "__main__":
    sys.exit(main())
