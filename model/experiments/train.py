"""ctr-train: an experiment and its prepared data in, a run folder out; or, with --seeds, a report over many runs.

A killed ctr-train, called again, goes on from the last finished epoch and, on a CPU, ends with the same weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.atomic_folder import check_replaceable
from model.experiment_config import Experiment, read_experiment
from model.experiments.report import write_report
from model.experiments.run_folder import METRICS, RunMetrics, save_run
from model.experiments.run_registry import FinishedRun, claim, results_folder, run_list
from model.experiments.seeds import Place, run_missing, with_seed
from model.experiments.trial import checkpoint_of, open_log, run_trial, unfinished
from model.training.device import CPU
from model.training.progress import LiveTable


def train(experiment: Experiment, data: Path, out: Path, device: torch.device = CPU) -> RunMetrics:
    """Trains one seed and writes the run folder.

    Raises:
        ValueError: when the data is not prepared, or not by this experiment, `out` is something else than a run,
            or another process is at the same run.
    """
    check_replaceable(out, METRICS)
    log = open_log(experiment.data, data)
    with claim(unfinished(experiment, data).with_suffix(".lock")) as ours:
        if not ours:
            raise ValueError(
                f"{experiment.name}, seed {experiment.training.seed}: another process trains this very run"
            )
        checkpoint = checkpoint_of(experiment, log.facts, data)
        watch = LiveTable(experiment, len(log.splits["train"]))
        model, metrics = run_trial(experiment, log, checkpoint, watch, device)
        save_run(out, experiment, model, log.prepared.schema, log.prepared.vocabulary, metrics, log.facts)
        checkpoint.remove()
    return metrics


def train_seeds(toml: Path, seeds: int, data: Path, keep: Path | None, device: torch.device = CPU) -> list[FinishedRun]:
    """The seeds 1 to `seeds` of an experiment: what its folder's runs.jsonl lacks is trained, then reported.

    Raises:
        ValueError: before training, as train() does, and when one of `keep`'s folders is something else than a run.
    """
    experiment = read_experiment(toml)
    place = Place(open_log(experiment.data, data), run_list(toml), data, keep, device)
    wanted = [with_seed(experiment, seed) for seed in range(1, seeds + 1)]
    _check_keep(wanted, place)
    runs = run_missing(wanted, place, LiveTable, _print_run)
    write_report(results_folder(toml) / toml.stem, experiment, runs)
    return runs


def _check_keep(wanted: Sequence[Experiment], place: Place) -> None:
    """Before hours of training: whether the weights can be written, and which will not be there."""
    missing, without = place.missing(wanted), list[int]()
    for experiment in wanted:
        seed = experiment.training.seed
        if (out := place.kept(seed)) is None:
            return
        if experiment in missing:
            check_replaceable(out, METRICS)
        elif not (out / METRICS).is_file():
            without.append(seed)
    if without:
        seeds = ", ".join(map(str, without))
        way_out = f"--seed N --out {place.keep}/seed-N trains one again"
        print(f"{place.runs.path} has seeds {seeds} already: their weights are not kept; {way_out}", file=sys.stderr)


def _print_run(run: FinishedRun) -> None:
    test = run.metrics.test
    print(f"seed {run.metrics.seed}: test AUC {test.auc:.5f}, test logloss {test.logloss:.5f}", flush=True)
