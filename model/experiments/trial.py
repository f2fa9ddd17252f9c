"""A single run: training an experiment on an opened log and measuring the result."""

import copy
import hashlib
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.data.prepare.prepared import LOG, Prepared, read_prepared
from model.data.readers.log import SPLITS
from model.data_config import Data, first_difference
from model.experiment_config import Experiment, Training, other_weights
from model.experiments.memory_plan import MemoryPlan, check_memory, plan_memory
from model.experiments.quality import base_rate_warning, leak_warning, measure_unseen
from model.experiments.run_folder import DataFacts, OtherWeights, RunMetrics
from model.experiments.run_registry import digest
from model.experiments.warm import WarmStart
from model.layers import embedding_parameters, fields_of, use_mean_if_missing
from model.stec.stec import STECConfig, cost_note
from model.toml_text import toml_text
from model.training.batches import BLOCK_ROWS, Split, group_columns, numbers_never_missing
from model.training.checkpoint import Checkpoint
from model.training.device import CPU
from model.training.early_stopping import Epoch
from model.training.exact_statistics import measure_batch_norms
from model.training.fit import Fitted, fit, predict
from model.training.flops import count_flops
from model.training.initial_bias import start_at_click_rate
from model.training.metrics import evaluate_split, reliability
from model.training.position import (
    PositionEffect,
    add_position_effects,
    remove_position_effects,
    without_position_effects,
)
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
        ValueError: If the log is not prepared, was prepared with a different [data] section, or has an unusable
            split.
    """
    prepared = read_prepared(root / data.prepared)
    if difference := first_difference(prepared.facts.data, data):
        key, *values = difference
        before, now = ("not set" if value is None else toml_text(value) for value in values)
        raise ValueError(
            f"{prepared.folder} was prepared with a different [data] section: {key} was {before} and is now {now}. "
            f"Run ctr-prepare again, or change {key} back."
        )
    splits = {name: load_split(prepared, name) for name in SPLITS}
    rows = {name: len(split) for name, split in splits.items()}
    periods = {name: facts.period for name, facts in prepared.facts.splits.items() if facts.period}
    return OpenedLog(prepared, splits, DataFacts(rows, fingerprint(prepared.folder), periods=periods))


def load_split(prepared: Prepared, name: str) -> Split:
    """Return train, valid or test. Its ids and values stay on disk.

    Raises:
        ValueError: If the split is empty or damaged, or contains only clicks or no clicks. Such a split cannot be
            evaluated. Without this check, the error would occur only after hours of training.
    """
    ids, values, labels = prepared.split(name)
    names = [field.name for field in prepared.schema.select("categorical")]
    rate, weights = prepared.facts.data.negative_rate, read_weights(prepared, name)
    vectors = [bool(field.missing_vector) for field in prepared.schema.select("numeric")]
    split = Split(
        ids,
        values,
        labels,
        weights,
        prepared.units(name),
        names,
        rate,
        vectors,
        requests=prepared.requests(name),
        positions=prepared.positions(name),
        kept_negatives=prepared.facts.data.train_negative_rate if name == "train" else 1.0,
    )
    where = f"{prepared.folder}: {name}"
    if len(split) == 0:
        raise ValueError(f"{where} has no rows. Add some and run ctr-prepare again.")
    sizes, (low, high) = prepared.vocabulary_sizes, (split.ids.min(0), split.ids.max(0))
    if (low < 0).any() or (high >= np.array(sizes)).any() or not np.isin(split.labels, (0, 1)).all():
        raise ValueError(f"{where} has ids or labels out of range. Run ctr-prepare again.")
    counted = split.labels if weights is None else split.labels[weights > 0]
    if len(counted) == 0 or counted.min() == counted.max():
        raise ValueError(f"{where} has only clicks or no clicks; AUC needs both")
    return split


def read_weights(prepared: Prepared, name: str) -> NDArray[np.float32] | None:
    """Return the weights of a split, scaled to a mean of 1, or None if the log has no weights.

    Raises:
        ValueError: If a weight is negative or not finite, or if all weights are 0.
    """
    weights = prepared.weights(name)
    if weights is None:
        return None
    file = prepared.folder / f"{name}.weights.npy"
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            f"{file}: weights must be finite and at least 0, and not all 0. Fix the column "
            f'"{prepared.facts.data.weight}" and run ctr-prepare again.'
        )
    scaled: NDArray[np.float32] = (weights / weights.mean(dtype=np.float64)).astype(np.float32)
    return scaled


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
    warm = "" if facts.warm is None else f" warm {facts.warm.run}"
    return Checkpoint(path, f"{digest(experiment)} seed {experiment.training.seed} data {facts.fingerprint}{warm}")


def unfinished(experiment: Experiment, root: Path) -> Path:
    """Return the path of an unfinished run's files inside --data, without a suffix."""
    return root / UNFINISHED / f"{digest(experiment)}-{experiment.training.seed}"


def memory_of(experiment: Experiment, log: OpenedLog) -> MemoryPlan:
    """Return the estimated peak memory of a run on a CPU."""
    fields = fields_of(log.prepared.schema, log.prepared.vocabulary_sizes)
    return plan_memory(
        experiment, fields, log.splits["train"], max(len(log.splits[name]) for name in ("valid", "test"))
    )


