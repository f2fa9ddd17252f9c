"""Runs what runs.jsonl does not have yet, together with whoever else does."""

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
from model.training.progress import Watch

LOOK_AGAIN_S = 2.0  # whether the runs that another process has claimed are done, or given up


@dataclass(frozen=True)
class Place:
    """root: --data. keep: the folder for run folders seed-1, seed-2, ...; None keeps no weights."""

    log: OpenedLog
    runs: RunList
    root: Path
    keep: Path | None = None
    device: torch.device = CPU

    def missing(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Those that the list has no run of."""
        runs = self.runs.index()
        return [e for e in experiments if key(e, self.log.facts.fingerprint) not in runs]

    def kept(self, seed: int) -> Path | None:
        """A run's folder."""
        return None if self.keep is None else self.keep / f"seed-{seed}"


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    training = msgspec.structs.replace(experiment.training, seed=seed)
    return msgspec.structs.replace(experiment, training=training)


def run_missing(
    experiments: Sequence[Experiment],
    place: Place,
    watch: Callable[[Experiment, int], Watch],
    on_finished: Callable[[FinishedRun], None] = lambda run: None,
    on_failed: Callable[[Experiment, Exception], None] | None = None,
) -> list[FinishedRun]:
    """The run of each experiment, in their order: those of the list, and those made now and appended to it.

    A run that another process is at is left to it; should that process die, it is taken over from its
    last finished epoch. on_finished is called for the runs made here.
    on_failed: is told of a run that raises, which is then left out; without it, the error is the caller's.
    """
    failed: list[Experiment] = []
    while missing := [e for e in place.missing(experiments) if e not in failed]:
        made = 0
        for experiment in missing:
            try:
                made += _run_if_free(experiment, place, watch, on_finished)
            except (ValueError, RuntimeError, MemoryError) as error:  # torch's want of memory is a RuntimeError
                if on_failed is None:
                    raise
                failed.append(experiment)
                on_failed(experiment, error)
        if not made:
            time.sleep(LOOK_AGAIN_S)
    runs = place.runs.index()
    found = (runs.get(key(e, place.log.facts.fingerprint)) for e in experiments)
    return [run for run in found if run is not None]


def _run_if_free(
    experiment: Experiment,
    place: Place,
    watch: Callable[[Experiment, int], Watch],
    on_finished: Callable[[FinishedRun], None],
) -> bool:
    log = place.log
    with claim(unfinished(experiment, place.root).with_suffix(".lock")) as ours:
        if not ours or place.runs.find(experiment, log.facts.fingerprint) is not None:
            return False
        checkpoint = checkpoint_of(experiment, log.facts, place.root)
        watching = watch(experiment, len(log.splits["train"]))
        model, metrics = run_trial(experiment, log, checkpoint, watching, place.device)
        if (out := place.kept(metrics.seed)) is not None:
            save_run(out, experiment, model, log.prepared.schema, log.prepared.vocabulary, metrics, log.facts)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        run = FinishedRun(digest(experiment), experiment, log.facts, metrics, versions(model), finished)
        place.runs.append(run)
        checkpoint.remove()
    on_finished(run)
    return True
