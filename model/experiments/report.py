"""The report on finished runs of one experiment: <out>.json for programs, <out>.md and pictures for people.

ctr-train --seeds writes it. To write it from run folders:
python -m model.experiments.report runs/frappe-1 runs/frappe-2 --out experiments/frappe/results/stec
"""

import argparse
import io
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
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
from model.training.early_stopping import epoch_text
from model.training.true_ctr import TENTHS


def check_one_experiment(experiments: Sequence[Experiment]) -> Experiment:
    """Return the experiment that all runs share, except for the seed.

    Raises:
        ValueError: If the runs differ in anything else, or if two runs have the same seed.
    """
    first = experiments[0]
    seeds = [e.training.seed for e in experiments]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds}: each run needs its own seed")
    for other in experiments:
        if settings(other) != settings(first):
            raise ValueError(f"{first.name} and {other.name} are different experiments. Report them separately.")
    return first


def check_one_log(data: Sequence[DataFacts | None]) -> DataFacts | None:
    """Return the data that the runs were trained on, or None if it is unknown for any run.

    Raises:
        ValueError: If the runs were trained on different data.
    """
    known = {facts.fingerprint: facts for facts in data if facts is not None}
    if len(known) > 1:
        raise ValueError("the runs were trained on differently prepared data. Report them separately.")
    return None if None in data else next(iter(known.values()))


def summarize(
    experiment: Experiment, runs: Sequence[RunMetrics], versions: Sequence[dict[str, Any]], data: DataFacts | None
) -> dict[str, Any]:
    """Return the content of the report's JSON. Standard deviations are sample standard deviations, or 0 for one seed.

    Args:
        experiment: The experiment whose name and seed the report shows.
        runs: The metrics of each run.
        versions: The versions of each run.
        data: The data that the runs were trained on.
    """
    tests = [r.test for r in runs]
    return {
        "experiment": msgspec.to_builtins(experiment),
        "data": msgspec.to_builtins(data),
        "seeds": [r.seed for r in runs],
        **mean_and_std_of("test_auc", [t.auc for t in tests]),
        **mean_and_std_of("test_logloss", [t.logloss for t in tests]),
        **mean_and_std_of("test_base_logloss", [t.base_logloss for t in tests]),
        **mean_and_std_of("test_normalized_entropy", [t.normalized_entropy for t in tests]),
        **mean_and_std_of("test_gauc", [t.gauc for t in tests]),
        **mean_and_std_of("test_ndcg", [t.ndcg for t in tests]),
        **mean_and_std_of("test_calibration_error", [t.calibration_error for t in tests]),
        **mean_and_std_of("test_predicted_over_observed", [t.predicted_over_observed for t in tests]),
        **other_weights_of(runs),
        "parameters": runs[0].parameters,
        "flops": runs[0].flops,
        "runs": [
            {
                "seed": r.seed,
                "test": asdict(r.test),
                "valid": asdict(r.valid),
                "best_epoch": r.best_epoch,
                "best_part": r.best_part,
                "epochs": int(r.epochs) if r.epochs.is_integer() else r.epochs,
                "s": r.seconds,
                "wall_s": r.wall_s,
                "rows_per_s": r.rows_per_s,
                "unseen": [asdict(u) for u in r.unseen],
                "warnings": r.warnings,
                **({} if r.other is None else {"other": msgspec.to_builtins(r.other)}),
                **({"positions": [asdict(effect) for effect in r.positions]} if r.positions else {}),
            }
            for r in runs
        ],
        "beside_true_probability": [asdict(r.truth) for r in runs if r.truth is not None],
        "versions": merge_versions(versions),
    }


def other_weights_of(runs: Sequence[RunMetrics]) -> dict[str, Any]:
    """Return the name and the mean metrics of the weights that Training.weights does not select, or nothing."""
    others = [r.other for r in runs if r.other is not None]
    if not others or len(others) < len(runs):
        return {}
    return {
        "other_weights": others[0].weights,
        **mean_and_std_of("other_valid_auc", [o.valid.auc for o in others]),
        **mean_and_std_of("other_valid_logloss", [o.valid.logloss for o in others]),
        **mean_and_std_of("other_test_auc", [o.test.auc for o in others]),
        **mean_and_std_of("other_test_logloss", [o.test.logloss for o in others]),
    }


