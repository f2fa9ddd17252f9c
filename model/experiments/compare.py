"""Compare two experiments: Welch's t-test over their seeds, or a paired bootstrap on the test set of two runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.prepare.prepared import read_prepared
from model.experiments.bootstrap import RESAMPLES, bootstrap_auc, bootstrap_mean
from model.experiments.run_check import METRICS
from model.experiments.run_folder import check_log_of_run, open_run
from model.experiments.significance import Difference, compare_seeds, p_text, read_seeds
from model.experiments.trial import load_split
from model.training.batches import Split
from model.training.fit import predict
from model.training.metrics import logloss_by_row


def compare(a: str, b: str, runs: Path | None, data: Path) -> str:
    """Return the comparison of A and B as lines of text.

    Args:
        a: A run folder, the path of a report (.json), or a name or digest in `runs`.
        b: The same for B.
        runs: A runs.jsonl, or None.
        data: The base folder for the experiments' relative paths.

    Raises:
        ValueError: If A or B cannot be read, or if they cannot be compared.
    """
    folder_a, folder_b = Path(a), Path(b)
    if (folder_a / METRICS).is_file() and (folder_b / METRICS).is_file():
        return text(*compare_runs(folder_a, folder_b, data))
    seeds_a, seeds_b = (read_seeds(name, runs) for name in (a, b))
    sizes = f"{seeds_a.name} ({len(seeds_a.aucs)} seeds) and {seeds_b.name} ({len(seeds_b.aucs)} seeds)"
    return text(f"{sizes}, Welch's t-test", compare_seeds(seeds_a, seeds_b))


def compare_runs(a: Path, b: Path, data: Path) -> tuple[str, dict[str, Difference]]:
    """Return the method, and the differences between two trained models on the same test rows, by metric.

    Args:
        a: A run folder.
        b: A run folder.
        data: The base folder for the experiments' relative paths.

    Raises:
        ValueError: If a folder is not a run, if the runs have different test rows, or if the log has changed since
            training.
    """
    (test, ctr_a), (test_b, ctr_b) = predict_test(a, data), predict_test(b, data)
    if not np.array_equal(test.labels, test_b.labels):
        raise ValueError(f"{a} and {b} have different test rows; a paired test needs the same rows")
    losses = logloss_by_row(test.labels, ctr_a) - logloss_by_row(test.labels, ctr_b)
    weights, (kind, clusters) = test.metric_weights(), clusters_of(test)
    count = len(test) if clusters is None else len(np.unique(clusters))
    return f"paired bootstrap over the {count:,} {kind} of the test set, {RESAMPLES:,} resamples", {
        "test AUC": Difference(*bootstrap_auc(test.labels, ctr_a, ctr_b, weights=weights, clusters=clusters)),
        "test logloss": Difference(*bootstrap_mean(losses, weights=weights, clusters=clusters)),
    }


def clusters_of(test: Split) -> tuple[str, NDArray[Any] | None]:
    """Return what a bootstrap draws: the units, or else the requests, or else the rows (None)."""
    if test.units is not None:
        return "units", test.units
    if test.requests is not None:
        return "requests", test.requests
    return "rows", None


def predict_test(run: Path, data: Path) -> tuple[Split, NDArray[np.float64]]:
    """Return the test split of a run's log and the model's probabilities, (rows)."""
    model, experiment, _, _ = open_run(run)
    prepared = read_prepared(data / experiment.data.prepared)
    check_log_of_run(run, prepared)
    test = load_split(prepared, "test")
    return test, predict(model, test)


def text(method: str, differences: Mapping[str, Difference]) -> str:
    """Return a headline and one line per metric."""
    lines = [f"A - B, {method}:"]
    for metric, d in differences.items():
        lines.append(f"{metric:13} {d.value:+.5f}  95% interval [{d.low:+.5f}, {d.high:+.5f}]  p: {p_text(d.p)}")
    return "\n".join(lines)
