"""The training loop (section 4.1.5)."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.experiment_config import Training
from model.training.averaged_weights import AveragedWeights
from model.training.batches import Batches, Rows, Split
from model.training.checkpoint import Checkpoint, State
from model.training.device import device_of
from model.training.early_stopping import EarlyStopping, Epoch, epoch_text
from model.training.metrics import Metrics, evaluate_split
from model.training.position import position_effects

MIN_LEARNING_RATE = 1e-6
EVALUATION_ROWS = 16_384


class Diverged(ValueError):
    """The loss or a prediction is not finite."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. Training diverged. Lower training.learning_rate or model.embedding_std.")


@dataclass(frozen=True)
class Fitted:
    """What fit() has measured.

    Attributes:
        history: All evaluations.
        other: The best of the weights that Training.weights does not select, as a state_dict. Empty without an average.
    """

    history: list[Epoch]
    other: dict[str, Tensor]


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
) -> Fitted:
    """Train a model in place on its device, and set it to the best weights.

    Args:
        model: ids int64 (B, categorical), values (B, numeric) -> logits (B).
        tables: The embeddings, which embedding_l2 penalizes. net_l2 penalizes all other parameters, except for position
            effects (see model/training/position.py).
        train: The training rows.
        valid: The validation rows, which determine the best weights.
        recipe: The [training] section.
        on_epoch: Called after each evaluation, and for each evaluation that was restored from a checkpoint.
        on_rows: Called after each step with its number of rows.
        checkpoint: The checkpoint that is saved after each evaluation and from which a killed run continues. On a CPU,
            the final weights are the same as without the interruption.
        initialize: Called before the first epoch to set the first weights, but not if a checkpoint was restored.
        keep_start: Whether the model keeps its first weights if no later ones are better on valid.

    Raises:
        ValueError: If there are fewer than two training rows.
        Diverged: If the loss or a prediction is not finite.
    """
    if len(train) < 2:
        raise ValueError(f"train has {len(train)} rows; batch normalization needs at least two")
    batches = Batches(train, recipe)
    state = new_state(model, batches, recipe)
    history = checkpoint.restore(state) if checkpoint else []
    for epoch in history:
        on_epoch(epoch)
    if not history:
        initialize()
        start_keeping(state, valid if keep_start else None)
    offset = -math.log(train.kept_negatives)
    stops = evaluation_steps(batches.steps_per_epoch, recipe.evaluations_per_epoch)
    while len(history) < recipe.epochs * len(stops) and not state.early_stopping.should_stop:
        finished, number = divmod(len(history), len(stops))
        first, last = (0, *stops)[number : number + 2]
        start = time.perf_counter()
        loss = train_part(state, tables, batches.part(first, last), recipe, on_rows, offset)
        training_s = time.perf_counter() - start
        rows_per_s = len(train) * ((last - first) / batches.steps_per_epoch) / training_s
        epoch = evaluate_epoch(finished + 1, last / batches.steps_per_epoch, loss, rows_per_s, state, valid, recipe)
        history.append(replace(epoch, wall_s=time.perf_counter() - start))
        if checkpoint:
            checkpoint.save(state, history)
        on_epoch(history[-1])
    model.load_state_dict(state.early_stopping.best)
    return Fitted(history, state.other.best if state.other else {})


def new_state(model: nn.Module, batches: Batches, recipe: Training) -> State:
    """Return the state of a run before its first step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    state = State(model, optimizer, batches.generator, EarlyStopping(recipe))
    if not recipe.ema_half_life:
        return state
    average = AveragedWeights(model, recipe, batches.steps_per_epoch)
    return replace(state, average=average, other=EarlyStopping(recipe))


def start_keeping(state: State, valid: Split | None) -> None:
    """Start the average at the model's first weights. If `valid` is given, keep them until others are better on it."""
    if state.average:
        state.average.restart()
    if valid is None:
        return
    metrics = evaluate_split(valid, predict_at_positions(state.model, valid))
    state.early_stopping.update(metrics, state.model)
    if state.other:
        state.other.update(metrics, state.model)


