"""The training loop (section 4.1.5): a model in, its best weights out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.experiment_config import Training
from model.training.batches import Batches, Split
from model.training.checkpoint import Checkpoint, State
from model.training.device import device_of
from model.training.early_stopping import Epoch, Plateau
from model.training.metrics import evaluate

LEARNING_RATE_FACTOR = 0.1
SMALLEST_LEARNING_RATE = 1e-6
EVALUATION_ROWS = 16_384
DIVERGED = "lower training.learning_rate or model.embedding_std"


def fit(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    train: Split,
    valid: Split,
    recipe: Training,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_rows: Callable[[int], None] = lambda rows: None,
    checkpoint: Checkpoint | None = None,
) -> list[Epoch]:
    """Trains in place, where the model is, and leaves the weights of the best epoch in it, not the last.

    tables: the embeddings, on which embedding_l2 falls; net_l2 falls on the rest. on_epoch is
    called after each epoch, on_rows after each step with its number of rows.
    checkpoint: where each finished epoch is kept, and where a killed run goes on, on a CPU with
    the very weights that it would have had; on_epoch is then called for the epochs before, too.

    Raises:
        ValueError: for fewer than two training rows, and when the loss or a prediction is no finite number.
    """
    if len(train) < 2:
        raise ValueError(f"{len(train)} training rows: batch normalisation needs two")
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    batches = Batches(train, recipe)
    plateau = Plateau(recipe)
    state = State(model, optimiser, batches.generator, plateau)
    history = checkpoint.restore(state) if checkpoint else []
    for epoch in history:
        on_epoch(epoch)
    while len(history) < recipe.epochs and not plateau.over:
        start = time.perf_counter()
        loss = _train_epoch(model, tables, batches, recipe, optimiser, on_rows)
        training_s = time.perf_counter() - start
        epoch = _judge(len(history) + 1, loss, len(train) / training_s, state, valid)
        history.append(replace(epoch, wall_s=time.perf_counter() - start))
        if checkpoint:
            checkpoint.save(state, history)
        on_epoch(history[-1])
    model.load_state_dict(plateau.best)
    return history


def _judge(number: int, loss: float, rows_per_s: float, state: State, valid: Split) -> Epoch:
    """Evaluates an epoch, keeps its weights when they are the best, and lowers the learning rate when not."""
    ctr = predict(state.model, valid)
    if not np.isfinite(ctr).all():
        raise ValueError(f"after epoch {number} not every prediction is a number: {DIVERGED}")
    metrics = evaluate(valid.labels, ctr)
    improved = state.plateau.judge(metrics, state.model)
    group = state.optimiser.param_groups[0]
    epoch = Epoch(number, loss, metrics, group["lr"], rows_per_s, improved)
    if not improved:
        group["lr"] = max(group["lr"] * LEARNING_RATE_FACTOR, SMALLEST_LEARNING_RATE)
    return epoch


def predict(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Click probabilities (rows), in evaluation mode. The split is read in parts."""
    model.eval()
    device, logits = device_of(model), []
    with torch.inference_mode():
        for start in range(0, len(split), EVALUATION_ROWS):
            rows = split.part(start, start + EVALUATION_ROWS)
            logits.append(model(rows.ids.long().to(device), rows.values.to(device)))
    return torch.cat(logits).double().sigmoid().cpu().numpy()


def _train_epoch(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batches: Batches,
    recipe: Training,
    optimiser: torch.optim.Optimizer,
    on_rows: Callable[[int], None],
) -> float:
    model.train()
    device, seen = device_of(model), 0
    total = torch.zeros((), dtype=torch.float64, device=device)  # read once: the next batch is made while a GPU works
    for batch in batches.epoch():
        ids, values, labels = (tensor.to(device) for tensor in batch)
        loss = train_step(model, tables, (ids, values, labels), recipe, optimiser)
        total, seen = total + loss.double() * len(labels), seen + len(labels)
        on_rows(len(labels))
    if not total.isfinite():
        raise ValueError(f"the training loss is {total.item()}: {DIVERGED}")
    return total.item() / seen


def train_step(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batch: tuple[Tensor, Tensor, Tensor],
    recipe: Training,
    optimiser: torch.optim.Optimizer,
) -> Tensor:
    """One step on ids, values and labels; the loss of Eq. 12, a scalar without the penalties."""
    ids, values, labels = batch
    in_tables = {id(p) for p in tables}
    rest = [p for p in model.parameters() if id(p) not in in_tables]
    optimiser.zero_grad()
    loss = functional.binary_cross_entropy_with_logits(model(ids, values), labels)
    (loss + l2_penalty(tables, recipe.embedding_l2) + l2_penalty(rest, recipe.net_l2)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimiser.step()
    return loss.detach()


def l2_penalty(parameters: Sequence[nn.Parameter], l2: float) -> Tensor | float:
    """(l2 / 2) |P|^2 over whole tables in every step: lazy or decoupled decay trains another model."""
    if l2 == 0:
        return 0.0
    return 0.5 * l2 * torch.stack([p.square().sum() for p in parameters]).sum()
