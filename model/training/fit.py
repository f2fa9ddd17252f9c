"""The training loop (section 4.1.5)."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.experiment_config import Training
from model.training.batches import Batches, Rows, Split
from model.training.checkpoint import Checkpoint, State
from model.training.device import device_of
from model.training.early_stopping import EarlyStopping, Epoch
from model.training.metrics import evaluate_split

LEARNING_RATE_FACTOR = 0.1
MIN_LEARNING_RATE = 1e-6
EVALUATION_ROWS = 16_384


class Diverged(ValueError):
    """The loss or a prediction is not finite."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. Training diverged. Lower training.learning_rate or model.embedding_std.")


def fit(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    train: Split,
    valid: Split,
    recipe: Training,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_rows: Callable[[int], None] = lambda rows: None,
    checkpoint: Checkpoint | None = None,
    initialize: Callable[[], None] = lambda: None,
    keep_start: bool = False,
) -> list[Epoch]:
    """Train a model in place on its device, set it to the weights of the best epoch, and return all epochs.

    Args:
        model: ids int64 (B, categorical), values (B, numeric) -> logits (B).
        tables: The embeddings, which embedding_l2 penalizes. net_l2 penalizes all other parameters.
        train: The training rows.
        valid: The validation rows, which determine the best epoch.
        recipe: The [training] section.
        on_epoch: Called after each epoch, and for each epoch that was restored from a checkpoint.
        on_rows: Called after each step with its number of rows.
        checkpoint: The checkpoint to which each finished epoch is saved and from which a killed run continues. On a
            CPU, the final weights are the same as without the interruption.
        initialize: Called before the first epoch to set the initial weights, but not if a checkpoint was restored.
        keep_start: Whether the model keeps its initial weights if no epoch is better on valid.

    Raises:
        ValueError: If there are fewer than two training rows.
        Diverged: If the loss or a prediction is not finite.
    """
    if len(train) < 2:
        raise ValueError(f"train has {len(train)} rows; batch normalization needs at least two")
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    batches = Batches(train, recipe)
    early_stopping = EarlyStopping(recipe)
    state = State(model, optimizer, batches.generator, early_stopping)
    history = checkpoint.restore(state) if checkpoint else []
    for epoch in history:
        on_epoch(epoch)
    if not history:
        initialize()
        if keep_start:
            early_stopping.update(evaluate_split(valid, predict(model, valid)), model)
    while len(history) < recipe.epochs and not early_stopping.should_stop:
        start = time.perf_counter()
        loss = train_epoch(model, tables, batches, recipe, optimizer, on_rows)
        training_s = time.perf_counter() - start
        epoch = evaluate_epoch(len(history) + 1, loss, len(train) / training_s, state, valid)
        history.append(replace(epoch, wall_s=time.perf_counter() - start))
        if checkpoint:
            checkpoint.save(state, history)
        on_epoch(history[-1])
    model.load_state_dict(early_stopping.best)
    return history


def evaluate_epoch(number: int, loss: float, rows_per_s: float, state: State, valid: Split) -> Epoch:
    """Evaluate the model on the validation set. Keep its weights if they are the best, else lower the learning rate."""
    ctr = predict(state.model, valid)
    if not np.isfinite(ctr).all():
        raise Diverged(f"after epoch {number}, some predictions are not finite")
    metrics = evaluate_split(valid, ctr)
    improved = state.early_stopping.update(metrics, state.model)
    group = state.optimizer.param_groups[0]
    epoch = Epoch(number, loss, metrics, group["lr"], rows_per_s, improved)
    if not improved:
        group["lr"] = max(group["lr"] * LEARNING_RATE_FACTOR, MIN_LEARNING_RATE)
    return epoch


def predict(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Return click probabilities in the true traffic, (rows): calibrated for the split's negative_rate, as served.

    They are computed in evaluation mode. The split is read in parts.
    """
    return (predict_logits(model, split) + math.log(split.negative_rate)).sigmoid().numpy()


def predict_logits(model: nn.Module, split: Split) -> Tensor:
    """Return the logits before calibration, float64 (rows), computed in evaluation mode."""
    model.eval()
    device, logits = device_of(model), []
    with torch.inference_mode():
        for start in range(0, len(split), EVALUATION_ROWS):
            rows = split.part(start, start + EVALUATION_ROWS)
            logits.append(model(rows.ids.long().to(device), rows.values.to(device)))
    return torch.cat(logits).double().cpu()


def train_epoch(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batches: Batches,
    recipe: Training,
    optimizer: torch.optim.Optimizer,
    on_rows: Callable[[int], None],
) -> float:
    """Train on every batch once and return the mean loss over the rows.

    Raises:
        Diverged: If the loss is not finite.
    """
    model.train()
    device, seen = device_of(model), 0
    # Keep the sum on the device until the end. Reading it in every step would make the CPU wait for the GPU.
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches.epoch():
        loss = train_step(model, tables, batch.to(device), recipe, optimizer)
        total, seen = total + loss.double() * len(batch), seen + len(batch)
        on_rows(len(batch))
    optimizer.zero_grad()  # writing a checkpoint needs the memory
    if not total.isfinite():
        raise Diverged(f"the training loss is {total.item()}")
    return total.item() / seen


def train_step(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batch: Rows,
    recipe: Training,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Take one step on a batch, and return the loss of Eq. 12 (a scalar) without the penalties.

    The loss is the mean over the rows of a row's weight times its cross-entropy. The weights have a mean of 1 over the
    training set, not over each batch, so that a row has the same weight in every batch.
    """
    in_tables = {id(p) for p in tables}
    rest = [p for p in model.parameters() if id(p) not in in_tables]
    optimizer.zero_grad()
    loss = functional.binary_cross_entropy_with_logits(
        model(batch.ids, batch.values), batch.labels, weight=batch.weights
    )
    (loss + l2_penalty(tables, recipe.embedding_l2) + l2_penalty(rest, recipe.net_l2)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.detach()


def l2_penalty(parameters: Sequence[nn.Parameter], l2: float) -> Tensor | float:
    """Return (l2 / 2) |P|^2.

    In every step, this includes entire tables, not just the rows in the batch. Lazy or decoupled weight decay would
    train a different model.
    """
    if l2 == 0:
        return 0.0
    return 0.5 * l2 * torch.stack([p.square().sum() for p in parameters]).sum()
