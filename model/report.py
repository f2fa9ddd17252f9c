"""Finished runs, one a seed -> a report that stays: <out>.json for programs, <out>.md for people.

python -m model.report runs/frappe-1 runs/frappe-2 --out experiments/frappe/stec
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sklearn.metrics import roc_auc_score

from model.data.folder import add_data_argument
from model.data.generated import TRUE_CTR
from model.data.prepared import Prepared, read_prepared
from model.experiment import Experiment
from model.fit import predict
from model.run import VERSIONS, RunMetrics, open_run
from model.stec import STEC
from model.train import load_split

TENTHS = 10
# What a reader has to know of a data set before comparing its numbers with published ones.
NOTES = {
    "frappe": [
        "Frappe_x1's official split. Its valid and test files are byte-exact; in train the negatives' items were drawn "
        "again by the rule that valid and test show (train negatives re-drawn).",
        "`cost` is a function of `item` in every positive, but a negative keeps its positive's `cost`: 12.5% of the "
        "negatives contradict their item's own. A served candidate has its own cost, so the calibration measured here "
        "does not carry over to serving.",
        "Source: Baltrunas et al., Frappe: Understanding the Usage and Perception of Mobile App Recommendations "
        "In-The-Wild, 2015; split as in Cheng et al., Adaptive Factorization Network (AFN), AAAI 2020.",
    ],
    "generated": ["Made by `python -m model.data.generate`: no person's data."],
    "table": [],
}


@dataclass(frozen=True)
class TrueComparison:
    """Predictions beside the probabilities that the clicks were drawn from: only a generated log has them.

    overall, unseen, tenths: mean predicted / mean true, 1 where calibrated. unseen: the rows whose ad
    train never had; tenths: by prediction, the lowest first.
    """

    auc: float
    true_auc: float
    overall: float
    unseen: float
    tenths: list[float]


def compare_with_truth(model: STEC, prepared: Prepared) -> TrueComparison:
    """On the test split. Raises ValueError when the log has no true probabilities or no field `ad`."""
    true = np.array(prepared.column("test", TRUE_CTR))
    test = load_split(prepared, "test")
    ctr, labels = predict(model, test), test.labels.numpy()
    column = [f.name for f in prepared.schema.select("categorical")].index("ad")
    unseen = test.ids[:, column].numpy() == 0
    tenths = np.array_split(np.argsort(ctr, kind="stable"), TENTHS)
    return TrueComparison(
        auc=float(roc_auc_score(labels, ctr)),
        true_auc=float(roc_auc_score(labels, true)),
        overall=float(ctr.mean() / true.mean()),
        unseen=float(ctr[unseen].mean() / true[unseen].mean()),
        tenths=[float(ctr[rows].mean() / true[rows].mean()) for rows in tenths],
    )


def check_one_experiment(experiments: Sequence[Experiment]) -> Experiment:
    """What all runs share. Raises ValueError when they differ in more than the seed, or have one twice."""
    first = experiments[0]
    seeds = [e.training.seed for e in experiments]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds}: each run needs a seed of its own")
    for other in experiments:
        training = msgspec.structs.replace(other.training, seed=first.training.seed)
        if msgspec.structs.replace(other, training=training) != first:
            raise ValueError(f"the runs are of different experiments ({first.name}, {other.name}): report them apart")
    return first


def summarise(
    experiment: Experiment, runs: Sequence[RunMetrics], truth: Sequence[TrueComparison], versions: dict[str, Any]
) -> dict[str, Any]:
    """The report's numbers; standard deviations are of the sample, 0 for one seed."""
    aucs, losses = [r.test.auc for r in runs], [r.test.logloss for r in runs]
    return {
        "experiment": msgspec.to_builtins(experiment),
        "seeds": [r.seed for r in runs],
        "test_auc_mean": statistics.mean(aucs),
        "test_auc_std": statistics.stdev(aucs) if len(aucs) > 1 else 0.0,
        "test_logloss_mean": statistics.mean(losses),
        "test_logloss_std": statistics.stdev(losses) if len(losses) > 1 else 0.0,
        "parameters": runs[0].parameters,
        "runs": [
            {"seed": r.seed, "test": asdict(r.test), "valid": asdict(r.valid), "epochs": len(r.history), "s": r.seconds}
            for r in runs
        ],
        "beside_true_probability": [asdict(t) for t in truth],
        "versions": versions,
    }


