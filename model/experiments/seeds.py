"""Training the runs that are not yet in runs.jsonl, in cooperation with other processes that do the same."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from model.experiment_config import Experiment
from model.experiments.run_folder import save_run, versions
from model.experiments.run_registry import FinishedRun, RunList, claim, digest, key
from model.experiments.trial import OpenedLog, checkpoint_of, run_trial, unfinished
from model.training.device import CPU
from model.training.progress import TrainingProgress

POLL_INTERVAL_S = 2.0  # the interval between checks of runs that other processes are training


@dataclass(frozen=True)
class RunContext:
    """The context shared by the runs of an experiment or a sweep.

    Attributes:
        log: The prepared log.
        runs: The list of finished runs.
        root: The base folder for the experiments' relative paths (--data).
        out: The parent folder for the run folders seed-1, seed-2, ..., or None to save no weights.
        device: The device to train on.
    """

    log: OpenedLog
    runs: RunList
    root: Path
    out: Path | None = None
    device: torch.device = CPU

    def missing(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Return the experiments without a finished run."""
        runs = self.runs.index()
        return [e for e in experiments if key(e, self.log.facts.fingerprint) not in runs]

    def run_folder(self, seed: int) -> Path | None:
        """Return the run folder of a seed, or None if no weights are saved."""
        return None if self.out is None else self.out / f"seed-{seed}"


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """Return the experiment with another seed."""
    training = msgspec.structs.replace(experiment.training, seed=seed)
    return msgspec.structs.replace(experiment, training=training)


def run_missing(
    experiments: Sequence[Experiment],
    context: RunContext,
    make_progress: Callable[[Experiment, int], TrainingProgress],
    on_finished: Callable[[FinishedRun], None] = lambda run: None,
    on_failed: Callable[[Experiment, Exception], None] | None = None,
) -> list[FinishedRun]:
    """Train and record the runs that are not in the list, and return each experiment's run, in the same order.

    Runs that another process is training are skipped. If that process dies, this process continues the run after
    the last evaluation.

    Args:
        experiments: One experiment per run.
        context: The log, the list and the device.
        make_progress: Creates the progress display of a run from the experiment and the number of training rows.
        on_finished: Called for each run that this process trained.
        on_failed: Called for each run that raises an error. Such a run is omitted from the result. If None, the error
            is raised.
    """
    failed: list[Experiment] = []
    while missing := [e for e in context.missing(experiments) if e not in failed]:
        finished = 0
        for experiment in missing:
            try:
                finished += run_unless_claimed(experiment, context, make_progress, on_finished)
            except (ValueError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError when out of memory
                if on_failed is None:
                    raise
                failed.append(experiment)
                on_failed(experiment, error)
        if not finished:
            time.sleep(POLL_INTERVAL_S)
    runs = context.runs.index()
    found = (runs.get(key(e, context.log.facts.fingerprint)) for e in experiments)
    return [run for run in found if run is not None]


def run_unless_claimed(
    experiment: Experiment,
    context: RunContext,
    make_progress: Callable[[Experiment, int], TrainingProgress],
    on_finished: Callable[[FinishedRun], None],
) -> bool:
    """Train and record a run unless another process is training or has finished it. Return whether it was trained."""
    log = context.log
    with claim(unfinished(experiment, context.root).with_suffix(".lock")) as claimed:
        if not claimed or context.runs.find(experiment, log.facts.fingerprint) is not None:
            return False
        checkpoint = checkpoint_of(experiment, log.facts, context.root)
        progress = make_progress(experiment, len(log.splits["train"]))
        model, metrics = run_trial(experiment, log, checkpoint, progress, context.device)
        if (out := context.run_folder(metrics.seed)) is not None:
            save_run(out, experiment, model, log.prepared.schema, log.prepared.vocabulary, metrics, log.facts)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        run = FinishedRun(digest(experiment), experiment, log.facts, metrics, versions(model), finished)
        context.runs.append(run)
        checkpoint.remove()
    on_finished(run)
    return True
