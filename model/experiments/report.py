"""Finished runs, one a seed -> a report that stays: <out>.json for programs, <out>.md and pictures for people.

ctr-train --seeds writes it. By hand, from run folders:
python -m model.experiments.report runs/frappe-1 runs/frappe-2 --out experiments/frappe/results/stec
"""

import argparse
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from model.atomic_folder import write_whole
from model.experiment_config import Experiment
from model.experiments.dataset_notes import NOTES
from model.experiments.plots import draw_curves, draw_reliability
from model.experiments.run_folder import VERSIONS, DataFacts, RunMetrics, data_of, open_run
from model.experiments.run_registry import FinishedRun, settings
from model.training.true_ctr import TENTHS


def check_one_experiment(experiments: Sequence[Experiment]) -> Experiment:
    """What all runs share. Raises ValueError when they differ in more than the seed, or have one twice."""
    first = experiments[0]
    seeds = [e.training.seed for e in experiments]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds}: each run needs a seed of its own")
    for other in experiments:
        if settings(other) != settings(first):
            raise ValueError(f"the runs are of different experiments ({first.name}, {other.name}): report them apart")
    return first


def check_one_log(data: Sequence[DataFacts | None]) -> DataFacts | None:
    """What the runs learnt from; None when one does not say. Raises ValueError when they differ."""
    known = {facts.fingerprint: facts for facts in data if facts is not None}
    if len(known) > 1:
        raise ValueError("the runs are of differently prepared data: report them apart")
    return None if None in data else next(iter(known.values()))


def summarise(
    experiment: Experiment, runs: Sequence[RunMetrics], versions: Sequence[dict[str, Any]], data: DataFacts | None
) -> dict[str, Any]:
    """The report's numbers; standard deviations are of the sample, 0 for one seed. versions: of each run."""
    tests = [r.test for r in runs]
    return {
        "experiment": msgspec.to_builtins(experiment),
        "data": msgspec.to_builtins(data),
        "seeds": [r.seed for r in runs],
        **_mean_and_std("test_auc", [t.auc for t in tests]),
        **_mean_and_std("test_logloss", [t.logloss for t in tests]),
        **_mean_and_std("test_calibration_error", [t.calibration_error for t in tests]),
        **_mean_and_std("test_predicted_over_observed", [t.predicted_over_observed for t in tests]),
        "parameters": runs[0].parameters,
        "flops": runs[0].flops,
        "runs": [
            {
                "seed": r.seed,
                "test": asdict(r.test),
                "valid": asdict(r.valid),
                "epochs": len(r.history),
                "s": r.seconds,
                "wall_s": r.wall_s,
                "rows_per_s": r.rows_per_s,
            }
            for r in runs
        ],
        "beside_true_probability": [asdict(r.truth) for r in runs if r.truth is not None],
        "versions": merged(versions),
    }


