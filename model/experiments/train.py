"""Training an experiment: one seed, which gives a run folder, or many seeds, which give a report."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from model.atomic_folder import check_replaceable
from model.experiment_config import Experiment, read_experiment
from model.experiments.report import write_report
from model.experiments.run_check import METRICS
from model.experiments.run_folder import RunMetrics, save_run
from model.experiments.run_registry import FinishedRun, claim, results_folder, run_list
from model.experiments.seeds import RunContext, run_missing, with_seed
from model.experiments.trial import OpenedLog, checkpoint_of, memory_of, open_log, run_trial, unfinished
from model.experiments.warm import open_warm_start
from model.training.device import CPU
from model.training.progress import EpochTable, with_base_rate


def train(
    experiment: Experiment, data: Path, out: Path, device: torch.device = CPU, warm: Path | None = None
) -> RunMetrics:
    """Train one seed, write the run folder and return the run's metrics.

    Args:
        experiment: The experiment to train.
        data: The base folder for the experiment's relative paths.
        out: The run folder to write. An existing run there is replaced.
        device: The device to train on.
        warm: The run folder whose weights training starts from, or None.

    Raises:
        ValueError: If the log is not prepared or was prepared with a different [data] section, if `out` exists and is
            not a run, if another process is training the same run, or if `warm` has a different model or different
            fields.
    """
    check_replaceable(out, METRICS)
    log = open_log(experiment.data, data)
    start = None if warm is None else open_warm_start(warm, experiment, log.prepared)
    facts = log.facts
    if start is not None:
        facts = msgspec.structs.replace(facts, warm=start.facts)
        print(
            f"warm start from {warm}: {start.facts.new_tokens:,} of {start.facts.tokens:,} tokens are new; "
            f"{start.facts.lost_tokens:,} tokens of the run are not in this log and are lost",
            flush=True,
        )
        for warning in start.warnings:
            print(f"ctr-train: warning: {warning}", file=sys.stderr)
    with claim(unfinished(experiment, data).with_suffix(".lock")) as claimed:
        if not claimed:
            raise ValueError(f"another process is training {experiment.name}, seed {experiment.training.seed}")
        checkpoint = checkpoint_of(experiment, facts, data)
        print_log(experiment, log, device)
        progress = EpochTable(experiment, len(log.splits["train"]))
        model, metrics = run_trial(experiment, log, checkpoint, progress, device, start)
        save_run(out, experiment, model, log.prepared.schema, log.prepared.vocabulary, metrics, facts)
        checkpoint.remove()
    if not metrics.best_epoch:
        print(
            f"ctr-train: warning: no epoch is better on valid than the weights of {warm}, so the new run keeps "
            "these weights. Lower training.learning_rate.",
            file=sys.stderr,
        )
    return metrics


def train_seeds(toml: Path, seeds: int, data: Path, out: Path | None, device: torch.device = CPU) -> list[FinishedRun]:
    """Train the seeds that are not in the folder's runs.jsonl, write the report and return all runs.

    Args:
        toml: The experiment's file.
        seeds: The number of seeds, which are 1, 2, ..., `seeds`.
        data: The base folder for the experiment's relative paths.
        out: The parent folder for the run folders seed-1, seed-2, ..., or None to save no weights.
        device: The device to train on.

    Raises:
        ValueError: Before training, for the same reasons as in train(). Every run folder in `out` is checked.
    """
    experiment = read_experiment(toml)
    context = RunContext(open_log(experiment.data, data), run_list(toml), data, out, device)
    experiments = [with_seed(experiment, seed) for seed in range(1, seeds + 1)]
    check_run_folders(experiments, context)
    print_log(experiment, context.log, device)
    runs = run_missing(experiments, context, EpochTable, print_run)
    write_report(results_folder(toml) / toml.stem, experiment, runs)
    return runs


def check_run_folders(experiments: Sequence[Experiment], context: RunContext) -> None:
    """Check, before hours of training, that the run folders can be written.

    Finished runs whose weights were not saved are reported on stderr.
    """
    missing, without_weights = context.missing(experiments), list[int]()
    for experiment in experiments:
        seed = experiment.training.seed
        if (out := context.run_folder(seed)) is None:
            return
        if experiment in missing:
            check_replaceable(out, METRICS)
        elif not (out / METRICS).is_file():
            without_weights.append(seed)
    if without_weights:
        seeds = ", ".join(map(str, without_weights))
        fix = f"To train a seed again, use --seed N --out {context.out}/seed-N."
        print(f"{context.runs.path} already has seeds {seeds}, whose weights were not saved. {fix}", file=sys.stderr)


def print_log(experiment: Experiment, log: OpenedLog, device: torch.device) -> None:
    """Print the period of each split, and the estimated peak memory of a run. There is no estimate for a GPU."""
    for split, (first, last) in log.facts.periods.items():
        print(f"{split}: {log.facts.rows[split]:,} rows from {first} to {last}", flush=True)
    if device.type == "cpu":
        print(f"training needs {memory_of(experiment, log)}", flush=True)


def print_run(run: FinishedRun) -> None:
    """Print the test metrics of a run and, on stderr, its warnings."""
    seed, test = run.metrics.seed, run.metrics.test
    print(f"seed {seed}: test AUC {test.auc:.5f}, test logloss {with_base_rate(test)}", flush=True)
    for warning in run.metrics.warnings:
        print(f"ctr-train: seed {seed}: warning: {warning}", file=sys.stderr)