def mean_and_std_of(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Return the mean and standard deviation of a metric by JSON key, or nothing if any run did not measure it."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return {}
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return {f"{name}_mean": statistics.mean(known), f"{name}_std": std}


def merge_versions(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the versions of several runs. If the runs differ, all versions are listed.

    "gpu" is present only in runs on a GPU. If a run has no value for another key, the value is unknown.
    """
    merged = {}
    for name in dict.fromkeys(name for run_versions in versions for name in run_versions):
        values = (run_versions.get(name, "no" if name == "gpu" else "unknown") for run_versions in versions)
        distinct = list(dict.fromkeys(values))
        merged[name] = distinct[0] if len(distinct) == 1 else " and ".join(map(str, distinct))
    return merged


def markdown(summary: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the report's page as Markdown.

    Args:
        summary: The content of the report's JSON.
        pictures: The file names of the pictures next to the page.
    """
    experiment = summary["experiment"]
    auc, loss = f"**{summary['test_auc_mean'] * 100:.2f}**", f"**{summary['test_logloss_mean']:.4f}**"
    seeds = "one seed"
    if len(summary["seeds"]) > 1:
        auc, loss = f"{auc} ± {summary['test_auc_std'] * 100:.2f}", f"{loss} ± {summary['test_logloss_std']:.4f}"
        seeds = f"mean of {len(summary['seeds'])} seeds"
    flops = f", {summary['flops']:,} FLOPs per row" if summary["flops"] else ""
    base = ""
    if "test_normalized_entropy_mean" in summary:
        entropy = f"**{summary['test_normalized_entropy_mean']:.4f}**"
        base = f", base rate {summary['test_base_logloss_mean']:.4f}, normalized entropy {entropy}"
    headline = f"Test AUC {auc}, logloss {loss}{base} ({seeds}; {summary['parameters']:,} parameters{flops})."
    lines = [f"# {experiment['name']}", "", headline, "", *warning_lines(summary), *seed_lines(summary), ""]
    lines += [
        *other_lines(summary),
        *calibration_lines(summary),
        *group_lines(summary),
        *unseen_lines(summary),
        *position_lines(summary),
        *truth_lines(summary),
    ]
    for name in pictures:
        lines += [f"![{Path(name).stem}]({name})", ""]
    lines += [f"- {note}" for note in NOTES.get(experiment["data"]["reader"], ())]
    model = ", ".join(f"{key} {value}" for key, value in experiment["model"].items())
    training = ", ".join(f"{key} {value}" for key, value in experiment["training"].items() if key != "seed")
    lines += [f"- Model: {model}.", f"- Training: {training}.", *cost_lines(summary)]
    lines += ["- Versions: " + ", ".join(f"{name} {v}" for name, v in summary["versions"].items()) + "."]
    return "\n".join([*lines, ""])


def seed_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table with one row per seed."""
    has_entropy = all(run[split].get("normalized_entropy") for run in summary["runs"] for split in ("test", "valid"))
    names = [("auc", "AUC", 100, 2), ("logloss", "logloss", 1, 4)]
    if has_entropy:
        names += [("base_logloss", "base rate", 1, 4), ("normalized_entropy", "normalized entropy", 1, 4)]
    columns = [f"{split} {name}" for split in ("test", "valid") for _, name, _, _ in names]
    header = ["seed", *columns, "best epoch", "epochs", "training s"]
    lines = [f"| {' | '.join(header)} |", "|--:" * len(header) + "|"]
    for run in summary["runs"]:
        values = [
            f"{run[split][key] * scale:.{digits}f}" for split in ("test", "valid") for key, _, scale, digits in names
        ]
        cells = [str(run["seed"]), *values, best_epoch(run), epoch_text(run["epochs"]), f"{run['s']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def best_epoch(measured: Mapping[str, Any]) -> str:
    """Return the number of epochs after which the weights were kept, such as 3 or 2.33."""
    return epoch_text(measured["best_epoch"] - 1 + measured["best_part"])


def other_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table that compares the raw and the averaged weights of each seed, or nothing without an average."""
    if "other_weights" not in summary:
        return []
    other = summary["other_weights"]
    selected = "averaged" if other == "raw" else "raw"
    keys = [(split, key) for split in ("test", "valid") for key in ("auc", "logloss")]
    header = ["seed", "weights", *(f"{split} {'AUC' if key == 'auc' else key}" for split, key in keys), "best epoch"]
    lines = [
        f"Two weights were evaluated: the {selected} weights, which are the model, and the {other} weights. Each has "
        "its own best epoch on valid.",
        "",
        f"| {' | '.join(header)} |",
        "|--:|---" + "|--:" * (len(keys) + 1) + "|",
    ]
    for run in summary["runs"]:
        for name, measured in ((selected, run), (other, run["other"])):
            values = [
                f"{measured[split][key] * 100:.2f}" if key == "auc" else f"{measured[split][key]:.4f}"
                for split, key in keys
            ]
            lines.append(f"| {run['seed']} | {name} | {' | '.join(values)} | {best_epoch(measured)} |")
    if len(summary["runs"]) > 1:
        means = ", ".join(
            f"{split} {'AUC' if key == 'auc' else key} {mean_text(summary, f'other_{split}_{key}', key == 'auc')}"
            for split, key in keys
        )
        lines += ["", f"Mean of the {other} weights: {means}."]
    return [*lines, ""]


def mean_text(summary: Mapping[str, Any], name: str, is_percent: bool) -> str:
    """Format a mean and its standard deviation."""
    scale, digits = (100, 2) if is_percent else (1, 4)
    mean, std = (summary[f"{name}_{kind}"] * scale for kind in ("mean", "std"))
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def warning_lines(summary: dict[str, Any]) -> list[str]:
    """Return a list of the runs' warnings, or an empty list if there are none."""
    lines = [f"- **Warning**, seed {run['seed']}: {text}" for run in summary["runs"] for text in run["warnings"]]
    return [*lines, ""] if lines else []


def unseen_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table of the quality on unseen values, or nothing if the experiment does not hide groups of fields."""
    if not any(run["unseen"] for run in summary["runs"]):
        return []
    header = "| seed | unseen in test | rows | logloss | mean prediction / click rate |"
    lines = ["Test rows in which all fields of a group have values that are not in train:", "", header]
    lines.append("|--:|---|--:|--:|--:|")
    for run in summary["runs"]:
        for unseen in run["unseen"]:
            loss, ratio = unseen["logloss"], unseen["predicted_over_observed"]
            cells = ["" if loss is None else f"{loss:.4f}", "" if ratio is None else f"{ratio:.3f}"]
            lines.append(
                f"| {run['seed']} | {', '.join(unseen['fields'])} | {unseen['rows']:,} | {' | '.join(cells)} |"
            )
    return [*lines, ""]


def calibration_lines(summary: dict[str, Any]) -> list[str]:
    """Return a paragraph on calibration, or nothing if any run did not measure it."""
    if "test_calibration_error_mean" not in summary:
        return []
    error, ratio = summary["test_calibration_error_mean"], summary["test_predicted_over_observed_mean"]
    stds = summary["test_calibration_error_std"], summary["test_predicted_over_observed_std"]
    return [
        f"Calibration on test: expected calibration error **{error:.4f}** ± {stds[0]:.4f} (15 bins of equal mass), "
        f"mean prediction / click rate **{ratio:.3f}** ± {stds[1]:.3f}.",
        "",
    ]


def group_lines(summary: dict[str, Any]) -> list[str]:
    """Return a paragraph on the ranking within units and requests, or nothing if the log has neither."""
    names = {"test_gauc": "AUC within a unit (gauc)", "test_ndcg": "NDCG@10 within a request (ndcg)"}
    found = [
        f"mean {name} **{summary[f'{key}_mean']:.4f}** ± {summary[f'{key}_std']:.4f}"
        for key, name in names.items()
        if f"{key}_mean" in summary
    ]
    return [f"Ranking on test: {', '.join(found)}.", ""] if found else []


def position_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table of the position effects, as means over the runs, or nothing if no run has any."""
    found = [run["positions"] for run in summary["runs"] if run.get("positions")]
    if not found or len(found) < len(summary["runs"]):
        return []
    lines = ["| position | rows | clicks | effect on the logit in training |", "|--:" * 4 + "|"]
    for effects in zip(*found, strict=True):
        mean = statistics.mean(effect["effect"] for effect in effects)
        first = effects[0]
        lines.append(f"| {first['position']} | {first['rows']:,} | {first['clicks']:,} | {mean:+.3f} |")
    note = "The last position includes all later ones. The model itself is that of the average position (effect 0)."
    return [*lines, "", note, ""]


def truth_lines(summary: dict[str, Any]) -> list[str]:
    """Return a table for each seed, or nothing if the log has no true probabilities."""
    lines = []
    for seed, truth in zip(summary["seeds"], summary["beside_true_probability"], strict=False):
        difference = (truth["true_auc"] - truth["auc"]) * 100
        tenths = " | ".join(f"{ratio:.2f}" for ratio in truth["tenths"])
        lines += [
            f"Seed {seed} compared with the true click probabilities, whose AUC on these clicks is "
            f"{truth['true_auc'] * 100:.2f}, {difference:.2f} points higher. Mean predicted / mean true: "
            f"**{truth['overall']:.3f}** overall, **{truth['unseen']:.3f}** for ads that are not in train, "
            "and for each tenth of the predictions:",
            "",
            "| " + " | ".join(str(n) for n in range(1, TENTHS + 1)) + " |",
            "|--:" * TENTHS + "|",
            f"| {tenths} |",
            "",
        ]
    return lines


def cost_lines(summary: dict[str, Any]) -> list[str]:
    """Return a list item on training speed, or nothing if no run measured it."""
    speeds = [run["rows_per_s"] for run in summary["runs"] if run["rows_per_s"]]
    if not speeds:
        return []
    speed = f"{statistics.median(speeds):,.0f} rows/s (median)"
    if " and " in str(summary["versions"].get("gpu", "")):  # a median over different devices is meaningless
        speed = f"{min(speeds):,.0f} to {max(speeds):,.0f} rows/s"
    training_s = sum(run["s"] for run in summary["runs"])
    walls = [run["wall_s"] for run in summary["runs"] if run["wall_s"] is not None]
    wall = f"; {sum(walls):,.0f} s with it" if len(walls) == len(summary["runs"]) else ""
    return [
        f"- Training: {speed}, {training_s:,.0f} s in total without evaluation{wall}. "
        "FLOPs: one for each multiply-add of linear layers and matrix products."
    ]


def write_report(out: Path, experiment: Experiment, runs: Sequence[FinishedRun]) -> str:
    """Write the report on finished runs and return its page.

    Args:
        out: The report's path without a suffix.
        experiment: The experiment whose name and seed the report shows. The runs may have other names.
        runs: One run per seed.
    """
    metrics, data = [r.metrics for r in runs], check_one_log([r.data for r in runs])
    return write_files(out, summarize(experiment, metrics, [r.versions for r in runs], data), metrics)


def write_files(out: Path, summary: dict[str, Any], runs: Sequence[RunMetrics]) -> str:
    """Write <out>.json, <out>.md, <out>-curve.png and <out>-reliability.png, each atomically, and return the page."""
    pictures = {f"{out.name}-curve.png": png(lambda file: draw_curves([r.history for r in runs], file))}
    if all(r.reliability for r in runs):
        reliability = png(lambda file: draw_reliability([r.reliability for r in runs], file))
        pictures[f"{out.name}-reliability.png"] = reliability
    page = markdown(summary, list(pictures))
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_whole(out.parent / name, picture)
    write_whole(out.parent / f"{out.name}.json", (json.dumps(summary, indent=1) + "\n").encode())
    write_whole(out.parent / f"{out.name}.md", page.encode())
    return page


def png(draw: Callable[[io.BytesIO], None]) -> bytes:
    """Return the content of the picture that `draw` writes."""
    picture = io.BytesIO()
    draw(picture)
    return picture.getvalue()


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.experiments.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one experiment, one per seed")
    parser.add_argument("--out", type=Path, required=True, help="the report's path without a suffix")
    arguments = parser.parse_args()
    try:
        opened = [open_run(run) for run in arguments.runs]
        experiment = check_one_experiment([experiment for _, experiment, _, _ in opened])
        versions = [json.loads((run / VERSIONS).read_bytes()) for run in arguments.runs]
        metrics, data = [run[-1] for run in opened], check_one_log([data_of(run) for run in arguments.runs])
        page = write_files(arguments.out, summarize(experiment, metrics, versions, data), metrics)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