def _mean_and_std(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Nothing when a run has not measured it."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return {}
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return {f"{name}_mean": statistics.mean(known), f"{name}_std": std}


def merged(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the runs differ, all that there were. Only a run on a GPU names one; all else is unknown where it lacks."""
    merged = {}
    for name in dict.fromkeys(name for one in versions for name in one):
        distinct = list(dict.fromkeys(one.get(name, "no" if name == "gpu" else "unknown") for one in versions))
        merged[name] = distinct[0] if len(distinct) == 1 else " and ".join(map(str, distinct))
    return merged


def markdown(summary: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """pictures: the files' names, which the page links to."""
    experiment = summary["experiment"]
    lines = [f"# {experiment['name']}", "", _headline(summary), "", *_seed_lines(summary), ""]
    lines += [*_calibration_lines(summary), *_truth_lines(summary)]
    for name in pictures:
        lines += [f"![{Path(name).stem}]({name})", ""]
    lines += [f"- {note}" for note in NOTES.get(experiment["data"]["reader"], ())]
    model = ", ".join(f"{key} {value}" for key, value in experiment["model"].items())
    training = ", ".join(f"{key} {value}" for key, value in experiment["training"].items() if key != "seed")
    lines += [f"- Model: {model}.", f"- Training: {training}.", *_cost_lines(summary)]
    lines += ["- Versions: " + ", ".join(f"{name} {v}" for name, v in summary["versions"].items()) + "."]
    return "\n".join([*lines, ""])


def _headline(summary: dict[str, Any]) -> str:
    auc, loss = f"**{summary['test_auc_mean'] * 100:.2f}**", f"**{summary['test_logloss_mean']:.4f}**"
    seeds = "one seed"
    if len(summary["seeds"]) > 1:
        auc, loss = f"{auc} ± {summary['test_auc_std'] * 100:.2f}", f"{loss} ± {summary['test_logloss_std']:.4f}"
        seeds = f"mean of {len(summary['seeds'])} seeds"
    flops = f", {summary['flops']:,} FLOPs a row" if summary["flops"] else ""
    return f"Test AUC {auc}, logloss {loss} ({seeds}; {summary['parameters']:,} parameters{flops})."


def _seed_lines(summary: dict[str, Any]) -> list[str]:
    lines = ["| seed | test AUC | test logloss | valid AUC | valid logloss | epochs | training s |", "|--:" * 7 + "|"]
    for run in summary["runs"]:
        test, valid = run["test"], run["valid"]
        cells = f"{test['auc'] * 100:.2f} | {test['logloss']:.4f} | {valid['auc'] * 100:.2f} | {valid['logloss']:.4f}"
        lines.append(f"| {run['seed']} | {cells} | {run['epochs']} | {run['s']:.0f} |")
    return lines


def _calibration_lines(summary: dict[str, Any]) -> list[str]:
    if "test_calibration_error_mean" not in summary:
        return []
    error, ratio = summary["test_calibration_error_mean"], summary["test_predicted_over_observed_mean"]
    stds = summary["test_calibration_error_std"], summary["test_predicted_over_observed_std"]
    return [
        f"Calibration on test: expected calibration error **{error:.4f}** ± {stds[0]:.4f} (15 bins of equal mass), "
        f"mean prediction / click rate **{ratio:.3f}** ± {stds[1]:.3f}.",
        "",
    ]


def _cost_lines(summary: dict[str, Any]) -> list[str]:
    speeds = [run["rows_per_s"] for run in summary["runs"] if run["rows_per_s"]]
    if not speeds:
        return []
    total = sum(run["s"] for run in summary["runs"])
    return [
        f"- Training: {_rows_per_s(speeds, summary['versions'])}, {total:,.0f} s in all, evaluation not counted"
        f"{_wall(summary['runs'])}. "
        "FLOPs: one a multiply-add of linear layers and matrix products; all else is free."
    ]


def _rows_per_s(speeds: Sequence[float], versions: Mapping[str, Any]) -> str:
    """No median where the runs are of several devices: it would be of none."""
    if " and " in str(versions.get("gpu", "")):
        return f"{min(speeds):,.0f} to {max(speeds):,.0f} rows/s"
    return f"{statistics.median(speeds):,.0f} rows/s (median)"


def _wall(runs: Sequence[dict[str, Any]]) -> str:
    known = [run["wall_s"] for run in runs if run["wall_s"] is not None]
    return f"; {sum(known):,.0f} s with it" if len(known) == len(runs) else ""


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


def write_report(out: Path, experiment: Experiment, runs: Sequence[FinishedRun]) -> str:
    """<out>.json, <out>.md, <out>-curve.png and <out>-reliability.png, each replaced at once. Returns the page.

    experiment: whose name and seed the report has; the runs' own may be others'.
    """
    metrics, data = [r.metrics for r in runs], check_one_log([r.data for r in runs])
    return _write(out, summarise(experiment, metrics, [r.versions for r in runs], data), metrics)


def _write(out: Path, summary: dict[str, Any], runs: Sequence[RunMetrics]) -> str:
    pictures = {f"{out.name}-curve.png": _curves(runs)}
    if all(r.reliability for r in runs):
        pictures[f"{out.name}-reliability.png"] = _reliability(runs)
    page = markdown(summary, list(pictures))
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_whole(out.parent / name, picture)
    write_whole(out.parent / f"{out.name}.json", (json.dumps(summary, indent=1) + "\n").encode())
    write_whole(out.parent / f"{out.name}.md", page.encode())
    return page


def _curves(runs: Sequence[RunMetrics]) -> bytes:
    picture = io.BytesIO()
    draw_curves([r.history for r in runs], picture)
    return picture.getvalue()


def _reliability(runs: Sequence[RunMetrics]) -> bytes:
    picture = io.BytesIO()
    draw_reliability([r.reliability for r in runs], picture)
    return picture.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model.experiments.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one experiment, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="the report's path without an ending")
    arguments = parser.parse_args()
    try:
        opened = [open_run(run) for run in arguments.runs]
        experiment = check_one_experiment([experiment for _, experiment, _, _ in opened])
        versions = [json.loads((run / VERSIONS).read_bytes()) for run in arguments.runs]
        metrics, data = [run[-1] for run in opened], check_one_log([data_of(run) for run in arguments.runs])
        page = _write(arguments.out, summarise(experiment, metrics, versions, data), metrics)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
