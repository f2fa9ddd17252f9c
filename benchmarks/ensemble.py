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
from model.experiments.run_folder import open_run
from model.experiments.run_registry import settings
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
    experiment = opened[0][1]
    for run, (_, other, _, _) in zip(options.runs, opened, strict=True):
        if settings(other) != settings(experiment):
            print(f"{run}: the settings differ from those of {options.runs[0]} in more than the seed", file=sys.stderr)
            return 2
    test = open_log(experiment.data, options.data).splits["test"]
    logits = torch.stack([predict_logits(model, test) for model, _, _, _ in opened])
    alone = [metrics.test for _, _, _, metrics in opened]
    means = statistics.mean(m.auc for m in alone), statistics.mean(m.logloss for m in alone)
    average = evaluate_split(test, (logits.mean(0) + math.log(test.negative_rate)).sigmoid().numpy())
    rows = [
        [experiment.name, f"{len(alone)} runs, mean", *cells(*means)],
        [experiment.name, "average of the logits", *cells(average.auc, average.logloss)],
    ]
    table = Table("", ["experiment", "model", "test AUC", "test logloss"], rows)
    command = f"python -m benchmarks.ensemble --data DIR --name {options.name} RUN..."
    write_report(RESULTS / f"{options.name}.md", TITLE, TEXT, [table], ["torch", "numpy", "scikit-learn"], command)
    return 0


def cells(auc: float, logloss: float) -> list[str]:
    """Return the formatted metrics."""
    return [f"{100 * auc:.2f}", f"{logloss:.4f}"]


if __name__ == "__main__":
    sys.exit(main())