def markdown(summary: dict[str, Any]) -> str:
    experiment = summary["experiment"]
    lines = [f"# {experiment['name']}", ""]
    auc, loss = f"**{summary['test_auc_mean'] * 100:.2f}**", f"**{summary['test_logloss_mean']:.4f}**"
    seeds = "one seed"
    if len(summary["seeds"]) > 1:
        auc, loss = f"{auc} ± {summary['test_auc_std'] * 100:.2f}", f"{loss} ± {summary['test_logloss_std']:.4f}"
        seeds = f"mean of {len(summary['seeds'])} seeds"
    lines += [f"Test AUC {auc}, logloss {loss} ({seeds}; {summary['parameters']:,} parameters).", ""]
    lines += ["| seed | test AUC | test logloss | valid AUC | valid logloss | epochs | training s |", "|--:" * 7 + "|"]
    for run in summary["runs"]:
        test, valid = run["test"], run["valid"]
        cells = f"{test['auc'] * 100:.2f} | {test['logloss']:.4f} | {valid['auc'] * 100:.2f} | {valid['logloss']:.4f}"
        lines.append(f"| {run['seed']} | {cells} | {run['epochs']} | {run['s']:.0f} |")
    lines += ["", *_truth_lines(summary), *(f"- {note}" for note in NOTES[experiment["data"]["reader"]])]
    model = ", ".join(f"{key} {value}" for key, value in experiment["model"].items())
    training = ", ".join(f"{key} {value}" for key, value in experiment["training"].items() if key != "seed")
    lines += [f"- Model: {model}.", f"- Training: {training}."]
    lines += ["- Versions: " + ", ".join(f"{name} {v}" for name, v in summary["versions"].items()) + "."]
    return "\n".join([*lines, ""])


def _truth_lines(summary: dict[str, Any]) -> list[str]:
    """A table a seed; nothing for a log without true probabilities."""
    lines = []
    for seed, truth in zip(summary["seeds"], summary["beside_true_probability"], strict=False):
        behind = (truth["true_auc"] - truth["auc"]) * 100
        tenths = " | ".join(f"{ratio:.2f}" for ratio in truth["tenths"])
        lines += [
            f"Seed {seed} beside the true click probability, whose own AUC on these clicks is "
            f"{truth['true_auc'] * 100:.2f}, {behind:.2f} points above. Mean predicted / mean true: "
            f"**{truth['overall']:.3f}** overall, **{truth['unseen']:.3f}** for the ads that train never saw, "
            "and by tenths of the prediction:",
            "",
            "| " + " | ".join(str(n) for n in range(1, TENTHS + 1)) + " |",
            "|--:" * TENTHS + "|",
            f"| {tenths} |",
            "",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one experiment, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="the report's path without an ending")
    add_data_argument(parser)
    arguments = parser.parse_args()
    try:
        opened = [open_run(run) for run in arguments.runs]
        experiment = check_one_experiment([experiment for _, experiment, _, _ in opened])
        truth = []
        if experiment.data.reader == "generated":
            prepared = read_prepared(arguments.data / experiment.data.prepared)
            truth = [compare_with_truth(model, prepared) for model, *_ in opened]
        versions = json.loads((arguments.runs[0] / VERSIONS).read_text())
        summary = summarise(experiment, [metrics for *_, metrics in opened], truth, versions)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(summary))
    print(markdown(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
