"""A single run: training an experiment on an opened log and measuring the result."""

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.data.prepare.prepared import LOG, Prepared, read_prepared
from model.data.readers.log import SPLITS
from model.data_config import Data
from model.experiment_config import Experiment
from model.experiments.run_folder import DataFacts, RunMetrics
from model.experiments.run_registry import digest
from model.layers import embedding_parameters, fields_of, use_mean_if_missing
from model.stec.stec import STECConfig, cost_note
from model.training.batches import BLOCK_ROWS, Split, numbers_never_missing
from model.training.checkpoint import Checkpoint
from model.training.device import CPU
from model.training.exact_statistics import measure_batch_norms
from model.training.fit import fit, predict
from model.training.flops import count_flops
from model.training.metrics import evaluate, reliability
from model.training.progress import TrainingProgress
from model.training.true_ctr import compare_with_truth
from model.unused_keys import unused_in_model
from model.zoo import build

UNFINISHED = "unfinished"  # the folder inside --data with the checkpoints and locks of unfinished runs


@dataclass(frozen=True)
class OpenedLog:
    """A prepared log that is opened once and used for any number of runs."""

    prepared: Prepared
    splits: dict[str, Split]
    facts: DataFacts


def open_log(data: Data, root: Path) -> OpenedLog:
    """Open the prepared log of a [data] section.

    Args:
        data: The section.
        root: The base folder for the section's relative paths.

    Raises:
        ValueError: If the log is not prepared, was prepared with another [data] section, or has an unusable split.
    """
    prepared = read_prepared(root / data.prepared)
    if prepared.facts.data != data:
        raise ValueError(f"{prepared.folder} was prepared with another [data] section. Run ctr-prepare again.")
    splits = {name: load_split(prepared, name) for name in SPLITS}
    rows = {name: len(split) for name, split in splits.items()}
    return OpenedLog(prepared, splits, DataFacts(rows, fingerprint(prepared.folder)))


def load_split(prepared: Prepared, name: str) -> Split:
    """Return train, valid or test. Its ids and values stay on disk.

    Raises:
        ValueError: If the split is empty or damaged, or contains only clicks or no clicks. Such a split cannot be
            evaluated. Without this check, the error would occur only after hours of training.
    """
    missing_vectors = [bool(field.missing_vector) for field in prepared.schema.select("numeric")]
    split = Split(*prepared.split(name), missing_vectors=missing_vectors)
    where = f"{prepared.folder}: {name}"
    if len(split) == 0:
        raise ValueError(f"{where} has no rows. Add some and run ctr-prepare again.")
    sizes, (low, high) = prepared.vocabulary_sizes, (split.ids.min(0), split.ids.max(0))
    if (low < 0).any() or (high >= np.array(sizes)).any() or not np.isin(split.labels, (0, 1)).all():
        raise ValueError(f"{where} has ids or labels out of range. Run ctr-prepare again.")
    if split.labels.min() == split.labels.max():
        raise ValueError(f"{where} has only clicks or no clicks; AUC needs both")
    return split


def fingerprint(prepared: Path) -> str:
    """Return a sha256 of the names and contents of all files that the model learns from.

    log.json is excluded, because it contains the paths of the raw log.
    """
    files = sorted(p for p in prepared.rglob("*") if p.is_file() and p.name != LOG)
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.relative_to(prepared)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def checkpoint_of(experiment: Experiment, facts: DataFacts, root: Path) -> Checkpoint:
    """Return the checkpoint of a run, which may not exist yet."""
    path = unfinished(experiment, root).with_suffix(".safetensors")
    return Checkpoint(path, f"{digest(experiment)} seed {experiment.training.seed} data {facts.fingerprint}")


def unfinished(experiment: Experiment, root: Path) -> Path:
    """Return the path of an unfinished run's files inside --data, without a suffix."""
    return root / UNFINISHED / f"{digest(experiment)}-{experiment.training.seed}"


def run_trial(
    experiment: Experiment,
    log: OpenedLog,
    checkpoint: Checkpoint,
    progress: TrainingProgress,
    device: torch.device = CPU,
) -> tuple[nn.Module, RunMetrics]:
    """Train one seed, continuing from its checkpoint if there is one, and measure the result.

    Returns:
        The model on the device, with the weights of the best epoch; the run's metrics.
    """
    train, valid, test = (log.splits[name] for name in SPLITS)
    torch.manual_seed(experiment.training.seed)
    fields = fields_of(log.prepared.schema, log.prepared.vocabulary_sizes)
    model = build(fields, experiment.model)
    if experiment.training.unknown_rate == 0:  # no vector would be trained
        use_mean_if_missing(model, numbers_never_missing(train, BLOCK_ROWS))
    model = model.to(device)
    if isinstance(experiment.model, STECConfig) and (note := cost_note(experiment.model, fields.count)):
        print(note, file=sys.stderr)
    for message in unused_in_model(experiment.model):
        print(f"warning: {message}", file=sys.stderr)
    with progress:
        tables = embedding_parameters(model)
        history = fit(model, tables, train, valid, experiment.training, progress.on_epoch, progress.on_rows, checkpoint)
    best = max((e for e in history if e.improved), key=lambda e: e.epoch)
    start, on_valid = time.perf_counter(), best.valid
    if experiment.training.exact_statistics:
        measure_batch_norms(model, train, experiment.training)
        on_valid = evaluate(valid.labels, predict(model, valid))
    ctr = predict(model, test)
    after_training_s = time.perf_counter() - start
    training_s = sum(len(train) / e.rows_per_s for e in history)
    two_rows = test.part(0, 2)
    truth = compare_with_truth(model, log.prepared, test) if experiment.data.reader == "generated" else None
    return model, RunMetrics(
        seed=experiment.training.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        best_epoch=best.epoch,
        seconds=training_s,
        valid=on_valid,
        test=evaluate(test.labels, ctr),
        history=history,
        flops=count_flops(model, two_rows.ids.long().to(device), two_rows.values.to(device)),
        rows_per_s=len(train) * len(history) / training_s,
        reliability=reliability(test.labels, ctr),
        truth=truth,
        wall_s=sum(e.wall_s or 0.0 for e in history) + after_training_s,
    )