def run_trial(
    experiment: Experiment,
    log: OpenedLog,
    checkpoint: Checkpoint,
    progress: TrainingProgress,
    device: torch.device = CPU,
    warm: WarmStart | None = None,
) -> tuple[nn.Module, RunMetrics]:
    """Train one seed, continuing from its checkpoint if there is one, and measure the result.

    Args:
        experiment: The experiment.
        log: The prepared log.
        checkpoint: The checkpoint, which may not exist yet.
        progress: The progress display.
        device: The device to train on.
        warm: The weights to start from, or None for a new model.

    Returns:
        The model on the device, with the best weights; the run's metrics.
    """
    recipe, (train, valid, test) = experiment.training, (log.splits[name] for name in SPLITS)
    if device.type == "cpu" and (warning := check_memory(memory_of(experiment, log))):
        print(f"warning: {warning}", file=sys.stderr)
    model, fitted, effects = train_model(experiment, log, checkpoint, progress, device, warm)
    history = fitted.history
    best = next((e for e in reversed(history) if e.improved), None)
    start = time.perf_counter()
    other = measure_other(model, fitted, log, recipe)
    if recipe.exact_statistics:
        measure_batch_norms(model, train, recipe)
    ctr_valid, ctr = predict(model, valid), predict(model, test)
    # The metrics of an epoch do not fit if the batch norms have changed since, or if they include position effects.
    is_measured = best is not None and not recipe.exact_statistics and not effects
    on_valid = best.valid if best and is_measured else evaluate_split(valid, ctr_valid)
    after_training_s = time.perf_counter() - start
    training_s = training_seconds(history, len(train))
    two_rows = test.part(0, 2)
    truth = compare_with_truth(ctr, log.prepared, test) if experiment.data.reader == "generated" else None
    warnings = (
        base_rate_warning("valid", valid, ctr_valid),
        base_rate_warning("test", test, ctr),
        leak_warning(on_valid.auc, train, log.prepared.schema),
    )
    return model, RunMetrics(
        seed=recipe.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        best_epoch=best.epoch if best else 0,
        seconds=training_s,
        valid=on_valid,
        test=evaluate_split(test, ctr),
        history=history,
        flops=count_flops(model, two_rows.ids.long().to(device), two_rows.values.to(device)),
        rows_per_s=len(train) * history[-1].end / training_s,
        reliability=reliability(test.labels, ctr, test.metric_weights()),
        truth=truth,
        wall_s=sum(e.wall_s or 0.0 for e in history) + after_training_s,
        unseen=measure_unseen(recipe.hide, test, ctr),
        warnings=[warning for warning in warnings if warning],
        best_part=best.part if best else 1.0,
        other=other,
        positions=effects,
    )


def training_seconds(history: Sequence[Epoch], rows: int) -> float:
    """Return the training time of all epochs, excluding evaluations. `rows` is the number of training rows."""
    ends = itertools.pairwise((0.0, *(epoch.end for epoch in history)))
    return sum(rows * (end - start) / epoch.rows_per_s for epoch, (start, end) in zip(history, ends, strict=True))


def measure_other(model: nn.Module, fitted: Fitted, log: OpenedLog, recipe: Training) -> OtherWeights | None:
    """Measure the best of the weights that `recipe` does not select, or return None without an average.

    They are measured as they would be in a run that selects them. The model has the same weights before and after.
    """
    if (name := other_weights(recipe)) is None:
        return None
    train, valid, test = (log.splits[split] for split in SPLITS)
    best = next((e for e in reversed(fitted.history) if e.other_improved), None)
    selected = copy.deepcopy(model.state_dict())
    model.load_state_dict(fitted.other)
    if recipe.exact_statistics:
        measure_batch_norms(model, train, recipe)
    on_valid, on_test = (evaluate_split(split, predict(model, split)) for split in (valid, test))
    model.load_state_dict(selected)
    return OtherWeights(name, best.epoch if best else 0, best.part if best else 1.0, on_valid, on_test)


def train_model(
    experiment: Experiment,
    log: OpenedLog,
    checkpoint: Checkpoint,
    progress: TrainingProgress,
    device: torch.device = CPU,
    warm: WarmStart | None = None,
) -> tuple[nn.Module, Fitted, list[PositionEffect]]:
    """Train one seed on train and valid. The arguments are those of run_trial().

    Returns:
        The model on the device, with the best weights; what was measured; the position effects that were trained with
        the model. If no weights of a warm run are better on valid than the earlier run's weights, the model keeps those
        weights.
    """
    recipe, train, valid = experiment.training, log.splits["train"], log.splits["valid"]
    group_columns(recipe.hide, train.names)  # fail before training
    torch.manual_seed(recipe.seed)
    fields = fields_of(log.prepared.schema, log.prepared.vocabulary_sizes)
    model = build(fields, experiment.model)
    if train.positions is not None:
        add_position_effects(model, train)
    if recipe.unknown_rate == 0:  # no vector would be trained
        use_mean_if_missing(model, numbers_never_missing(train, BLOCK_ROWS))
    model = model.to(device)
    if isinstance(experiment.model, STECConfig) and (note := cost_note(experiment.model, fields.count)):
        print(note, file=sys.stderr)
    for message in unused_in_model(experiment.model):
        print(f"warning: {message}", file=sys.stderr)

    def initialize() -> None:
        """Set the initial weights that are not random."""
        if warm is not None:
            warm.copy_to(model)
        elif recipe.initial_bias == "log_odds":
            start_at_click_rate(model, train, recipe)

    tables, show, keep_start = embedding_parameters(model), (progress.on_epoch, progress.on_rows), warm is not None
    with progress:
        fitted = fit(model, tables, train, valid, recipe, *show, checkpoint, initialize, keep_start)
    effects = remove_position_effects(model)
    return model, replace(fitted, other=without_position_effects(fitted.other)), effects
