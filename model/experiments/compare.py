"""ctr-compare: whether A is better than B, or only luckier; or every model of a data set beside STEC.

Two sets of seeds: Welch's t-test, the paper's unpaired one, on test AUC and logloss. Each of A and B is a report's
.json, or with --runs a name or digest in that runs.jsonl. Two run folders: a paired bootstrap over the test rows.
--all FOLDER: a table and two pictures of the reports in the folder, experiments/frappe for example.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data.data_folder import add_data_argument
from model.data.prepare.prepared import read_prepared
from model.experiments.leaderboard import write_standings
from model.experiments.run_folder import METRICS, check_log_of_run, open_run
from model.experiments.significance import (
    RESAMPLES,
    Difference,
    bootstrap_auc,
    bootstrap_mean,
    compare_seeds,
    p_text,
    read_seeds,
)
from model.experiments.trial import load_split
from model.training.fit import predict


def compare_runs(a: Path, b: Path, data: Path) -> dict[str, Difference]:
    """Two trained models on the same test rows, by a paired bootstrap.

    Raises:
        ValueError: when a folder is no run, their test rows are not the same, or `data` was prepared anew since.
    """
    (labels, ctr_a), (labels_b, ctr_b) = _predictions(a, data), _predictions(b, data)
    if not np.array_equal(labels, labels_b):
        raise ValueError(f"{a} and {b} are of different test rows: a paired test needs the same")
    losses_a, losses_b = _losses(labels, ctr_a), _losses(labels, ctr_b)
    return {
        "test AUC": Difference(*bootstrap_auc(labels, ctr_a, ctr_b)),
        "test logloss": Difference(*bootstrap_mean(losses_a - losses_b)),
    }


def _predictions(run: Path, data: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    model, experiment, _, _ = open_run(run)
    prepared = read_prepared(data / experiment.data.prepared)
    check_log_of_run(run, prepared)
    test = load_split(prepared, "test")
    return test.labels, predict(model, test)


def _losses(labels: NDArray[np.float32], ctr: NDArray[np.float64]) -> NDArray[np.float64]:
    smallest = np.finfo(np.float64).eps
    likelihood = np.where(labels > 0.5, ctr, 1 - ctr)
    losses: NDArray[np.float64] = -np.log(likelihood.clip(smallest))
    return losses


def text(how: str, differences: Mapping[str, Difference]) -> str:
    lines = [f"A - B, {how}:"]
    for metric, d in differences.items():
        lines.append(f"{metric:13} {d.value:+.5f}  95% interval [{d.low:+.5f}, {d.high:+.5f}]  p: {p_text(d.p)}")
    return "\n".join(lines)


def _compare(arguments: argparse.Namespace) -> str:
    folder_a, folder_b = Path(arguments.a), Path(arguments.b)
    if (folder_a / METRICS).is_file() and (folder_b / METRICS).is_file():
        how = f"paired bootstrap over the test rows, {RESAMPLES} resamples"
        return text(how, compare_runs(folder_a, folder_b, arguments.data))
    a, b = (read_seeds(what, arguments.runs) for what in (arguments.a, arguments.b))
    how = f"{a.name} ({len(a.aucs)} seeds) and {b.name} ({len(b.aucs)} seeds), Welch's t-test"
    return text(how, compare_seeds(a, b))


def main() -> int:
    parser = argparse.ArgumentParser(prog="ctr-compare", description=__doc__)
    parser.add_argument("a", nargs="?", help="a report's .json, a run folder, or a name in --runs")
    parser.add_argument("b", nargs="?", help="the same")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="a folder of reports: writes models.md there")
    parser.add_argument("--runs", type=Path, help="the runs.jsonl in which A and B are names or digests")
    add_data_argument(parser)
    arguments = parser.parse_args()
    if len([x for x in (arguments.a, arguments.b) if x]) != (0 if arguments.all else 2):
        parser.error("give A and B, or --all FOLDER")
    try:
        print(f"report: {write_standings(arguments.all)}" if arguments.all else _compare(arguments))
    except (OSError, ValueError) as error:
        print(f"ctr-compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