def evaluation_steps(steps_per_epoch: int, evaluations: int) -> list[int]:
    """Return the numbers of steps in an epoch after which the model is evaluated, at most one for each step."""
    count = min(evaluations, steps_per_epoch)
    return [number * steps_per_epoch // count for number in range(1, count + 1)]


def evaluate_epoch(
    number: int, part: float, loss: float, rows_per_s: float, state: State, valid: Split, recipe: Training
) -> Epoch:
    """Evaluate the weights on valid, and the other weights if there are two. Keep those that are the best so far.

    If the weights that `recipe` selects have not improved, lower the learning rate.
    """
    other_valid, other_improved, end = None, False, epoch_text(number - 1 + part)
    selected: nn.Module = state.model
    if state.average and state.other:
        raw_and_average = (state.model, state.average.model)
        selected, other = raw_and_average if recipe.weights == "raw" else reversed(raw_and_average)
        other_valid = evaluate_finite(other, valid, end)
        other_improved = state.other.update(other_valid, other)
    metrics = evaluate_finite(selected, valid, end)
    improved = state.early_stopping.update(metrics, selected)
    group = state.optimizer.param_groups[0]
    rate = group["lr"]
    if not improved:
        group["lr"] = min(rate, max(rate * recipe.learning_rate_factor, MIN_LEARNING_RATE))
    return Epoch(
        epoch=number,
        loss=loss,
        valid=metrics,
        learning_rate=rate,
        rows_per_s=rows_per_s,
        improved=improved,
        part=part,
        other_valid=other_valid,
        other_improved=other_improved,
    )


def evaluate_finite(model: nn.Module, valid: Split, end: str) -> Metrics:
    """Return the metrics on valid after `end` epochs.

    Raises:
        Diverged: If a prediction is not finite.
    """
    ctr = predict_at_positions(model, valid)
    if not np.isfinite(ctr).all():
        raise Diverged(f"after epoch {end}, some predictions are not finite")
    return evaluate_split(valid, ctr)


def predict(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Return click probabilities in the true traffic, (rows): calibrated for the split's negative_rate, as served.

    They are computed in evaluation mode. The split is read in parts.
    """
    return (predict_logits(model, split) + math.log(split.negative_rate)).sigmoid().numpy()


def predict_at_positions(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Return predict() for the positions at which the rows were shown, (rows), if position effects are trained.

    Epochs are compared by these predictions. The labels of valid contain the effects of the positions, so without them,
    the model that has learned the effects from other fields would look best.
    """
    effects = position_effects(model)
    if effects is None or split.positions is None:
        return predict(model, split)
    positions = torch.from_numpy(np.array(split.positions)).to(device_of(model))
    with torch.inference_mode():
        by_position = effects(positions).double().cpu()
    ctr: NDArray[np.float64] = (
        (predict_logits(model, split) + by_position + math.log(split.negative_rate)).sigmoid().numpy()
    )
    return ctr


def predict_logits(model: nn.Module, split: Split) -> Tensor:
    """Return the logits before calibration, float64 (rows), computed in evaluation mode."""
    model.eval()
    device, logits = device_of(model), []
    with torch.inference_mode():
        for start in range(0, len(split), EVALUATION_ROWS):
            rows = split.part(start, start + EVALUATION_ROWS)
            logits.append(model(rows.ids.long().to(device), rows.values.to(device)))
    return torch.cat(logits).double().cpu()


def train_part(
    state: State,
    tables: Sequence[nn.Parameter],
    batches: Iterable[Rows],
    recipe: Training,
    on_rows: Callable[[int], None],
    offset: float = 0.0,
) -> float:
    """Train on each batch once and return the mean loss over the rows. `offset` is that of train_step().

    Raises:
        Diverged: If the loss is not finite.
    """
    state.model.train()
    device, seen = device_of(state.model), 0
    # Keep the sum on the device until the end. Reading it in every step would make the CPU wait for the GPU.
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        loss = train_step(state.model, tables, batch.to(device), recipe, state.optimizer, offset)
        if state.average:
            state.average.update()
        total, seen = total + loss.double() * len(batch), seen + len(batch)
        on_rows(len(batch))
    state.optimizer.zero_grad()  # writing a checkpoint needs the memory
    if not total.isfinite():
        raise Diverged(f"the training loss is {total.item()}")
    return total.item() / seen


def train_step(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batch: Rows,
    recipe: Training,
    optimizer: torch.optim.Optimizer,
    offset: float = 0.0,
) -> Tensor:
    """Take one step on a batch, and return the loss of Eq. 12 (a scalar) without the penalties.

    The loss is the mean over the rows of a row's weight times its cross-entropy. The weights have a mean of 1 over the
    training set, not over each batch, so that a row has the same weight in every batch.

    If only a share w of the negatives was kept, their odds of a click are 1 / w times those in the log. The loss
    compares the labels with the logit plus the offset -log(w), so the model's own logit is that of the log. In the same
    way, it adds the effect of the position at which a row was shown, if position effects are trained.
    """
    effects = position_effects(model)
    without_rest = {id(p) for p in (*tables, *(effects.parameters() if effects else ()))}
    rest = [p for p in model.parameters() if id(p) not in without_rest]
    optimizer.zero_grad()
    logits = model(batch.ids, batch.values) + offset
    if effects is not None and batch.positions is not None:
        logits = logits + effects(batch.positions)
    loss = functional.binary_cross_entropy_with_logits(logits, batch.labels, weight=batch.weights)
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
