"""One run: an experiment and an opened log in, a trained model and what it measured out."""

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
from model.layers import embedding_parameters, fields_of
from model.stec.stec import STECConfig, cost_note
from model.training.batches import Split
from model.training.checkpoint import Checkpoint
from model.training.device import CPU
from model.training.exact_statistics import measure_batch_norms
from model.training.fit import fit, predict
from model.training.flops import count_flops
from model.training.metrics import evaluate, reliability
from model.training.progress import Watch
from model.training.true_ctr import compare_with_truth
from model.zoo import build

UNFINISHED = "unfinished"  # below --data: the checkpoints and claims of the runs that are going on


@dataclass(frozen=True)
class OpenedLog:
    """A prepared log, ready to train on, once for any number of runs."""

    prepared: Prepared
    splits: dict[str, Split]
    facts: DataFacts


def open_log(data: Data, root: Path) -> OpenedLog:
    """Raises ValueError when the log is not prepared, or by another [data] section, or a split has one class only."""
    prepared = read_prepared(root / data.prepared)
    if prepared.facts.data != data:
        raise ValueError(f"{prepared.folder} was prepared with another [data] section: run ctr-prepare again")
    splits = {name: load_split(prepared, name) for name in SPLITS}
    rows = {name: len(split) for name, split in splits.items()}
    return OpenedLog(prepared, splits, DataFacts(rows, fingerprint(prepared.folder)))


def load_split(prepared: Prepared, name: str) -> Split:
    """train, valid or test as the loop takes it; ids and values stay on disk.

    Raises:
        ValueError: when it has no rows, only clicks, or none: it could not be judged after hours of training.
    """
    split = Split(*prepared.split(name))
    if len(split) == 0:
        raise ValueError(f"{prepared.folder}: {name} has no rows: give it some, and run ctr-prepare again")
    sizes, (low, high) = prepared.vocabulary_sizes, (split.ids.min(0), split.ids.max(0))
    if (low < 0).any() or (high >= np.array(sizes)).any() or not np.isin(split.labels, (0, 1)).all():
        raise ValueError(f"{prepared.folder}: {name} has ids or labels out of range: run ctr-prepare again")
    if split.labels.min() == split.labels.max():
        raise ValueError(f"{prepared.folder}: {name} has only clicks, or none: AUC needs both")
    return split


def fingerprint(prepared: Path) -> str:
    """sha256 over the names and bytes of all that the model learns from; not over where the log lay."""
    files = sorted(p for p in prepared.rglob("*") if p.is_file() and p.name != LOG)
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.relative_to(prepared)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def checkpoint_of(experiment: Experiment, facts: DataFacts, root: Path) -> Checkpoint:
    """Where a run is kept while it trains."""
    path = unfinished(experiment, root).with_suffix(".safetensors")
    return Checkpoint(path, f"{digest(experiment)} seed {experiment.training.seed} data {facts.fingerprint}")


def unfinished(experiment: Experiment, root: Path) -> Path:
    """The name of the run's files below --data, without an ending."""
    return root / UNFINISHED / f"{digest(experiment)}-{experiment.training.seed}"


def run_trial(
    experiment: Experiment, log: OpenedLog, checkpoint: Checkpoint, watch: Watch, device: torch.device = CPU
) -> tuple[nn.Module, RunMetrics]:
    """Trains one seed, going on from the checkpoint if there is one; the model, on the device, has the best epoch's
    weights."""
    train, valid, test = (log.splits[name] for name in SPLITS)
    torch.manual_seed(experiment.training.seed)
    fields = fields_of(log.prepared.schema, log.prepared.vocabulary_sizes)
    model = build(fields, experiment.model).to(device)
    if isinstance(experiment.model, STECConfig) and (note := cost_note(experiment.model, fields.count)):
        print(note, file=sys.stderr)
    with watch:
        tables = embedding_parameters(model)
        history = fit(model, tables, train, valid, experiment.training, watch.on_epoch, watch.on_rows, checkpoint)
    best = max((e for e in history if e.improved), key=lambda e: e.epoch)
    start, on_valid = time.perf_counter(), best.valid
    if experiment.training.exact_statistics:
        measure_batch_norms(model, train, experiment.training)
        on_valid = evaluate(valid.labels, predict(model, valid))
    ctr = predict(model, test)
    afterwards_s = time.perf_counter() - start
    seconds = sum(len(train) / e.rows_per_s for e in history)
    two_rows = test.part(0, 2)
    truth = compare_with_truth(model, log.prepared, test) if experiment.data.reader == "generated" else None
    return model, RunMetrics(
        seed=experiment.training.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        best_epoch=best.epoch,
        seconds=seconds,
        valid=on_valid,
        test=evaluate(test.labels, ctr),
        history=history,
        flops=count_flops(model, two_rows.ids.long().to(device), two_rows.values.to(device)),
        rows_per_s=len(train) * len(history) / seconds,
        reliability=reliability(test.labels, ctr),
        truth=truth,
        wall_s=sum(e.wall_s or 0.0 for e in history) + afterwards_s,
    )
